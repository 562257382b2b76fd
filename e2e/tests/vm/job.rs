//! Jobs of the daemon: they outlive the command that began them, are found again, and are called off. What runs for long is a
//! pull from a mirror that takes the connection and says nothing.

use std::net::TcpListener;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use e2e::world::{SMALL, World, code, wait};
use e2e::{EMPTY, KERNEL, TINY};

use crate::Body;

pub(crate) const TESTS: &[(&str, Body)] = &[
    ("job_ctrl_c_cancels_a_pull_at_the_daemon", ctrl_c),
    ("job_survives_its_client_and_is_attached_to_and_cancelled", detached),
    ("job_is_interrupted_by_the_end_of_its_daemon", interrupted),
    ("job_and_vms_keep_what_they_use", in_use),
];

/// A proxy that takes every connection and never answers. It goes when this is dropped.
pub(crate) struct Mirror(Arc<TcpListener>);

impl Mirror {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let listener = Arc::new(TcpListener::bind("127.0.0.1:0")?);
        let accepts = listener.clone();
        std::thread::spawn(move || {
            let mut held = Vec::new();
            while let Ok((connection, _)) = accepts.accept() {
                held.push(connection);
            }
        });
        Ok(Self(listener))
    }

    /// For a daemon that is to reach Debian's archive through it.
    pub(crate) fn env(&self) -> anyhow::Result<Vec<(String, String)>> {
        let url = format!("http://{}", self.0.local_addr()?);
        Ok(["http_proxy", "https_proxy"].map(|name| (name.to_owned(), url.clone())).into())
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        // accept(2) returns, and the thread lets go of the rest.
        let _ = rustix::net::shutdown(&*self.0, rustix::net::Shutdown::Both);
    }
}

/// A world whose daemon pulls from a mirror that says nothing.
fn stalled(world: &mut World) -> anyhow::Result<Mirror> {
    let mirror = Mirror::start()?;
    world.env = mirror.env()?;
    Ok(mirror)
}

fn shown(world: &World, job: &str, key: &str) -> anyhow::Result<String> {
    let shown = world.ok(&["job", "show", "--json", job])?.json()?;
    Ok(shown["job"][key].as_str().unwrap_or_default().to_owned())
}

/// Whether apt works for the daemon.
fn apts() -> usize {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| std::fs::read_to_string(entry.path().join("comm")).ok());
    names.filter(|name| name.starts_with("apt-get")).count()
}

fn pull(world: &World) -> anyhow::Result<std::process::Child> {
    let mut pull = world.command(&["kernel", "pull", "--replace", KERNEL]);
    let pull = pull.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    world.until("apt works", || Ok(apts() == 1))?;
    Ok(pull)
}

fn signal(child: &std::process::Child, signal: rustix::process::Signal) -> anyhow::Result<()> {
    Ok(rustix::process::kill_process(rustix::process::Pid::from_child(child), signal)?)
}

fn ctrl_c(world: &mut World) -> anyhow::Result<()> {
    let _mirror = stalled(world)?;
    let pull = pull(world)?;
    let running = world.ok(&["job", "list", "--running"])?.text();
    ensure!(running.contains("kernel-pull") && running.contains("fetch the package index"), "{running}");
    signal(&pull, rustix::process::Signal::INT)?;
    let output = pull.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(code(output.status) == 130 && said.contains("interrupted: "), "{output:?}");
    ensure!(apts() == 0, "apt goes on");
    let list = world.ok(&["job", "list", "--json"])?.json()?;
    let last = list["jobs"].as_array().and_then(|jobs| jobs.last()).context("no job")?.clone();
    ensure!((&last["state"], &last["subject"]) == (&"cancelled".into(), &KERNEL.into()), "{last}");
    ensure!(
        !world.ok(&["job", "list", "--running"])?.text().contains("kernel-pull"),
        "it is listed as running"
    );
    Ok(())
}

fn detached(world: &mut World) -> anyhow::Result<()> {
    let _mirror = stalled(world)?;
    // Killed, a client leaves its job to the daemon too.
    let mut killed = pull(world)?;
    signal(&killed, rustix::process::Signal::KILL)?;
    killed.wait()?;
    let running = world.ok(&["job", "list", "--running", "--json"])?.json()?;
    let first = running["jobs"][0]["id"].as_str().context("the job died with its client")?.to_owned();
    world.ok(&["job", "cancel", &first])?;
    ensure!(shown(world, &first, "state")? == "cancelled");

    let job = world.ok(&["kernel", "pull", "--replace", "-d", KERNEL])?.text();
    world.until("apt works", || Ok(apts() == 1))?;
    let begins = &job[..8];
    let mut attached = world.command(&["job", "attach", begins]);
    let mut attached = attached.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    ensure!(wait_a_while(&mut attached)?, "it ended");
    signal(&attached, rustix::process::Signal::INT)?;
    let output = attached.wait_with_output()?;
    ensure!(code(output.status) == 130, "{output:?}");
    ensure!(shown(world, begins, "state")? == "running" && apts() == 1, "Ctrl-C ended it");
    // A name that is pulled anew is not deleted, and whoever follows a job is told of its end.
    let mut attached = world.command(&["job", "attach", &job]);
    let mut attached = attached.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let cancelled = world.ok(&["job", "cancel", begins])?.text();
    ensure!(cancelled == format!("job {job} is cancelled"), "{cancelled}");
    let status = wait(&mut attached, Duration::from_secs(20))?.context("it follows a job that ended")?;
    ensure!(code(status) == 130 && apts() == 0, "{status}");
    let again = world.run(&["job", "cancel", &job])?.expect(0)?;
    ensure!(again.text() == cancelled, "{}", again.text());
    let nobody = world.run(&["job", "show", "none"])?.expect(1)?;
    ensure!(nobody.stderr.contains("there is no job 'none'") && nobody.stderr.contains("banger job list"));
    Ok(())
}

/// Whether it still runs after a while.
fn wait_a_while(child: &mut std::process::Child) -> anyhow::Result<bool> {
    std::thread::sleep(Duration::from_secs(1));
    Ok(child.try_wait()?.is_none())
}

fn interrupted(world: &mut World) -> anyhow::Result<()> {
    let _mirror = stalled(world)?;
    let job = world.ok(&["kernel", "pull", "--replace", "-d", KERNEL])?.text();
    world.until("apt works", || Ok(apts() == 1))?;
    world.kill_daemon()?;
    ensure!(shown(world, &job, "state")? == "interrupted", "it is {}", shown(world, &job, "state")?);
    let attached = world.run(&["job", "attach", &job])?.expect(1)?;
    ensure!(attached.stderr.contains("the daemon ended in the middle of the job"), "{}", attached.stderr);
    world.until("apt has ended", || Ok(apts() == 0))?;
    // And an orderly end.
    let job = world.ok(&["kernel", "pull", "--replace", "-d", KERNEL])?.text();
    world.until("apt works", || Ok(apts() == 1))?;
    world.ok(&["daemon", "stop"])?;
    ensure!(shown(world, &job, "state")? == "interrupted", "it is {}", shown(world, &job, "state")?);
    world.until("apt has ended", || Ok(apts() == 0))
}

fn in_use(world: &mut World) -> anyhow::Result<()> {
    let _mirror = stalled(world)?;
    let refused = |line: &[&str], says: &str| -> anyhow::Result<()> {
        let ran = world.run(line)?.expect(1)?;
        ensure!(ran.stderr.contains("cannot delete") && ran.stderr.contains(says), "{}", ran.stderr);
        Ok(())
    };
    // While it starts, while it runs, and while it is at rest.
    let mut line = vec!["vm", "create", "--name", "user"];
    line.extend(SMALL);
    let mut starts = world.command(&line).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    world.until("the VM is there", || Ok(world.vms()? == ["user"]))?;
    refused(&["image", "delete", TINY, "--json"], "these VMs use it: user")?;
    refused(&["kernel", "delete", KERNEL], "these VMs use it: user")?;
    ensure!(starts.wait()?.success(), "the VM did not start");
    refused(&["kernel", "delete", KERNEL], "banger vm delete user")?;
    world.ok(&["vm", "stop", "user"])?;
    refused(&["image", "rm", TINY], "these VMs use it: user")?;
    // What no VM uses goes, where another is refused. Its content has another name.
    let disk = world.dir.join("home/same.ext4");
    std::fs::copy(world.disk_of(EMPTY)?, &disk)?;
    world.ok(&["image", "register", "same", "./same.ext4"])?;
    let both = world.run(&["image", "delete", TINY, "same"])?.expect(1)?;
    ensure!(both.text() == "same", "{}", both.text());
    std::fs::remove_file(&disk)?;
    world.ok(&["vm", "delete", "user"])?;

    let job = world.ok(&["kernel", "pull", "--replace", "-d", KERNEL])?.text();
    refused(&["kernel", "delete", KERNEL], &format!("it is being made anew by job {job}"))?;
    world.ok(&["job", "cancel", &job])?;
    world.ok(&["kernel", "delete", KERNEL])?;
    ensure!(world.run(&["kernel", "show", KERNEL])?.status == 1, "it is there");
    world.put_kernels_back()
}

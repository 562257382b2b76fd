//! A world of its own for a test: directories, a home, a copy of the store, and the check at the end that nothing is left.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use banger_daemon::ports::{RootDisks, VmDirs};
use testkit::leaks::{self, Picture};

use crate::{KERNEL, TINY, branch, cache, isolate};

/// Longest run of one command line. Emulated machines on a busy host are slow; a hang is still found.
const PATIENCE: Duration = Duration::from_secs(150);

/// Flags of a VM that boots in the shortest time.
pub const SMALL: &[&str] = &[
    "--image", TINY, "--kernel", KERNEL, "--memory", "256MiB", "--vcpu", "1", "--no-nat", "--wait", "agent",
];

/// See the module.
#[derive(Debug)]
pub struct World {
    /// Everything of the test is below it.
    pub dir: PathBuf,
    /// The runtime directory.
    pub runtime: PathBuf,
    /// The state directory.
    pub state: PathBuf,
    /// More variables for every command; an empty value takes one away.
    pub env: Vec<(String, String)>,
    before: Picture,
}

/// A command line that has ended.
#[derive(Debug, Clone)]
pub struct Ran {
    /// Its exit status; 128 + n where signal n ended it.
    pub status: i32,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: String,
}

impl Ran {
    /// Standard output as a text without the last line's end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end_matches('\n').to_owned()
    }

    /// Fails with both streams unless the status is this.
    pub fn expect(self, status: i32) -> anyhow::Result<Self> {
        if self.status != status {
            bail!(
                "status {} instead of {status}\nstdout: {}\nstderr: {}",
                self.status,
                self.text(),
                self.stderr
            );
        }
        Ok(self)
    }

    /// Standard output as JSON.
    pub fn json(&self) -> anyhow::Result<serde_json::Value> {
        serde_json::from_slice(&self.stdout).with_context(|| format!("not JSON: {}", self.text()))
    }
}

/// Runs a test in namespaces and a world of its own, and the leak check at its end.
pub fn test(name: &str, body: impl FnOnce(&mut World) -> anyhow::Result<()>) -> anyhow::Result<()> {
    isolate::inside(name, || {
        let mut world = World::new(name)?;
        let result = body(&mut world);
        let ended = match result {
            Ok(()) => world.end(),
            Err(error) => {
                let logs = world.logs();
                let left =
                    world.end().err().map_or(String::new(), |left| format!("\nand at the end: {left:#}"));
                Err(anyhow::anyhow!("{error:#}{left}\n{logs}"))
            }
        };
        if ended.is_ok() {
            fs::remove_dir_all(&world.dir).context("removing the test's directory")?;
        }
        ended
    })
}

/// Runs a test in a world of its own without namespaces, for what cannot be seen from inside. Others change the machine
/// meanwhile, so its end is judged by its own VMs and daemon alone.
pub fn test_outside(name: &str, body: impl FnOnce(&mut World) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let runtime = std::env::temp_dir().join(format!("banger-test-{}", std::process::id()));
    let mut world = World::at(&cache::root()?.join("run").join(name), &runtime)?;
    let tested = body(&mut world);
    let stopped = world.delete_all().and_then(|()| world.ok(&["daemon", "stop"]));
    tested.and(stopped.map(drop)).map_err(|error| anyhow::anyhow!("{error:#}\n{}", world.logs()))?;
    for dir in [&world.dir, &world.runtime] {
        fs::remove_dir_all(dir).context("removing the test's directory")?;
    }
    Ok(())
}

impl World {
    fn new(name: &str) -> anyhow::Result<Self> {
        let world = Self::at(&cache::root()?.join("run").join(name), Path::new("/run/banger-test"))?;
        ensure!(world.before.unseen().is_empty(), "the picture has holes: {:?}", world.before.unseen());
        Ok(world)
    }

    /// A world in a directory, which is made anew, and with this runtime directory. The caller ends it.
    pub fn at(dir: &Path, runtime: &Path) -> anyhow::Result<Self> {
        let template = cache::template()?;
        if dir.exists() {
            fs::remove_dir_all(dir).context("removing what an earlier run left")?;
        }
        let state = dir.join("state");
        fs::create_dir_all(dir.join("home"))?;
        fs::create_dir_all(dir.join("tmp"))?;
        cache::copy(&template, &state)?;
        let before = Picture::take(&[dir, Path::new("/run"), Path::new("/dev/shm")])?;
        Ok(Self { dir: dir.to_owned(), runtime: runtime.to_owned(), state, env: Vec::new(), before })
    }

    /// `banger` with these arguments, in this world.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(crate::bin_dir().join("banger"));
        command.args(args);
        self.dress(&mut command);
        command
    }

    /// Gives a command this world's environment, and no other.
    pub fn dress(&self, command: &mut Command) {
        command
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.dir.join("home"))
            .env("TMPDIR", self.dir.join("tmp"))
            .env("LC_ALL", "C.UTF-8")
            .env("BANGER_RUNTIME_DIR", &self.runtime)
            .env("BANGER_STATE_DIR", &self.state)
            .env("BANGER_CACHE_DIR", self.dir.join("cache"))
            .env("BANGER_CONFIG", self.dir.join("config.toml"))
            .env("BANGER_DAEMON", crate::bin_dir().join("bangerd"))
            .env("BANGER_AGENT", crate::agent())
            .current_dir(self.dir.join("home"))
            .stdin(Stdio::null());
        for (name, value) in &self.env {
            if value.is_empty() {
                command.env_remove(name);
            } else {
                command.env(name, value);
            }
        }
    }

    /// Runs `banger` to its end.
    pub fn run(&self, args: &[&str]) -> anyhow::Result<Ran> {
        finish(self.command(args), None).with_context(|| format!("banger {}", args.join(" ")))
    }

    /// Runs `banger` to its end with these bytes as its input.
    pub fn run_with(&self, args: &[&str], input: Vec<u8>) -> anyhow::Result<Ran> {
        finish(self.command(args), Some(input)).with_context(|| format!("banger {}", args.join(" ")))
    }

    /// Runs `banger` to its end, which must be good.
    pub fn ok(&self, args: &[&str]) -> anyhow::Result<Ran> {
        self.run(args)?.expect(0).with_context(|| format!("banger {}", args.join(" ")))
    }

    /// Creates and starts a small VM.
    pub fn small_vm(&self, name: &str) -> anyhow::Result<()> {
        let mut args = vec!["vm", "create", "--name", name];
        args.extend(SMALL);
        self.ok(&args).map(drop)
    }

    /// Runs a command in a VM; its status must be 0.
    pub fn exec(&self, name: &str, command: &[&str]) -> anyhow::Result<Ran> {
        let mut args = vec!["vm", "exec", name, "--"];
        args.extend(command);
        self.ok(&args)
    }

    /// Stops the agent of a VM without an init by a signal, for so many seconds, and waits until it answers no more.
    pub fn freeze_agent(&self, name: &str, seconds: u32) -> anyhow::Result<()> {
        let find = "for p in /proc/[0-9]*; do case $(cat $p/cmdline) in @banger-agent*) agent=${p#/proc/};; esac; done";
        let freeze = format!("sleep 1; kill -STOP $agent; sleep {seconds}; kill -CONT $agent");
        self.exec(name, &["sh", "-c", &format!("{find}; ({freeze}) </dev/null >/dev/null 2>&1 &")])?;
        loop {
            let mut asks = self.command(&["vm", "exec", name, "--", "true"]);
            let mut asks = asks.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
            if wait(&mut asks, Duration::from_secs(3))?.is_none() {
                return Ok(());
            }
        }
    }

    /// What `vm show --json` says of a VM.
    pub fn show(&self, name: &str) -> anyhow::Result<serde_json::Value> {
        self.ok(&["vm", "show", name, "--json"])?.json()
    }

    /// A VM's state.
    pub fn vm_state(&self, name: &str) -> anyhow::Result<String> {
        let shown = self.show(name)?;
        let state = find(&shown, "state").and_then(|state| state.as_str()).context("vm show has no state")?;
        Ok(state.to_owned())
    }

    /// The pid of a VM's VMM.
    pub fn vmm_pid(&self, name: &str) -> anyhow::Result<i32> {
        let shown = self.show(name)?;
        let pid = find(&shown, "vmm").and_then(|vmm| vmm.get("pid")?.as_i64()).context("no VMM pid")?;
        Ok(i32::try_from(pid)?)
    }

    /// Waits until a VM is in a state.
    pub fn await_state(&self, name: &str, state: &str) -> anyhow::Result<()> {
        self.until(&format!("{name} is {state}"), || Ok(self.vm_state(name)? == state))
    }

    /// A VM's directory on the host.
    pub fn vm_dir(&self, name: &str) -> anyhow::Result<PathBuf> {
        let shown = self.show(name)?;
        let id = find(&shown, "id").and_then(|id| id.as_str()).context("vm show has no id")?;
        Ok(self.state.join("vms").join(id))
    }

    /// Checks the file system of a VM that is at rest: it was left whole, with nothing to replay or to mend.
    pub fn check_disk(&self, name: &str) -> anyhow::Result<()> {
        self.with_raw_disk(&self.vm_dir(name)?, |raw| {
            // Replaying the journal is what -n does not do: a disk that needs it is not clean.
            isolate::run("e2fsck", &["-f", "-n", raw])
        })
        .with_context(|| format!("the disk of {name}"))
    }

    /// Gives a copy of the root disk in a directory as the guest sees it: a file that may be changed, and goes.
    pub fn with_raw_disk<T>(
        &self,
        dir: &Path,
        look: impl FnOnce(&str) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let dirs = VmDirs { runtime: self.runtime.clone(), state: dir.to_owned() };
        let disk = branch::wait(branch::disks(self).open(&dirs))?;
        let raw = self.dir.join("tmp/disk.raw");
        let (from, to) = (disk.path.to_str().context("no text")?, raw.to_str().context("no text")?);
        match disk.format {
            "raw" => isolate::run("cp", &["--sparse=always", from, to])?,
            format => isolate::run("qemu-img", &["convert", "-f", format, "-O", "raw", from, to])?,
        }
        let looked = look(to);
        fs::remove_file(&raw)?;
        looked
    }

    /// Names of all VMs.
    pub fn vms(&self) -> anyhow::Result<Vec<String>> {
        let list = self.ok(&["vm", "list", "--json"])?.json()?;
        let vms = find(&list, "vms").and_then(|vms| vms.as_array()).context("vm list has no vms")?;
        Ok(vms.iter().filter_map(|vm| find(vm, "name")?.as_str()).map(str::to_owned).collect())
    }

    /// The daemon's pid.
    pub fn daemon_pid(&self) -> anyhow::Result<i32> {
        let status = self.ok(&["daemon", "status", "--json"])?.json()?;
        let pid =
            find(&status, "pid").and_then(serde_json::Value::as_i64).context("daemon status has no pid")?;
        Ok(i32::try_from(pid)?)
    }

    /// What the daemon has in memory, KiB.
    pub fn daemon_kib(&self) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.daemon_pid()?))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
        Ok(line.split_whitespace().nth(1).context("no number")?.parse()?)
    }

    /// Kills the daemon at once and waits until it is gone.
    pub fn kill_daemon(&self) -> anyhow::Result<()> {
        let pid = self.daemon_pid()?;
        isolate::run("kill", &["-KILL", &pid.to_string()])?;
        self.until("the daemon is dead", || Ok(!alive(pid)))
    }

    /// Waits until something is so.
    pub fn until(&self, what: &str, mut so: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(90);
        while !so()? {
            ensure!(Instant::now() < deadline, "waited in vain until {what}");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The file of an image in the store.
    pub fn disk_of(&self, image: &str) -> anyhow::Result<PathBuf> {
        let shown = self.ok(&["image", "show", image, "--json"])?.json()?;
        let digest = find(&shown, "digest").and_then(|digest| digest.as_str()?.split(':').nth(1));
        Ok(self.state.join("images").join(digest.context("image show has no digest")?).join("rootfs.ext4"))
    }

    /// Gives a store without VMs the kernels back that a test deleted, so that its end is as its beginning was.
    pub fn put_kernels_back(&self) -> anyhow::Result<()> {
        self.ok(&["daemon", "stop"])?;
        let kernels = self.state.join("kernels");
        fs::remove_dir_all(&kernels).context("removing what is left of the kernels")?;
        let template = cache::template()?;
        cache::copy(&template.join("kernels"), &kernels)?;
        fs::copy(template.join("banger.db"), self.state.join("banger.db")).context("copying the store")?;
        Ok(())
    }

    /// Deletes every VM.
    pub fn delete_all(&self) -> anyhow::Result<()> {
        for name in self.vms()? {
            self.ok(&["vm", "delete", "--force", &name])?;
        }
        Ok(())
    }

    /// What differs from the beginning, but for the store and the logs, which stay.
    pub fn leaks(&self, patience: Duration) -> anyhow::Result<Vec<leaks::Difference>> {
        let state = self.state.display().to_string();
        let cache = self.dir.join("cache").display().to_string();
        let runtime = self.runtime.display().to_string();
        let stays = move |path: &str| {
            let below = |dir: &str| {
                path.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            let in_state = path.strip_prefix(&state).is_some_and(|rest| {
                rest.starts_with("/bangerd.log")
                    || ["/banger.db-wal", "/banger.db-shm", "/vms", "/bangerd.lock", "/runtime"].contains(&rest)
                    // The owner's own key, made with the first VM and kept for all; the host keys of VMs.
                    || ["/ssh", "/ssh/id_ed25519", "/ssh/id_ed25519.pub", "/ssh/known_hosts"].contains(&rest)
            });
            let in_runtime =
                path.strip_prefix(&runtime).is_some_and(|rest| ["", "/bangerd.lock", "/vms"].contains(&rest));
            in_state || in_runtime || below(&cache)
        };
        Ok(self.before.leaks(patience, &stays)?)
    }

    fn end(&self) -> anyhow::Result<()> {
        let ended = self.delete_all().and_then(|()| self.run(&["daemon", "stop"]));
        let left = self.leaks(Duration::from_secs(10))?;
        ensure!(left.is_empty(), "left behind:\n{}", leaks::report(&left));
        ended.map(drop)
    }

    fn logs(&self) -> String {
        let mut text = String::new();
        let mut files = vec![self.state.join("bangerd.log")];
        for vm in fs::read_dir(self.state.join("vms")).into_iter().flatten().flatten() {
            files.extend(["console.log", "qemu.log"].map(|name| vm.path().join(name)));
        }
        for file in files {
            if let Ok(bytes) = fs::read(&file) {
                let content = String::from_utf8_lossy(&bytes);
                let lines: Vec<&str> = content.lines().collect();
                let tail = lines[lines.len().saturating_sub(30)..].join("\n");
                text.push_str(&format!("--- {}\n{tail}\n", file.display()));
            }
        }
        text
    }
}

/// The value of a key, at the top or one level below it.
pub fn find<'v>(value: &'v serde_json::Value, key: &str) -> Option<&'v serde_json::Value> {
    value.get(key).or_else(|| value.as_object()?.values().find_map(|inner| inner.get(key)))
}

/// Whether a process exists that is no zombie.
pub fn alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let Some((_, rest)) = stat.rsplit_once(')') else { return false };
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // A zombie's other threads may live for a moment, and hold its sockets open (num_threads, proc_pid_stat(5)).
    fields.first() != Some(&"Z") || fields.get(17) != Some(&"1")
}

/// Runs a command to its end with all of its output, or kills it.
pub fn finish(mut command: Command, input: Option<Vec<u8>>) -> anyhow::Result<Ran> {
    if input.is_some() {
        command.stdin(Stdio::piped());
    }
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("starting it")?;
    let writer = child.stdin.take().zip(input).map(|(mut stdin, input)| {
        // Whoever does not read all of its input says why by its own status.
        std::thread::spawn(move || drop(stdin.write_all(&input)))
    });
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let status = wait(&mut child, PATIENCE)?;
    if let Some(writer) = writer {
        ensure!(writer.join().is_ok(), "the writer panicked");
    }
    let stdout = stdout.join().unwrap_or_default();
    let stderr = String::from_utf8_lossy(&stderr.join().unwrap_or_default()).into_owned();
    match status {
        Some(status) => Ok(Ran { status: code(status), stdout, stderr }),
        None => {
            bail!("no end after {PATIENCE:?}\nstdout: {}\nstderr: {stderr}", String::from_utf8_lossy(&stdout))
        }
    }
}

/// Waits for a child; `None` where it had to be killed.
pub fn wait(child: &mut Child, patience: Duration) -> anyhow::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// An exit status as a shell gives it.
pub fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

fn collect(stream: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            // What was read until an error is what there is to compare.
            let _ = stream.read_to_end(&mut bytes);
        }
        bytes
    })
}

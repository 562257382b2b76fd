//! ssh and what is built on it: without a route, with the key that was pinned when the VM was made, and with every word as it
//! was typed.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use e2e::pty::Pty;
use e2e::world::{Ran, SMALL, World, code, finish, wait};
use e2e::{DEBIAN, KERNEL, help, isolate};

use crate::Body;

pub(crate) const TESTS: &[(&str, Body)] =
    &[("ssh_and_its_kin_reach_a_vm", everything), ("ssh_knows_each_vm_and_says_what_is_missing", keys)];

/// What ssh is told by the world's banger, and nothing else: the variables of the world are in its configuration.
fn tool(world: &World, line: &[&str]) -> anyhow::Result<Ran> {
    tool_with(world, line, None)
}

fn tool_with(world: &World, line: &[&str], input: Option<Vec<u8>>) -> anyhow::Result<Ran> {
    let (program, args) = line.split_first().context("no program")?;
    let mut command = Command::new(program);
    command.args(args);
    bare(world, &mut command);
    finish(command, input).with_context(|| line.join(" "))
}

fn bare(world: &World, command: &mut Command) {
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("HOME", world.dir.join("home"))
        .current_dir(world.dir.join("home"))
        .stdin(Stdio::null());
}

fn ok(world: &World, line: &[&str]) -> anyhow::Result<Ran> {
    tool(world, line)?.expect(0).with_context(|| line.join(" "))
}

/// ssh goes by the home of the user database, so in here that is the world's.
fn take_home(world: &World) -> anyhow::Result<()> {
    let home = world.dir.join("home");
    let home = home.to_str().context("no text")?;
    let users = fs::read_to_string("/etc/passwd")?;
    let moved = users.lines().map(|line| {
        let mut fields: Vec<&str> = line.split(':').collect();
        if let [_, _, "0", _, _, of_root, _] = fields.as_mut_slice() {
            *of_root = home;
        }
        fields.join(":") + "\n"
    });
    let file = world.dir.join("tmp/passwd");
    fs::write(&file, moved.collect::<String>())?;
    isolate::run("mount", &["--bind", file.to_str().context("no text")?, "/etc/passwd"])
}

fn give_home_back(world: &World) -> anyhow::Result<()> {
    isolate::run("umount", &["/etc/passwd"])?;
    Ok(fs::remove_file(world.dir.join("tmp/passwd"))?)
}

fn everything(world: &mut World) -> anyhow::Result<()> {
    take_home(world)?;
    let home = world.dir.join("home");
    fs::create_dir(home.join(".ssh"))?;
    let own = "Host *.vm\n  User nobody\n  StrictHostKeyChecking no\n  ProxyCommand false";
    fs::write(home.join(".ssh/config"), own)?;
    let installed = world.ok(&["ssh-config", "--install"])?;
    ensure!(!installed.stderr.contains("warning"), "{}", installed.stderr);
    let line = [
        "vm", "create", "--name", "box", "--image", DEBIAN, "--kernel", KERNEL, "--memory", "1GiB",
        "--no-nat",
    ];
    world.ok(&line)?;

    ensure!(ok(world, &["ssh", "box.vm", "id -un"])?.text() == "root");
    tool(world, &["ssh", "box.vm", "exit 7"])?.expect(7)?;
    let noise: Vec<u8> = (0..2_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let echo = tool_with(world, &["ssh", "box.vm", "cat"], Some(noise.clone()))?.expect(0)?;
    ensure!(echo.stdout == noise, "{} bytes came back of {}", echo.stdout.len(), noise.len());
    files(world, &noise)?;
    words(world)?;
    agent(world)?;
    examples(world)?;
    outlives_the_daemon(world)?;
    alarm(world)?;

    world.ok(&["vm", "delete", "--force", "box"])?;
    ensure!(known(world)?.is_empty(), "{:?}", known(world)?);
    let gone = tool(world, &["ssh", "box.vm", "true"])?.expect(255)?;
    ensure!(gone.stderr.contains("there is no VM 'box'"), "{}", gone.stderr);
    world.ok(&["ssh-config", "--uninstall"])?;
    ensure!(fs::read_to_string(home.join(".ssh/config"))? == own, "the configuration is another");
    fs::remove_dir_all(home.join(".ssh"))?;
    give_home_back(world)
}

/// scp, sftp, rsync and git, there and back.
fn files(world: &World, noise: &[u8]) -> anyhow::Result<()> {
    let home = world.dir.join("home");
    fs::create_dir_all(home.join("tree/a b/empty"))?;
    fs::write(home.join("tree/a b/it's"), noise)?;
    std::os::unix::fs::symlink("a b/it's", home.join("tree/link"))?;
    ok(world, &["scp", "-q", "-r", "tree/a b", "box.vm:/root/scp"])?;
    ok(world, &["scp", "-q", "-r", "box.vm:/root/scp", "back"])?;
    ok(world, &["diff", "-r", "tree/a b", "back"])?;
    ok(world, &["rsync", "-a", "tree/", "box.vm:/root/rsync/"])?;
    ok(world, &["rsync", "-a", "box.vm:/root/rsync/", "synced"])?;
    ok(world, &["diff", "-r", "--no-dereference", "tree", "synced"])?;
    let batch = "mkdir sftp\nput \"tree/a b/it's\" sftp/file\nget sftp/file got\nls -l sftp\n";
    tool_with(world, &["sftp", "-q", "-b", "-", "box.vm"], Some(batch.into()))?.expect(0)?;
    ensure!(fs::read(home.join("got"))? == noise, "what sftp got is not what it put");
    let make = "git init -q -b main repo && cd repo && echo there >file && git add file &&
        git -c user.name=a -c user.email=a@b commit -q -m one";
    world.exec("box", &["sh", "-c", make])?;
    ok(world, &["git", "clone", "-q", "box.vm:/root/repo", "clone"])?;
    ensure!(fs::read_to_string(home.join("clone/file"))? == "there\n");
    ok(world, &["git", "-C", "clone", "push", "-q", "origin", "main:other"])?;
    world.exec("box", &["git", "-C", "repo", "rev-parse", "--verify", "other"])?;
    for name in ["tree", "back", "synced", "clone"] {
        fs::remove_dir_all(home.join(name))?;
    }
    Ok(fs::remove_file(home.join("got"))?)
}

/// `vm ssh`: each word of a command arrives as it is, and its status comes back.
fn words(world: &World) -> anyhow::Result<()> {
    let odd = [
        "a b",
        "$HOME",
        "`id`",
        "it's \"x\"",
        "two\nlines",
        "",
        "-n",
        "*",
        "\\",
        "~",
        "a;b&&c|d>e",
        "\u{e9}",
    ];
    let ran = world.ok(&[&["vm", "ssh", "box", "--", "printf", "%s\\0"], odd.as_slice()].concat())?;
    let expected: Vec<u8> = odd.iter().flat_map(|word| [word.as_bytes(), b"\0"].concat()).collect();
    ensure!(ran.stdout == expected, "{:?}", ran.text());
    for (command, status) in [(&["sh", "-c", "exit 3"][..], 3), (&["no-such-program"], 127)] {
        world.run(&[&["vm", "ssh", "box", "--"], command].concat())?.expect(status)?;
    }
    // By its id, without a command: a login shell that reads its input.
    let shown = world.show("box")?;
    let id = e2e::world::find(&shown, "id").and_then(|id| id.as_str()).context("no id")?;
    let ran = world.run_with(&["vm", "ssh", &id[..6]], b"echo $0; exit 5\n".to_vec())?.expect(5)?;
    // After what the distribution greets with.
    ensure!(ran.text().lines().last() == Some("-bash"), "{}", ran.text());
    Ok(())
}

/// Whether an example of the help needs an sshd in its guest. [`examples`] runs it.
pub(crate) fn runs(example: &str) -> bool {
    example.starts_with("banger vm ssh ")
}

/// What the help shows, as it is shown there: with programs and a repository in the guest as its reader has them.
fn examples(world: &World) -> anyhow::Result<()> {
    let prepare =
        "printf '#!/bin/sh\nexec test -t 0\n' >/usr/local/bin/htop && chmod +x /usr/local/bin/htop &&
        git init -q -b main && git pull -q /root/repo main &&
        git config branch.main.remote /root/repo && git config branch.main.merge refs/heads/main";
    world.exec("box", &["sh", "-c", prepare])?;
    let mut run = 0;
    for page in help::pages(&|words: &[&str]| world.command(words))? {
        for example in page.examples().iter().filter(|example| runs(example)) {
            let mut command = Command::new("sh");
            world.dress(&mut command);
            let path = format!("{}:/usr/local/bin:/usr/bin:/bin", e2e::bin_dir().display());
            command.env("PATH", path).args(["-c", example]);
            let mut pty = Pty::start(command, 24, 80)?;
            if !example.contains(" -- ") {
                // A shell is left when it is there.
                pty.until("root@box:~# ")?;
                pty.press(b"exit\r")?;
            }
            let status = pty.end().with_context(|| format!("the example '{example}'"))?;
            let said = String::from_utf8_lossy(&pty.shown()).into_owned();
            ensure!(status == 0, "the example '{example}' ended with {status}: {said}");
            run += 1;
        }
    }
    ensure!(run > 3, "{run} examples need an sshd");
    go_on(world)
}

/// What the help of ssh-config says that is to be had then, word for word.
fn go_on(world: &World) -> anyhow::Result<()> {
    let home = world.dir.join("home");
    fs::create_dir(home.join("src"))?;
    fs::write(home.join("src/file"), "here\n")?;
    let help = world.ok(&["ssh-config", "--help"])?.text();
    let lines = help::Page { words: Vec::new(), help }.then();
    ensure!(lines.len() == 4, "{lines:?}");
    for line in &lines {
        // The shell of `ssh box.vm` finds no input, and ends.
        ok(world, &["sh", "-c", line])?;
    }
    ensure!(fs::read_to_string(home.join("repo/file"))? == "there\n");
    ensure!(world.exec("box", &["cat", "/srv/src/file"])?.text() == "here");
    fs::remove_dir_all(home.join("src"))?;
    Ok(fs::remove_dir_all(home.join("repo"))?)
}

/// The agent of the user is in the guest where it was asked for, and nowhere else.
fn agent(world: &World) -> anyhow::Result<()> {
    let with_agent = |line: &[&str]| {
        let mut command = Command::new("ssh-agent");
        command.arg(e2e::bin_dir().join("banger")).args(line);
        world.dress(&mut command);
        finish(command, None)
    };
    let ask = ["--", "printenv", "SSH_AUTH_SOCK"];
    with_agent(&[&["vm", "ssh", "box"], ask.as_slice()].concat())?.expect(1)?;
    with_agent(&[&["vm", "ssh", "-A", "box"], ask.as_slice()].concat())?.expect(0)?;
    Ok(())
}

fn outlives_the_daemon(world: &World) -> anyhow::Result<()> {
    let mut command = Command::new("ssh");
    command.args(["box.vm", "echo begun; sleep 4; echo ended"]);
    bare(world, &mut command);
    let mut ssh = command.stdout(Stdio::piped()).spawn()?;
    let mut said = std::io::BufReader::new(ssh.stdout.take().context("no stdout")?);
    let mut line = || {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut said, &mut line).map(|_| line)
    };
    ensure!(line()? == "begun\n");
    world.kill_daemon()?;
    ensure!(line()? == "ended\n");
    let status = wait(&mut ssh, Duration::from_secs(60))?.context("ssh did not end")?;
    ensure!(code(status) == 0, "ssh ended with {status}");
    Ok(())
}

/// A host key that is another is refused, and an sshd that does not listen is told of.
fn alarm(world: &World) -> anyhow::Result<()> {
    let change = "rm /etc/ssh/ssh_host_ed25519_key && ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key &&
        systemctl restart ssh";
    world.exec("box", &["sh", "-c", change])?;
    for ran in [tool(world, &["ssh", "box.vm", "true"])?, world.run(&["vm", "ssh", "box", "--", "true"])?] {
        let ran = ran.expect(255)?;
        ensure!(ran.stderr.contains("REMOTE HOST IDENTIFICATION HAS CHANGED"), "{}", ran.stderr);
    }
    // A restart gives it the key back that was made with it.
    world.ok(&["vm", "restart", "box"])?;
    tool(world, &["ssh", "box.vm", "true"])?.expect(0)?;
    world.exec("box", &["systemctl", "stop", "ssh.service"])?;
    let ours = world.run(&["vm", "ssh", "box", "--", "true"])?.expect(125)?;
    for ran in [ours, tool(world, &["ssh", "box.vm", "true"])?.expect(255)?] {
        ensure!(ran.stderr.contains("its sshd does not listen on port 22"), "{}", ran.stderr);
        ensure!(ran.stderr.contains("banger vm exec -it box -- sh"), "{}", ran.stderr);
    }
    Ok(())
}

/// The lines of VMs in the file that ssh is told to believe.
fn known(world: &World) -> anyhow::Result<Vec<String>> {
    let text = fs::read_to_string(world.state.join("ssh/known_hosts"))?;
    Ok(text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect())
}

fn keys(world: &mut World) -> anyhow::Result<()> {
    let key = world.dir.join("home/key");
    let key_text = key.to_str().context("no text")?;
    isolate::run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", "mine", "-f", key_text])?;
    fs::write(world.dir.join("config.toml"), "ssh_key_path = \"~/key\"\n")?;
    world.small_vm("small")?;
    let let_in = world.exec("small", &["cat", "/root/.ssh/authorized_keys"])?.text();
    let public = fs::read_to_string(key.with_extension("pub"))?;
    ensure!(let_in.lines().any(|line| line == public.trim()), "{let_in}");
    let refused = world.run(&["vm", "ssh", "small", "--", "true"])?.expect(125)?;
    ensure!(refused.stderr.contains("its image has no sshd"), "{}", refused.stderr);
    ensure!(refused.stderr.contains("banger vm exec -it small -- sh"), "{}", refused.stderr);

    let first = known(world)?;
    world.ok(&["vm", "delete", "--force", "small"])?;
    ensure!(first.len() == 1 && known(world)?.is_empty(), "{first:?}, then {:?}", known(world)?);
    let create = |name: &str| {
        let without_wait = SMALL.iter().take_while(|arg| **arg != "--wait");
        let line: Vec<&str> =
            ["vm", "create", "--no-start", "--name", name].iter().chain(without_wait).copied().collect();
        world.ok(&line).map(drop)
    };
    create("small")?;
    let second = known(world)?;
    ensure!(second.len() == 1 && second != first && second[0].starts_with("small.vm,"), "{second:?}");
    many(world, &create)?;
    fs::remove_file(&key)?;
    fs::remove_file(key.with_extension("pub"))?;
    Ok(fs::remove_file(world.dir.join("config.toml"))?)
}

/// Many VMs that come and go at once, and a daemon that dies among them: each that there is has its line.
fn many(world: &World, create: &(impl Fn(&str) -> anyhow::Result<()> + Sync)) -> anyhow::Result<()> {
    let names: Vec<String> = (0..8).map(|number| format!("many{number}")).collect();
    std::thread::scope(|scope| {
        let made: Vec<_> = names.iter().map(|name| scope.spawn(move || create(name))).collect();
        made.into_iter().try_for_each(|made| made.join().map_err(|_| anyhow::anyhow!("it panicked"))?)
    })?;
    let of_vms = || -> anyhow::Result<bool> {
        let mut lines = known(world)?;
        lines.sort();
        let mut vms = world.vms()?;
        vms.sort();
        let told: Vec<&str> =
            lines.iter().filter_map(|line| line.split_once(".vm,")).map(|(name, _)| name).collect();
        ensure!(told == vms, "ssh knows {told:?} of {vms:?}");
        Ok(told.len() == vms.len())
    };
    ensure!(of_vms()?);
    let few: Vec<&str> = names.iter().take(4).map(String::as_str).collect();
    let mut deletes = world.command(&[&["vm", "delete"], few.as_slice()].concat());
    let mut deletes = deletes.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    world.kill_daemon()?;
    wait(&mut deletes, Duration::from_secs(60))?.context("the command did not end")?;
    ensure!(Path::new(&world.state).join("ssh/known_hosts").exists());
    ensure!(of_vms()?);
    Ok(())
}

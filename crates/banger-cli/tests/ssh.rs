//! `vm ssh` and `ssh-config` against a fake daemon: what ssh is told, what is said where nobody answers it, and the user's
//! own configuration.
#![expect(clippy::unwrap_used, reason = "helpers of tests, outside of test functions")]

mod environment;
mod fake;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use banger_proto::guest::Sshd;
use fake::Fake;

struct World {
    dir: tempfile::TempDir,
    fake: Fake,
}

impl World {
    /// With a VM whose sshd listens, and an ssh that writes down how it was called.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fake = Fake::start(&dir.path().join("run"));
        {
            let mut state = fake.state.lock().unwrap();
            (state.exists, state.sshd) = (true, Some(Sshd { installed: true, listening: true }));
        }
        let world = Self { dir, fake };
        std::fs::create_dir(world.path("bin")).unwrap();
        let ssh = world.path("bin/ssh");
        std::fs::write(&ssh, "#!/bin/sh\nprintf '%s\\0' \"$@\" >\"$HOME/called\"\nexit 42\n").unwrap();
        std::fs::set_permissions(&ssh, PermissionsExt::from_mode(0o755)).unwrap();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = environment::banger(self.dir.path(), args);
        command.env("PATH", format!("{}:/usr/bin:/bin", self.path("bin").display()));
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// The arguments that ssh was called with; `None` where it was not.
    fn called(&self) -> Option<Vec<String>> {
        let text = std::fs::read_to_string(self.path("called")).ok()?;
        std::fs::remove_file(self.path("called")).unwrap();
        Some(text.split_terminator('\0').map(str::to_owned).collect())
    }

    fn sshd(&self, sshd: Option<Sshd>) {
        self.fake.state.lock().unwrap().sshd = sshd;
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn ssh_takes_the_place_of_banger_and_is_told_everything() {
    let world = World::new();
    let words = ["vm", "ssh", "box.vm", "--", "-x", "a b", "", "$HOME", "it's", "two\nlines", "\"\\*"];
    let output = world.run(&words);
    assert_eq!(output.status.code(), Some(42), "{}", said(&output));
    let called = world.called().unwrap();
    assert_eq!(called[..2], ["-F", "none"]);
    let end = &called[called.len() - 3..];
    assert_eq!(end, ["box.vm", "--", "-x 'a b' '' '$HOME' 'it'\\''s' 'two\nlines' '\"\\*'"]);
    let known = format!("UserKnownHostsFile \"{}\"", world.path("state/ssh/known_hosts").display());
    let key = format!("IdentityFile \"{}\"", world.path("state/ssh/id_ed25519").display());
    for option in [known.as_str(), &key, "StrictHostKeyChecking yes", "ForwardAgent no", "User root"] {
        assert!(called.iter().any(|arg| arg == option), "no {option} in {called:?}");
    }
    assert!(!called.iter().any(|arg| arg == "-A" || arg == "-t"), "{called:?}");

    let output = world.run(&["vm", "ssh", "-At", "box"]);
    assert_eq!(output.status.code(), Some(42), "{}", said(&output));
    let called = world.called().unwrap();
    // Before the option that says no: the first counts.
    assert_eq!(called[2..4], ["-A", "-t"]);
    assert_eq!(called.last().unwrap(), "box.vm");
    // The guest's agent is from before the question: ssh finds out by itself.
    world.sshd(None);
    assert_eq!(world.run(&["vm", "ssh", "box"]).status.code(), Some(42));
}

#[test]
fn the_key_of_the_configuration_is_used() {
    let world = World::new();
    std::fs::write(world.path("config.toml"), "ssh_key_path = \"~/mine\"\n").unwrap();
    assert_eq!(world.run(&["vm", "ssh", "box"]).status.code(), Some(42));
    let key = format!("IdentityFile \"{}\"", world.path("mine").display());
    let called = world.called().unwrap();
    assert_eq!(called.iter().filter(|arg| arg.starts_with("IdentityFile")).collect::<Vec<_>>(), [&key]);
}

/// The guest is asked, and ssh is not even started; through ssh-config's proxy the same is said.
#[test]
fn a_guest_without_sshd_says_so() {
    let world = World::new();
    for (sshd, why) in [
        (Sshd { installed: false, listening: false }, "its image has no sshd"),
        (Sshd { installed: true, listening: false }, "its sshd does not listen on port 22"),
    ] {
        world.sshd(Some(sshd));
        for (args, status) in [
            (&["vm", "ssh", "box"][..], 1),
            (&["vm", "ssh", "box", "--", "true"], 125),
            (&["vm", "proxy", "box.vm", "22"], 1),
        ] {
            let output = world.run(args);
            assert_eq!(output.status.code(), Some(status), "{args:?}: {}", said(&output));
            for text in [why, "VM 'box'", "banger vm exec -it box -- sh"] {
                assert!(said(&output).contains(text), "{args:?} does not say {text:?}: {}", said(&output));
            }
            assert!(world.called().is_none() && output.stdout.is_empty(), "{args:?}");
        }
    }
    world.sshd(None);
    let output = world.run(&["vm", "proxy", "box.vm"]);
    assert!(
        output.status.code() == Some(1) && said(&output).contains("nothing listens"),
        "{}",
        said(&output)
    );
    world.fake.state.lock().unwrap().exists = false;
    let output = world.run(&["vm", "ssh", "box", "--", "true"]);
    assert!(output.status.code() == Some(125) && said(&output).contains("no such VM"), "{}", said(&output));
}

/// What is printed is what ssh makes of it, in whatever environment it is started.
#[test]
fn ssh_understands_what_is_printed() {
    let world = World::new();
    let output = world.run(&["ssh-config"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    std::fs::write(world.path("printed"), &output.stdout).unwrap();
    let shown = |host: &str| {
        let ssh =
            Command::new("/usr/bin/ssh").arg("-F").arg(world.path("printed")).args(["-G", host]).output();
        let ssh = ssh.unwrap();
        assert!(ssh.status.success(), "{host}: {}", said(&ssh));
        String::from_utf8(ssh.stdout).unwrap()
    };
    let of_vm = shown("box.vm");
    let state = world.path("state");
    let proxy = of_vm.lines().find_map(|line| line.strip_prefix("proxycommand ")).unwrap();
    assert!(proxy.starts_with(&format!("env BANGER_STATE_DIR=\"{}\" ", state.display())), "{proxy}");
    assert!(proxy.contains(" BANGER_RUNTIME_DIR="), "{proxy}");
    assert!(proxy.ends_with(&format!(" \"{}\" vm proxy '%h' %p", env!("CARGO_BIN_EXE_banger"))), "{proxy}");
    for line in [
        "user root",
        "stricthostkeychecking true",
        "forwardagent no",
        "identitiesonly yes",
        &format!("identityfile {}/ssh/id_ed25519", state.display()),
        &format!("userknownhostsfile {}/ssh/known_hosts", state.display()),
    ] {
        assert!(of_vm.lines().any(|shown| shown == line), "no {line:?} in {of_vm}");
    }
    assert!(!shown("box.example").contains("banger"), "it is for other hosts too");
    // A shell would run what is in such a name, and an older ssh hands it on. A newer one refuses the name itself, so it is
    // asked again with a letter in the quote's place that it takes.
    let quoted = String::from_utf8(output.stdout).unwrap();
    std::fs::write(world.path("other"), quoted.replace('\'', "_")).unwrap();
    let proxy = |file: &str, host: &str| {
        let mut ssh = Command::new("/usr/bin/ssh");
        let ssh = ssh.arg("-F").arg(world.path(file)).args(["-G", host]).output().unwrap();
        (ssh.status.success(), String::from_utf8(ssh.stdout).unwrap().contains("\nproxycommand "))
    };
    assert!(!proxy("printed", "x';true;'.vm").1);
    assert_eq!(proxy("other", "plain.vm"), (true, true));
    assert_eq!(proxy("other", "x_true_.vm"), (true, false), "a name with a quote in it gets to the shell");
}

/// The proxy of an ssh without XDG's variables, or with others, finds the daemon whose keys are beside it.
#[test]
fn ssh_is_told_of_places_that_xdg_says() {
    let world = World::new();
    let mut command = world.command(&["ssh-config"]);
    command.env_remove("BANGER_STATE_DIR").env("XDG_STATE_HOME", world.path("xdg"));
    let printed = String::from_utf8(command.output().unwrap().stdout).unwrap();
    let state = format!("{}/banger", world.path("xdg").display());
    assert!(printed.contains(&format!("ProxyCommand env BANGER_STATE_DIR=\"{state}\" ")), "{printed}");
    assert!(printed.contains(&format!("IdentityFile \"{state}/ssh/id_ed25519\"")), "{printed}");
}

#[test]
fn a_place_that_ssh_would_misread_is_refused() {
    let world = World::new();
    for args in [&["ssh-config"][..], &["ssh-config", "--install"], &["vm", "ssh", "box", "--", "true"]] {
        let output = world.command(args).env("BANGER_CACHE_DIR", "/tmp/100%").output().unwrap();
        assert_ne!(output.status.code(), Some(0));
        assert!(
            said(&output).contains("BANGER_CACHE_DIR cannot be written in ssh's configuration"),
            "{output:?}"
        );
    }
    assert!(!world.path(".ssh").exists() && !world.path("state").exists(), "something was made");
}

#[test]
fn the_include_comes_and_goes() {
    let world = World::new();
    let config = world.path(".ssh/config");
    let run = |flag: &str, says: &str| {
        let output = world.run(&["ssh-config", flag]);
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        assert!(said(&output).contains(says), "{flag}: {}", said(&output));
        assert!(output.stdout.is_empty(), "{output:?}");
    };
    run("--uninstall", "nothing of banger's");
    run("--install", "now");
    run("--install", "already");
    let text = std::fs::read_to_string(&config).unwrap();
    let included = world.path("state/ssh/config");
    let include = format!("Include \"{}\"", included.display());
    assert_eq!(text.lines().filter(|line| **line == include).count(), 1, "{text}");
    assert_eq!(std::fs::read(&included).unwrap(), world.run(&["ssh-config"]).stdout);
    run("--uninstall", "as it was");
    assert!(!world.path(".ssh").exists() && !included.exists());

    std::fs::create_dir(world.path(".ssh")).unwrap();
    let own = "Host box\r\n  User me";
    std::fs::write(&config, own).unwrap();
    // The ssh of this world ends with 42 and says nothing of the Include, as one that reads another file.
    run("--install", "ssh does not go by it");
    assert!(std::fs::read_to_string(&config).unwrap().ends_with(own));
    run("--uninstall", "as it was");
    assert_eq!(std::fs::read_to_string(&config).unwrap(), own);
}

#[test]
fn an_ssh_configuration_that_cannot_be_edited_changes_nothing() {
    let world = World::new();
    std::fs::create_dir_all(world.path(".ssh/config")).unwrap();
    let output = world.run(&["ssh-config", "--install"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("is not a regular file"), "{}", said(&output));
    assert!(!world.path("state").exists(), "something was made");
}

/// `ssh-config --install` believes ssh, not itself.
#[test]
fn an_include_that_ssh_sees_is_not_warned_of() {
    let world = World::new();
    let ssh = format!("#!/bin/sh\nexec /usr/bin/ssh -F {} \"$@\"\n", world.path(".ssh/config").display());
    std::fs::write(world.path("bin/ssh"), ssh).unwrap();
    let output = world.run(&["ssh-config", "--install"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(
        !said(&output).contains("warning") && said(&output).contains("hint: ssh NAME.vm"),
        "{}",
        said(&output)
    );
}

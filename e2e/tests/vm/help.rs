//! What the help and the schemas promise is so: every example of every command is run, and every document of `--json` keeps
//! to its schema. A command that is added without an example, or with a `--json` that nobody describes, fails here.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use e2e::help::{self, Page};
use e2e::world::{SMALL, World, code, finish, wait};
use e2e::{EMPTY, KERNEL, TINY, isolate};

use crate::Body;
use crate::job::Mirror;

pub(crate) const TESTS: &[(&str, Body)] = &[
    ("help_examples_are_run", examples),
    ("help_json_keeps_to_its_schema", schemas),
    ("help_a_reader_that_leaves_is_no_error", readers),
];

/// The VMs that examples speak of.
const NAMES: &[&str] = &["box", "one", "two"];

/// How an example ends.
enum End {
    /// By itself, with this status.
    With(i32),
    /// Never: after a while it is interrupted, and takes that as it should.
    Interrupted,
    /// It is not run, and why.
    NotRun(&'static str),
}

/// What is so before an example and how it ends, where that is not: its VMs run, and the status is 0.
fn end(example: &str) -> End {
    match example {
        _ if example.contains("image build") => End::NotRun("it takes Debian's archive and minutes"),
        "banger vm logs -f box"
        | "banger daemon logs -f"
        | "banger vm console box"
        | "banger vm ping box" => End::Interrupted,
        // Each pulls from a mirror that says nothing.
        _ if example.contains("job attach") => End::Interrupted,
        "banger kernel pull debian-6.1" | "banger kernel pull --replace debian-6.1" => End::Interrupted,
        // It asks, and there is no terminal to ask on.
        "banger vm prune" => End::With(2),
        // The log has no such operation.
        _ if example.ends_with("| grep 1a2b3c4d") => End::With(1),
        _ => End::With(0),
    }
}

/// Brings what an example speaks of into the state that it is for.
fn before(world: &World, example: &str) -> anyhow::Result<()> {
    let words: Vec<&str> = example.split_whitespace().collect();
    // Another example's, on a port of the host that this one takes.
    if example.contains(" forward ") && world.vms()?.iter().any(|vm| vm == "web") {
        world.ok(&["vm", "delete", "-f", "web"])?;
    }
    if example.contains("kernel delete") {
        return world.delete_all();
    }
    if example.contains("daemon") {
        return world.ok(&["job", "list"]).map(drop);
    }
    let verb = words.iter().position(|word| *word == "vm").and_then(|at| words.get(at + 1)).copied();
    let named = |name: &str| words.iter().any(|word| *word == name || word.starts_with(&format!("{name}:")));
    for name in NAMES.iter().chain(&["big", "later"]).copied().filter(|name| named(name)) {
        let state =
            if world.vms()?.iter().any(|vm| vm == name) { world.vm_state(name)? } else { String::new() };
        if matches!(verb, Some("create" | "run")) {
            if !state.is_empty() {
                world.ok(&["vm", "delete", "-f", name])?;
            }
            continue;
        }
        match state.as_str() {
            "" => {
                world.ok(&["vm", "create", "--name", name])?;
                world.exec(name, &["mkdir", "-p", "/srv/app", "/var/log"])?;
            }
            "paused" => world.ok(&["vm", "resume", name]).map(drop)?,
            "running" => {}
            _ => world.ok(&["vm", "start", name]).map(drop)?,
        }
        if verb == Some("proxy") {
            serve(world, name)?;
        }
        match (verb, words.contains(&"-f")) {
            (Some("start" | "wait"), _) | (Some("delete"), false) => {
                world.ok(&["vm", "stop", name]).map(drop)?
            }
            (Some("resume"), _) => world.ok(&["vm", "pause", name]).map(drop)?,
            _ => {}
        }
    }
    Ok(())
}

/// Has something listen in a VM where an example asks it: port 80, unless it does already.
fn serve(world: &World, name: &str) -> anyhow::Result<()> {
    let serve = "mkdir -p /srv; netstat -ltn | grep -q ':80 ' || httpd -h /srv; echo served >/srv/index.html";
    world.exec(name, &["sh", "-c", serve]).map(drop)
}

/// Files and images that examples speak of; `tiny` gets stubs of the programs that they run in a guest.
fn set_up(world: &World) -> anyhow::Result<()> {
    let home = world.dir.join("home");
    std::fs::copy(world.disk_of(EMPTY)?, home.join("root.ext4"))?;
    let root = world.dir.join("tmp/examples.ext4");
    std::fs::copy(world.disk_of(TINY)?, &root)?;
    std::fs::write(home.join("stub"), "#!/bin/sh\nexit 0\n")?;
    let mut script = "mkdir /srv\nmkdir /var/log\n".to_owned();
    for program in ["bash", "make", "python3", "systemctl", "jq"] {
        script.push_str(&format!("write stub /bin/{program}\nset_inode_field /bin/{program} mode 0100755\n"));
    }
    std::fs::write(home.join("script"), script)?;
    let mut debugfs = Command::new(isolate::find("debugfs").context("debugfs is not installed")?);
    debugfs.args(["-w", "-f", "script"]).arg(&root).current_dir(&home);
    finish(debugfs, None)?.expect(0)?;
    let root = root.to_str().context("no text")?;
    world.ok(&["image", "register", "examples", root])?;
    world.ok(&["image", "register", "debian-bookworm", "./root.ext4"])?;
    let config = format!(
        "default_image_name = \"examples\"\ndefault_kernel_name = \"{KERNEL}\"\nnat = false\n\n\
         [vm_defaults]\nvcpu = 1\nmemory_mib = 256\n"
    );
    std::fs::write(world.dir.join("config.toml"), config)?;
    for dir in ["repo", "src", "config", ".config/fish"] {
        std::fs::create_dir_all(home.join(dir))?;
    }
    for file in ["repo/Makefile", "src/a", "config/a", "app.conf"] {
        std::fs::write(home.join(file), "test:\n\ttrue\n")?;
    }
    std::fs::write(home.join("app.env"), "# of an example\nMODE=test\n")?;
    for args in [&["init", "-q"][..], &["add", "Makefile"]] {
        isolate::run("git", &[&["-C", home.join("repo").to_str().context("no text")?], args].concat())?;
    }
    Ok(())
}

fn all_pages(world: &World) -> anyhow::Result<Vec<Page>> {
    help::pages(&|words: &[&str]| world.command(words))
}

fn examples(world: &mut World) -> anyhow::Result<()> {
    set_up(world)?;
    let mirror = Mirror::start()?;
    world.ok(&["daemon", "stop"])?;
    world.env = mirror.env()?;
    let mut all: Vec<String> = Vec::new();
    for page in all_pages(world)? {
        let examples = page.examples();
        ensure!(!examples.is_empty(), "'banger {} --help' has no example", page.name());
        // What needs an sshd is run where a guest has one.
        all.extend(examples.into_iter().filter(|example| !crate::ssh::runs(example)));
    }
    let mut seen = BTreeSet::new();
    all.retain(|example| seen.insert(example.clone()));
    // Nothing boots after the kernel is gone, and a pull is refused before.
    let phase = |example: &String| (example.contains("kernel pull"), example.contains("kernel delete"));
    all.sort_by_key(|example| match phase(example) {
        (false, false) => 0,
        (_, true) => 1,
        (true, false) => 2,
    });
    let mut failed = Vec::new();
    for example in &all {
        if let Err(error) = run_example(world, example) {
            failed.push(format!("the example '{example}': {error:#}"));
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    tear_down(world)
}

/// Takes away what [`set_up`] and the examples left in the store.
fn tear_down(world: &World) -> anyhow::Result<()> {
    world.delete_all()?;
    let list = world.ok(&["image", "list", "--json"])?.json()?;
    for image in list["images"].as_array().context("no images")? {
        let name = image["name"].as_str().context("no name")?;
        if ["examples", "debian-bookworm", "mine", "other"].contains(&name) {
            world.ok(&["image", "delete", name])?;
        }
    }
    world.put_kernels_back()?;
    for entry in std::fs::read_dir(world.dir.join("home"))? {
        let path = entry?.path();
        if path.is_dir() { std::fs::remove_dir_all(&path)? } else { std::fs::remove_file(&path)? }
    }
    for file in ["config.toml", "tmp/examples.ext4"] {
        std::fs::remove_file(world.dir.join(file))?;
    }
    Ok(())
}

fn run_example(world: &World, example: &str) -> anyhow::Result<()> {
    let end = end(example);
    if let End::NotRun(why) = end {
        testkit::not_run(&format!("help_examples_are_run, '{example}'"), why);
        return Ok(());
    }
    before(world, example)?;
    // The runner of this test ignores SIGINT, as every shell has what it starts in the background do.
    let mut command = Command::new("env");
    world.dress(&mut command);
    let path = format!("{}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", e2e::bin_dir().display());
    command.env("PATH", path).arg("--default-signal=INT");
    if example.contains(" -it ") {
        // In a terminal.
        command.args(["script", "-qec", example, "/dev/null"]);
    } else {
        command.args(["bash", "-o", "pipefail", "-c", example]);
    }
    match end {
        End::With(status) => finish(command, None)?.expect(status).map(drop),
        End::Interrupted => interrupted(command),
        End::NotRun(_) => Ok(()),
    }
}

/// Runs what does not end, and interrupts it as a terminal does: with all that it started.
fn interrupted(mut command: Command) -> anyhow::Result<()> {
    use std::os::unix::process::CommandExt;
    command.process_group(0).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    ensure!(wait_for(&mut child, Duration::from_secs(2))?.is_none(), "it ended by itself");
    let group = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process_group(group, rustix::process::Signal::INT)?;
    let status =
        wait(&mut child, Duration::from_secs(20))?.context("it did not end when it was interrupted")?;
    ensure!(code(status) == 130, "it ended with {status}");
    Ok(())
}

/// Waits for a child, and leaves it running.
fn wait_for(
    child: &mut std::process::Child,
    patience: Duration,
) -> anyhow::Result<Option<std::process::ExitStatus>> {
    let deadline = std::time::Instant::now() + patience;
    while std::time::Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(None)
}

/// Command lines that print a document, in an order in which each works, with the schema of it.
const DOCUMENTS: &[(&[&str], &str)] = &[
    (&["vm", "create", "--name", "first"], "vm-list"),
    (&["ps"], "vm-list"),
    (&["vm", "list"], "vm-list"),
    (&["vm", "show", "first"], "vm-show"),
    (&["vm", "health", "first"], "vm-health"),
    (&["vm", "ping", "-c", "1", "first"], "vm-ping"),
    (&["vm", "forward", "first", "0:80"], "vm-forward"),
    (&["vm", "ports", "first"], "vm-ports"),
    (&["vm", "pause", "first"], "vm-list"),
    (&["vm", "resume", "first"], "vm-list"),
    (&["vm", "set", "first", "--vcpu", "1", "--memory", "300MiB"], "vm-list"),
    (&["vm", "restart", "first"], "vm-list"),
    (&["vm", "kill", "first"], "vm-list"),
    (&["vm", "wait", "first"], "vm-wait"),
    (&["vm", "start", "first"], "vm-list"),
    (&["vm", "stop", "first"], "vm-list"),
    (&["vm", "prune", "--dry-run"], "vm-list"),
    (&["vm", "prune", "-f"], "deleted"),
    (&["vm", "delete", "-f", "nobody"], "deleted"),
    (&["image", "register", "mine", "./root.ext4"], "image-show"),
    (&["image", "list"], "image-list"),
    (&["image", "show", "mine"], "image-show"),
    (&["image", "delete", "mine"], "deleted"),
    (&["job", "list"], "job-list"),
    (&["job", "show", JOB], "job-show"),
    (&["kernel", "list", "--available"], "kernel-list"),
    (&["kernel", "show", KERNEL], "kernel-show"),
    (&["kernel", "delete", KERNEL], "deleted"),
    (&["daemon", "status"], "daemon-status"),
    (&["config", "show"], "config-show"),
    (&["doctor"], "doctor"),
    (&["version"], "version"),
];
/// Stands for the id of a job that failed.
const JOB: &str = "JOB";
/// What takes Debian's archive: its document is the one of `show`.
const NOT_RUN: &[&str] = &["image build", "kernel pull"];

fn schemas(world: &mut World) -> anyhow::Result<()> {
    set_up(world)?;
    let is_of =
        |line: &[&str], page: &Page| line.get(..page.words.len()).is_some_and(|words| words == page.words);
    for page in all_pages(world)?.iter().filter(|page| page.takes("--json")) {
        let name = page.name();
        let known = NOT_RUN.contains(&name.as_str()) || DOCUMENTS.iter().any(|(line, _)| is_of(line, page));
        ensure!(known, "nothing checks what 'banger {name} --json' prints: give it a line and a schema here");
        if NOT_RUN.contains(&name.as_str()) {
            let document = format!("help_json_keeps_to_its_schema, 'banger {name} --json'");
            testkit::not_run(&document, "it takes Debian's archive; it prints the document of 'show'");
        }
    }
    // Something that a job says of a failure.
    ensure!(world.run(&["vm", "stop", "nobody"])?.status == 1);
    world.ok(&["vm", "create", "--name", "still", "--no-start"])?;
    ensure!(world.run(&["vm", "stop", "still"])?.status == 1);
    for (line, schema) in DOCUMENTS {
        let failed = jobs(world, "failed")?.pop().context("no job failed")?;
        let mut line: Vec<&str> =
            line.iter().map(|word| if *word == JOB { &failed } else { *word }).collect();
        line.push("--json");
        let ran = world.run(&line)?;
        let fine = ran.status == 0 || ["doctor", "deleted"].contains(schema);
        ensure!(fine, "{line:?} ended with {}: {}", ran.status, ran.stderr);
        validate(&ran.json()?, schema).with_context(|| line.join(" "))?;
    }
    let described = DOCUMENTS.iter().map(|(_, schema)| format!("{schema}.json"));
    let described: BTreeSet<String> = described.collect();
    for entry in std::fs::read_dir(schema_dir())? {
        let name = entry?.file_name().into_string().unwrap_or_default();
        ensure!(described.contains(&name), "no document was compared with docs/schema/{name}");
    }
    tear_down(world)
}

/// Ids of the jobs in a state.
fn jobs(world: &World, state: &str) -> anyhow::Result<Vec<String>> {
    let list = world.ok(&["job", "list", "--json"])?.json()?;
    let jobs = list["jobs"].as_array().context("no jobs")?;
    let jobs = jobs.iter().filter(|job| job["state"] == state);
    Ok(jobs.filter_map(|job| job["id"].as_str()).map(str::to_owned).collect())
}

fn schema_dir() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/schema")
}

fn validate(document: &serde_json::Value, schema: &str) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(schema_dir().join(format!("{schema}.json")))?;
    let schema = jsonschema::validator_for(&serde_json::from_str(&text)?)?;
    if let Err(error) = schema.validate(document) {
        bail!("{error}: {document:#}");
    }
    Ok(())
}

/// `banger ... | head -0`, but for the wait until head has ended: the pipe is closed already.
fn readers(world: &mut World) -> anyhow::Result<()> {
    let mut lines: Vec<Vec<String>> = Vec::new();
    for page in all_pages(world)? {
        lines.push([&page.words[..], &["--help".to_owned()]].concat());
    }
    let mut line = vec!["vm", "create", "--name", "box", "--no-start"];
    line.extend(SMALL);
    world.ok(&line)?;
    let looks = ["show", "list", "ps", "status", "doctor", "version"];
    for (line, _) in DOCUMENTS.iter().filter(|(line, _)| line.iter().any(|word| looks.contains(word))) {
        let known = line.iter().map(|word| match *word {
            "first" => "box",
            "mine" => TINY,
            other => other,
        });
        let line: Vec<String> = known.map(str::to_owned).collect();
        if !line.contains(&JOB.to_owned()) {
            lines.push([&line[..], &["--json".to_owned()]].concat());
            lines.push(line);
        }
    }
    for line in
        [&["config", "path"][..], &["completion", "bash"], &["daemon", "logs"], &["vm", "prune", "--dry-run"]]
    {
        lines.push(line.iter().map(|word| (*word).to_owned()).collect());
    }
    for line in &lines {
        let words: Vec<&str> = line.iter().map(String::as_str).collect();
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let child = world.command(&words).stdout(writer).stderr(Stdio::piped()).spawn()?;
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // As what SIGPIPE ended; clap's help says that it was printed.
        ensure!([0, 141].contains(&code(output.status)) && said.is_empty(), "{words:?}: {output:?}");
    }
    Ok(())
}

//! `vm cp`: what arrives is what was sent, both ways, and a hostile guest writes nothing but the copy.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, ensure};
use e2e::isolate;
use e2e::world::{World, code, wait};

use crate::Body;

pub(crate) const TESTS: &[(&str, Body)] = &[
    ("copy_keeps_trees_both_ways", trees),
    ("copy_carries_64_mib_and_says_what_fails", bytes),
    ("copy_writes_nothing_a_hostile_guest_wants", hostile),
];

/// Of each entry: kind and mode, links, size, blocks, time, name, where a link leads. GNU find runs in the namespace of the test
/// and prints names as bytes; directories' sizes are the file system's matter.
const PICTURE: &str = r#"cd "$1" && find . \( -type d -printf '%y %m %T@ %p\n' \) -o -printf '%y %m %n %s %T@ %p %l\n' | sort
    cd "$1" && find . -type f -exec sha256sum {} + | sort"#;

fn picture(dir: &Path) -> anyhow::Result<Vec<u8>> {
    let script = ["-c", PICTURE, "sh", dir.to_str().context("a path of the test")?];
    let output = std::process::Command::new("sh").args(script).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

fn sample(top: &Path) -> anyhow::Result<()> {
    let script = r#"set -e; umask 022; mkdir -p "$1/a/empty" "$1/sub"; cd "$1"
        echo content >a/file; ln a/file sub/second; ln -s /nowhere/at/all link; ln -s a dir-link
        echo x >"$(printf 'b\377d\nname')"; mkdir -p $(printf '%0200d' 7)/$(printf '%0200d' 8)
        echo deep >$(printf '%0200d' 7)/$(printf '%0200d' 8)/file
        chmod 640 a/file; chmod 1777 sub; chmod 500 a/empty"#;
    isolate::run("sh", &["-c", script, "sh", top.to_str().context("a path of the test")?])?;
    let holes = fs::File::create(top.join("holes"))?;
    holes.set_len(128 << 20)?;
    holes.write_all_at(b"middle", 100 << 20)?;
    holes.set_modified(SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789))?;
    fs::File::open(top.join("a"))?.set_modified(SystemTime::UNIX_EPOCH - Duration::new(86_400, 0))?;
    Ok(())
}

/// The leak check counts what is left in the home too.
fn clear(home: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(home)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn trees(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("box")?;
    let home = world.dir.join("home");
    let tree = home.join("tree");
    sample(&tree)?;
    let expected = picture(&tree)?;
    world.ok(&["vm", "cp", "./tree", "box:/root/there"])?;
    world.ok(&["vm", "cp", "box:there", "back"])?;
    ensure!(picture(&home.join("back"))? == expected, "the tree differs after its journey");
    let blocks = fs::metadata(home.join("back/holes"))?.blocks();
    ensure!(blocks * 512 < 1 << 20, "the holes take {blocks} blocks");
    // What the guest sees of it: owner root, and the rest as it was.
    let script = "cd /root/there && stat -c '%u:%g %a %h' a/file && readlink link && du -m holes | cut -f1";
    let seen = world.exec("box", &["sh", "-c", script])?.text();
    ensure!(seen == "0:0 640 2\n/nowhere/at/all\n1" || seen == "0:0 640 2\n/nowhere/at/all\n0", "{seen}");
    // Into a directory that is there; its content only; and one file to a new name and over it.
    world.ok(&["vm", "cp", "box:there", "back"])?;
    ensure!(picture(&home.join("back/there"))? == expected, "the tree differs inside another");
    fs::create_dir(home.join("content"))?;
    world.ok(&["vm", "cp", "box:/root/there/.", "content"])?;
    ensure!(home.join("content/a/file").is_file());
    for text in ["one", "two"] {
        fs::write(home.join("f"), text)?;
        world.ok(&["vm", "cp", "f", "box:/tmp/g"])?;
        ensure!(world.exec("box", &["cat", "/tmp/g"])?.text() == text);
    }
    // Owners, where it is asked for: the test is root.
    chown(home.join("f"), Some(1234), Some(4321))?;
    world.ok(&["vm", "cp", "-a", "f", "box:/tmp/owned"])?;
    ensure!(world.exec("box", &["stat", "-c", "%u:%g", "/tmp/owned"])?.text() == "1234:4321");
    // Archives in the place of one side, read and written by others' tar too; and a link that is followed.
    fs::write(home.join("archive"), world.ok(&["vm", "cp", "box:there", "-"])?.stdout)?;
    let work = home.to_str().context("a path of the test")?;
    isolate::run("tar", &["-x", "-p", "-C", work, "-f", &format!("{work}/archive")])?;
    ensure!(picture(&home.join("there"))? == expected, "GNU tar reads another tree");
    isolate::run("tar", &["-c", "-C", &format!("{work}/tree"), "-f", &format!("{work}/archive"), "a"])?;
    let archive = fs::read(home.join("archive"))?;
    let ran = world.run_with(&["vm", "cp", "-", "box:/srv/unpacked"], archive)?.expect(0)?;
    ensure!(ran.stderr.is_empty(), "{}", ran.stderr);
    ensure!(world.exec("box", &["cat", "/srv/unpacked/a/file"])?.text() == "content");
    symlink("f", home.join("to-f"))?;
    world.ok(&["vm", "cp", "-L", "to-f", "box:/tmp/followed"])?;
    ensure!(world.exec("box", &["cat", "/tmp/followed"])?.text() == "two");
    clear(&home)
}

fn bytes(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("box")?;
    let home = world.dir.join("home");
    let script = "head -c 67108864 /dev/urandom >big; mkdir many; for n in 1 2 3 4; do head -c 4000000 big >many/$n; done";
    isolate::run("sh", &["-c", &format!("cd {} && {script}", home.display())])?;
    let mounts =
        "mkdir /big /full && mount -t tmpfs -o size=70m none /big && mount -t tmpfs -o size=10m none /full";
    world.exec("box", &["sh", "-c", mounts])?;
    world.ok(&["vm", "cp", "big", "box:/big/"])?;
    world.ok(&["vm", "cp", "box:/big/big", "again"])?;
    ensure!(fs::read(home.join("big"))? == fs::read(home.join("again"))?, "64 MiB differ");
    // A daemon that is killed in the middle.
    let mut child = world.command(&["vm", "cp", "box:/big/big", "third"]).spawn()?;
    let third = home.join("third");
    // Looked at more often than `until` does: the whole takes a quarter of a second where it is quick.
    let deadline = Instant::now() + Duration::from_secs(60);
    while !third.metadata().is_ok_and(|meta| meta.len() > 1 << 20) {
        ensure!(Instant::now() < deadline, "no part of the file arrives");
        std::thread::sleep(Duration::from_millis(1));
    }
    world.kill_daemon()?;
    let arrived = third.metadata()?.len();
    ensure!(arrived < 64 << 20, "the copy was over before the daemon was killed");
    let status = wait(&mut child, Duration::from_secs(60))?.context("the copy hangs")?;
    ensure!(code(status) == 0, "{status}");
    ensure!(fs::read(home.join("big"))? == fs::read(third)?, "the copy over two daemons differs");
    // A full disk: what arrived is told, and the next copy works.
    let ran = world.run(&["vm", "cp", "many", "box:/full"])?.expect(1)?;
    ensure!(ran.stderr.contains("No space left") && ran.stderr.contains("3 entries and"), "{}", ran.stderr);
    for (args, status, why) in [
        (["box:/absent", "."], 1, "No such file"),
        (["big", "box:/absent/x"], 1, "the directory /absent does not exist"),
        (["many", "box:/big/big"], 1, "/big/big is a file"),
        (["absent", "box:/root"], 1, "No such file"),
        (["big", "nobody:/root"], 1, "nobody"),
    ] {
        let ran = world.run(&["vm", "cp", args[0], args[1]])?.expect(status)?;
        ensure!(ran.stderr.contains(why), "{args:?}: {}", ran.stderr);
        ensure!(ran.stderr.matches("error:").count() == 1, "{args:?}: {}", ran.stderr);
    }
    world.ok(&["vm", "stop", "box"])?;
    let ran = world.run(&["vm", "cp", "big", "box:/root/x"])?.expect(1)?;
    ensure!(ran.stderr.contains("stopped"), "{}", ran.stderr);
    clear(&home)
}

fn hostile(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("box")?;
    let home = world.dir.join("home");
    fs::write(home.join("kept"), "mine")?;
    let outside = world.dir.join("tmp/outside");
    fs::create_dir(&outside)?;
    fs::write(outside.join("passwd"), "mine")?;
    // The guest is root of its tree: links that lead out, privileges, devices, a socket's like, and depth.
    let up = "../".repeat(40);
    let script = format!(
        r#"set -e; mkdir /root/x; cd /root/x; ln -s {up}{} out; ln -s / root; cp /bin/sh suid 2>/dev/null || echo >suid
        chmod 6755 suid; mknod null c 1 3; mkfifo pipe; ln -s ../kept kept; echo evil >file
        ln -s /root/x/.. /root/l"#,
        outside.display()
    );
    world.exec("box", &["sh", "-c", &script])?;
    let ran = world.ok(&["vm", "cp", "box:x", "."])?;
    ensure!(ran.stderr.contains("2 entries were left out"), "{}", ran.stderr);
    let mode = fs::metadata(home.join("x/suid"))?.permissions().mode();
    ensure!(mode & 0o7000 == 0, "a file with mode {mode:o} came out");
    let leads_out = |link: &str, to: &Path| fs::canonicalize(home.join(link)).is_ok_and(|path| path == to);
    ensure!(
        leads_out("x/out", &outside) && leads_out("x/kept", &home.join("kept")),
        "a link leads elsewhere"
    );
    // Another copy finds the links of the first in its way: a file and a directory in their places, nothing through them.
    let again = |script: &str| {
        world.exec("box", &["sh", "-c", &format!("rm -r /root/x; mkdir /root/x; cd /root/x; {script}")])?;
        world.run(&["vm", "cp", "box:x", "."])
    };
    again("echo evil >kept")?.expect(0)?;
    ensure!(fs::symlink_metadata(home.join("x/kept"))?.is_file(), "the file is not in the link's place");
    let ran = again("mkdir out; echo evil >out/passwd")?.expect(1)?;
    ensure!(ran.stderr.contains("a symlink is in its place"), "{}", ran.stderr);
    ensure!(fs::read_to_string(home.join("kept"))? == "mine", "the copy went through a link");
    ensure!(
        fs::read_to_string(outside.join("passwd"))? == "mine",
        "the copy went through a link that leads out"
    );
    fs::remove_dir_all(&outside)?;
    let deep = "cd /tmp; n=0; while [ $n -lt 300 ]; do mkdir d; cd d; n=$((n+1)); done";
    world.exec("box", &["sh", "-c", deep])?;
    let ran = world.run(&["vm", "cp", "box:/tmp/d", "."])?.expect(1)?;
    ensure!(ran.stderr.contains("deeper than"), "{}", ran.stderr);
    clear(&home)
}

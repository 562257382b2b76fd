//! The kernel and the images that tests boot, made once and kept outside the repository by content.
//!
//! `~/.cache/banger-test/<key>/state` is a state directory as `banger` itself makes it: the kernel pulled, the images
//! built and registered, no VM. Each test gets a copy whose large files are hard links: they are never changed once they have
//! a digest. The key is a digest of the code that makes them, so a change of it makes new ones.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};

use crate::{DEBIAN, DEGRADED_VM, EMPTY, FAILING_UNIT, KERNEL, NO_UDEV, TINY, isolate};

/// What the content depends on, relative to the repository.
const SOURCES: &[&str] = &[
    "crates/banger-image",
    "crates/banger-daemon/src/store",
    "crates/banger-daemon/src/model.rs",
    "crates/banger-proto/src/catalog.rs",
    "e2e/src/cache.rs",
    "e2e/src/lib.rs",
];

/// Digits of a template's name. Other directories beside the templates are left alone.
const KEY_DIGITS: usize = 16;

/// Where everything is cached.
pub fn root() -> anyhow::Result<PathBuf> {
    if let Some(dir) = std::env::var_os("BANGER_TEST_CACHE") {
        return Ok(PathBuf::from(dir));
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    Ok(cache.or(home).context("HOME is not set")?.join("banger-test"))
}

/// The finished template, or why there is none.
pub fn template() -> anyhow::Result<PathBuf> {
    let dir = root()?.join(key()?);
    if !dir.join("complete").is_file() {
        bail!("kernel and images for the tests were not made (`make test` makes them)");
    }
    Ok(dir.join("state"))
}

/// Makes the template where it is missing. Says what it does.
pub fn make() -> anyhow::Result<PathBuf> {
    if let Ok(dir) = template() {
        return Ok(dir);
    }
    let root = root()?;
    fs::create_dir_all(&root).with_context(|| format!("making {}", root.display()))?;
    let lock = fs::File::create(root.join("lock")).context("making the lock")?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).context("waiting for the lock")?;
    if let Ok(dir) = template() {
        return Ok(dir);
    }
    let dir = root.join(key()?);
    if dir.exists() {
        fs::remove_dir_all(&dir).context("removing what an interrupted run left")?;
    }
    fs::create_dir_all(dir.join("state"))?;
    let result = fill(&dir);
    let stopped = banger(&dir, &["daemon", "stop"]);
    result?;
    stopped?;
    fs::write(dir.join("complete"), "")?;
    prune(&root, &dir)?;
    template()
}

fn fill(dir: &Path) -> anyhow::Result<()> {
    banger(dir, &["kernel", "pull", KERNEL])?;
    banger(dir, &["image", "build", DEBIAN])?;
    let ext4 = dir.join("synthetic.ext4");
    without_udev(&only_image(dir)?, &ext4, dir)?;
    register(dir, NO_UDEV, &ext4)?;
    for (name, make) in [(TINY, tiny as fn(&Path) -> anyhow::Result<()>), (EMPTY, |_| Ok(()))] {
        let root = dir.join(name);
        fs::create_dir_all(&root)?;
        make(&root)?;
        let file = fs::File::create(&ext4)?;
        file.set_len(64 << 20)?;
        let mut mkfs = Command::new(isolate::find("mke2fs").context("mke2fs is not installed")?);
        mkfs.args(["-q", "-t", "ext4", "-F", "-E", "root_owner=0:0", "-d"]).arg(&root).arg(&ext4);
        let status = mkfs.status().context("running mke2fs")?;
        if !status.success() {
            bail!("mke2fs ended with {status}");
        }
        register(dir, name, &ext4)?;
        fs::remove_dir_all(&root)?;
    }
    Ok(())
}

/// Gives a file system its name in the store, which copies it; the file goes.
fn register(dir: &Path, name: &str, ext4: &Path) -> anyhow::Result<()> {
    let path = ext4.to_str().context("the cache's path is no text")?;
    banger(dir, &["image", "register", name, path])?;
    fs::remove_file(ext4).context("removing the file system that is in the store now")
}

/// The file system of the one image that is there.
fn only_image(dir: &Path) -> anyhow::Result<PathBuf> {
    let images: Vec<_> = fs::read_dir(dir.join("state/images"))?.collect::<Result<_, _>>()?;
    match &images[..] {
        [image] => Ok(image.path().join("rootfs.ext4")),
        _ => bail!("{} images instead of one", images.len()),
    }
}

/// Copies Debian's file system to `ext4`, takes away what its package udev brought, and adds a unit that fails in a VM of
/// one name. With debugfs: no mount, no root, and no second run of mmdebstrap.
fn without_udev(debian: &Path, ext4: &Path, work: &Path) -> anyhow::Result<()> {
    let mut copy = Command::new("cp");
    let status = copy.arg("--sparse=always").arg(debian).arg(ext4).status().context("running cp")?;
    if !status.success() {
        bail!("copying {} failed", debian.display());
    }
    // An image in the store is read-only, its copy is to be changed.
    fs::set_permissions(ext4, PermissionsExt::from_mode(0o600))?;
    let list = debugfs(ext4, "cat /var/lib/dpkg/info/udev.list")?;
    if !list.lines().any(|path| path == "/lib/systemd/systemd-udevd") {
        bail!("the package udev has no udevd:\n{list}");
    }
    // What has something below it is a directory, or a link to one: /lib.
    let is_file = |path: &&str| !list.lines().any(|other| other.starts_with(&format!("{path}/")));
    let files = list.lines().filter(|path| *path != "/.").filter(is_file);
    let mut commands: String = files.map(|path| format!("rm {path}\n")).collect();
    let unit = work.join(FAILING_UNIT);
    fs::write(
        &unit,
        format!("[Unit]\nConditionHost={DEGRADED_VM}\n[Service]\nType=oneshot\nExecStart=/bin/false\n"),
    )?;
    let installed = format!("/etc/systemd/system/{FAILING_UNIT}");
    commands.push_str(&format!("write {} {installed}\n", unit.display()));
    commands.push_str("cd /etc/systemd/system/multi-user.target.wants\n");
    commands.push_str(&format!("symlink {FAILING_UNIT} {installed}\n"));
    let script = work.join("debugfs-commands");
    fs::write(&script, commands)?;
    let mut change = debugfs_command()?;
    let output = change.arg("-w").arg("-f").arg(&script).arg(ext4).output().context("running debugfs")?;
    if !output.status.success() {
        bail!("debugfs ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    fs::remove_file(&script)?;
    fs::remove_file(&unit)?;
    let left = debugfs(ext4, "ls -p /lib/systemd")?;
    let wanted = debugfs(ext4, &format!("cat {installed}"))?;
    if left.contains("udevd") || !wanted.contains("/bin/false") {
        bail!("debugfs did not change {}", ext4.display());
    }
    Ok(())
}

fn debugfs_command() -> anyhow::Result<Command> {
    Ok(Command::new(isolate::find("debugfs").context("debugfs is not installed")?))
}

/// What one request of debugfs prints. It says by its output alone whether it could do it.
fn debugfs(ext4: &Path, request: &str) -> anyhow::Result<String> {
    let output = debugfs_command()?.args(["-R", request]).arg(ext4).output().context("running debugfs")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Debian's static busybox with a link for each of its applets, and nothing that could be an init.
fn tiny(root: &Path) -> anyhow::Result<()> {
    let work = tempfile::tempdir().context("making a directory")?;
    // As root, apt gives up its rights to download; the directory is then not its to write to, and it says so.
    let status = Command::new("apt-get")
        .args(["-qq", "-o", "APT::Sandbox::User=root", "download", "busybox-static"])
        .current_dir(work.path())
        .stdin(Stdio::null())
        .status()
        .context("running apt-get")?;
    if !status.success() {
        bail!("apt-get download busybox-static ended with {status}");
    }
    let deb = fs::read_dir(work.path())?.next().context("apt-get downloaded nothing")??.path();
    let unpacked = work.path().join("unpacked");
    let status =
        Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&unpacked).status().context("running dpkg-deb")?;
    if !status.success() {
        bail!("dpkg-deb ended with {status}");
    }
    for dir in [
        "bin", "dev", "etc", "mnt", "proc", "root", "run", "sbin", "sys", "tmp", "usr/bin", "usr/sbin", "var",
    ] {
        fs::create_dir_all(root.join(dir))?;
    }
    let found = ["bin/busybox", "usr/bin/busybox"]
        .map(|path| unpacked.join(path))
        .into_iter()
        .find(|path| path.is_file());
    let busybox = root.join("bin/busybox");
    fs::copy(found.context("the package has no busybox")?, &busybox)?;
    let applets = Command::new(&busybox).arg("--list").output().context("running busybox")?;
    for applet in String::from_utf8_lossy(&applets.stdout).lines() {
        // An init would take pid 1 over; these tests are about the agent staying there.
        if !["init", "linuxrc", "busybox", ""].contains(&applet) {
            symlink("/bin/busybox", root.join("bin").join(applet))?;
        }
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
    )?;
    fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    fs::write(root.join("etc/hosts"), "127.0.0.1 localhost\n")?;
    fs::write(root.join("etc/os-release"), "ID=banger-test\nNAME=\"synthetic busybox root\"\n")?;
    Ok(())
}

/// Runs `banger` with the template's directories, its messages to our stderr.
fn banger(dir: &Path, args: &[&str]) -> anyhow::Result<()> {
    eprintln!("+ banger {}", args.join(" "));
    let runtime = std::env::temp_dir().join(format!("banger-prepare-{}", std::process::id()));
    let status = Command::new(crate::bin_dir().join("banger"))
        .args(args)
        .env("BANGER_RUNTIME_DIR", &runtime)
        .env("BANGER_STATE_DIR", dir.join("state"))
        .env("BANGER_CACHE_DIR", dir.join("cache"))
        .env("BANGER_CONFIG", dir.join("none.toml"))
        .env("BANGER_DAEMON", crate::bin_dir().join("bangerd"))
        .env("BANGER_AGENT", crate::agent())
        .stdin(Stdio::null())
        .status()
        .context("running banger")?;
    if args == ["daemon", "stop"] {
        // Made by the daemon, and ours alone: the name has our pid. It may be gone already.
        let _ = fs::remove_dir_all(&runtime);
    }
    if !status.success() {
        bail!("banger {} ended with {status}", args.join(" "));
    }
    Ok(())
}

/// Keeps this template and the one before it.
fn prune(root: &Path, keep: &Path) -> anyhow::Result<()> {
    let mut others = Vec::new();
    for entry in fs::read_dir(root)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        let is_template = name.len() == KEY_DIGITS && name.iter().all(u8::is_ascii_hexdigit);
        if path.is_dir() && path != keep && is_template {
            others.push((fs::metadata(&path)?.modified()?, path));
        }
    }
    others.sort();
    others.pop();
    for (_, path) in others {
        fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(())
}

/// A digest of what makes the content.
fn key() -> anyhow::Result<String> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut hasher = Sha256::new();
    for source in SOURCES {
        hash(&repository.join(source), &mut hasher)?;
    }
    let digest = hasher.finalize();
    Ok(digest.iter().take(KEY_DIGITS / 2).map(|byte| format!("{byte:02x}")).collect())
}

fn hash(path: &Path, hasher: &mut Sha256) -> anyhow::Result<()> {
    if path.is_dir() {
        let mut entries: Vec<PathBuf> =
            fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
        entries.sort();
        for entry in entries {
            hash(&entry, hasher)?;
        }
    } else if path.is_file() {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        hasher.write_all(name.as_bytes())?;
        hasher.write_all(&fs::read(path)?)?;
    }
    Ok(())
}

/// Copies a state directory: files above 1 MiB below `images` and `kernels` become hard links where that is possible.
pub fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    for entry in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let meta = entry.metadata()?;
        if meta.is_dir() {
            copy(&source, &target)?;
        } else if meta.is_file() {
            let content = ["images", "kernels"].iter().any(|part| source.iter().any(|name| name == *part));
            if !(content && meta.len() > 1 << 20 && fs::hard_link(&source, &target).is_ok()) {
                let status = Command::new("cp")
                    .args(["--sparse=always", "--preserve=mode"])
                    .arg(&source)
                    .arg(&target)
                    .status()?;
                if !status.success() {
                    bail!("copying {} failed", source.display());
                }
            }
        }
    }
    Ok(())
}

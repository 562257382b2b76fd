//! The synthetic roots that tests boot: made of Debian's packages, and like no root of any distribution.
//!
//! What a test needs of a root that the registries do not have is built here, small, and called synthetic: a busybox alone,
//! busybox's init, sysvinit, and OpenRC started by busybox's init as Alpine starts it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use banger_image::{Silent, Store};
use banger_proto::catalog::{ImageRecipe, UnpackMode};

use crate::{BUSYBOX_INIT, DEGRADED_VM, EMPTY, FAILING_UNIT, OPEN_RC, SYSVINIT, TINY, isolate};

/// A root that is made.
#[derive(Debug)]
pub struct Synthetic {
    /// Its image's name.
    pub name: &'static str,
    make: Make,
}

#[derive(Debug)]
enum Make {
    /// A directory's content.
    Directory(fn(&Path) -> anyhow::Result<()>),
    /// Debian's packages beyond `minbase`, and what is changed in the root then: shell, with the root as `$1`.
    Packages(&'static [&'static str], &'static str),
}

/// All but the one that is a change of Debian's image (see [`without_udev`]).
pub const SYNTHETIC: &[Synthetic] = &[
    Synthetic { name: TINY, make: Make::Directory(tiny) },
    Synthetic { name: EMPTY, make: Make::Directory(|_| Ok(())) },
    Synthetic { name: BUSYBOX_INIT, make: Make::Directory(busybox_init) },
    Synthetic {
        name: SYSVINIT,
        make: Make::Packages(&["htop", "sysv-rc", "sysvinit-core", "tmux", "vim-tiny"], SYSVINIT_CHANGES),
    },
    Synthetic { name: OPEN_RC, make: Make::Packages(&["busybox-static", "openrc"], OPEN_RC_CHANGES) },
];

/// The first thing that init does is to write down which modules there are. Nobody logs in on a console.
const SYSVINIT_CHANGES: &str = r#"set -e
    sed -i -e '/getty/d' -e '1i m0::sysinit:/bin/sh -c "cat /proc/modules >/run/modules-at-init"' "$1"/etc/inittab
    ! test -e "$1"/sbin/modprobe"#;

/// Run levels and services as Alpine has them, but for those that a VM has no use for; one service is slow.
const OPEN_RC_CHANGES: &str = r#"set -e
    for applet in init poweroff reboot halt; do ln -s /bin/busybox "$1"/sbin/$applet; done
    cat >"$1"/etc/inittab <<'END'
::sysinit:/sbin/openrc sysinit
::sysinit:/sbin/openrc boot
::wait:/sbin/openrc default
::ctrlaltdel:/sbin/reboot
::shutdown:/sbin/openrc shutdown
END
    cat >"$1"/etc/init.d/slow <<'END'
#!/sbin/openrc-run
start() {
    ebegin "Starting what takes its time"
    sleep 3
    : >/run/slow-is-started
    eend 0
}
END
    cat >"$1"/etc/init.d/killprocs <<'END'
#!/sbin/openrc-run
start() {
    ebegin "Ending what runs"
    kill_all 15
    sleep 2
    kill_all 9
    eend 0
}
END
    cat >"$1"/etc/init.d/mount-ro <<'END'
#!/sbin/openrc-run
depend() {
    after killprocs
}
start() {
    ebegin "Making the root read-only"
    mount -n -o remount,ro /
    eend $?
}
END
    chmod 755 "$1"/etc/init.d/slow "$1"/etc/init.d/killprocs "$1"/etc/init.d/mount-ro
    ln -s /etc/init.d/slow "$1"/etc/runlevels/default/slow
    for service in killprocs mount-ro; do ln -s /etc/init.d/$service "$1"/etc/runlevels/shutdown/$service; done"#;

impl Synthetic {
    /// Makes the file system `ext4`; `work` is a directory for what is needed meanwhile.
    pub fn make(&self, ext4: &Path, work: &Path) -> anyhow::Result<()> {
        let root = work.join(self.name);
        fs::create_dir_all(&root)?;
        match self.make {
            Make::Directory(fill) => {
                fill(&root)?;
                from_directory(&root, ext4)?;
            }
            Make::Packages(packages, changes) => from_packages(self.name, packages, changes, &root, ext4)?,
        }
        fs::remove_dir_all(&root).with_context(|| format!("removing {}", root.display()))
    }
}

fn from_directory(root: &Path, ext4: &Path) -> anyhow::Result<()> {
    fs::File::create(ext4)?.set_len(64 << 20)?;
    let mut mkfs = Command::new(isolate::find("mke2fs").context("mke2fs is not installed")?);
    mkfs.args(["-q", "-t", "ext4", "-F", "-E", "root_owner=0:0", "-d"]).arg(root).arg(ext4);
    let status = mkfs.status().context("running mke2fs")?;
    if !status.success() {
        bail!("mke2fs ended with {status}");
    }
    Ok(())
}

/// As `banger image build` makes its images: mmdebstrap's archive becomes a file system without being unpacked.
fn from_packages(
    name: &'static str,
    packages: &'static [&'static str],
    changes: &str,
    work: &Path,
    ext4: &Path,
) -> anyhow::Result<()> {
    let recipe = ImageRecipe { name, description: name, suite: "bookworm", packages };
    let mode = if rustix::process::geteuid().is_root() { UnpackMode::Root } else { UnpackMode::Unshare };
    let mut mmdebstrap = Command::new(isolate::find("mmdebstrap").context("mmdebstrap is not installed")?);
    mmdebstrap.arg(format!("--customize-hook={changes}")).args(recipe.mmdebstrap_args(mode));
    let mut child = mmdebstrap
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting mmdebstrap")?;
    let archive = child.stdout.take().context("mmdebstrap has no output")?;
    let complete = || Ok(child.wait()?.success());
    let store = Store::open(work)?;
    let image =
        banger_image::ext4::import_tar_confirmed(&store, archive, complete, &recipe.source(), &Silent)?;
    fs::rename(image.path(), ext4).context("taking the file system out of its store")?;
    fs::set_permissions(ext4, PermissionsExt::from_mode(0o600))?;
    Ok(())
}

/// Copies Debian's file system to `ext4`, takes away what its package udev brought, and adds a unit that fails in a VM of
/// one name. With debugfs: no mount, no root, and no second run of mmdebstrap.
pub fn without_udev(debian: &Path, ext4: &Path, work: &Path) -> anyhow::Result<()> {
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
    // Where the kernel looks for it.
    symlink("/bin/busybox", root.join("sbin/modprobe"))?;
    fs::write(root.join("etc/os-release"), "ID=banger-test\nNAME=\"synthetic busybox root\"\n")?;
    Ok(())
}

/// The same with busybox's init, and what its own documentation gives as an example (its examples/inittab).
fn busybox_init(root: &Path) -> anyhow::Result<()> {
    tiny(root)?;
    symlink("/bin/busybox", root.join("sbin/init"))?;
    fs::write(
        root.join("etc/inittab"),
        "::sysinit:/bin/sh /etc/rcS\n::ctrlaltdel:/sbin/reboot\n::shutdown:/bin/umount -a -r\n",
    )?;
    fs::write(root.join("etc/rcS"), "echo started >/run/started\n").context("writing etc/rcS")
}

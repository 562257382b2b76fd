//! The kernel and the images that tests boot, made once and kept outside the repository by content.
//!
//! `~/.cache/banger-test/<key>/state` is a state directory as `banger` itself makes it: the kernel pulled, the images
//! built and registered, no VM. Each test gets a copy whose large files are hard links: they are never changed once they have
//! a digest. The key is a digest of the code that makes them, so a change of it makes new ones.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};

use crate::{DEBIAN, KERNEL, NO_UDEV, roots};

/// What the content depends on, relative to the repository.
const SOURCES: &[&str] = &[
    "crates/banger-image",
    "crates/banger-daemon/src/store",
    "crates/banger-daemon/src/model.rs",
    "crates/banger-proto/src/catalog.rs",
    "e2e/src/cache.rs",
    "e2e/src/roots.rs",
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
    roots::without_udev(&only_image(dir)?, &ext4, dir)?;
    register(dir, NO_UDEV, &ext4)?;
    for root in roots::SYNTHETIC {
        eprintln!("+ synthetic root {}", root.name);
        root.make(&ext4, dir)?;
        register(dir, root.name, &ext4)?;
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

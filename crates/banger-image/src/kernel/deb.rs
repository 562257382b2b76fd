//! A package's files, without ever unpacking it: its archive is read through dpkg-deb, by the importer's reader.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::Stdio;

use banger_sys::command::{CommandError, Program, last_lines};

use super::{PullError, io_error, make_dir};
use crate::Progress;
use crate::ext4::spool::{Spool, Spooled};
use crate::ext4::tree::{Kind, NodeId, ROOT, Tree};
use crate::ext4::{Limits, create, read_archive};
use crate::store::is_file_name;

/// The kernel and the modules of a package, through dpkg-deb's output; everything else is passed over.
pub(super) fn read_package(
    dpkg_deb: &Program,
    deb: &Path,
    package: &str,
    spool: &mut Spool,
    scratch: &Path,
    progress: &dyn Progress,
) -> Result<Tree, PullError> {
    let wanted = |path: &[u8]| {
        let path = path.strip_prefix(b"./").unwrap_or(path);
        ["boot/vmlinuz-", "lib/modules/", "usr/lib/modules/"]
            .iter()
            .any(|start| path.starts_with(start.as_bytes()))
    };
    let program = dpkg_deb.clone().arg("--fsys-tarfile").arg(deb);
    let failed = |source| CommandError::Io { program: program.path().to_owned(), source };
    let said = scratch.join("dpkg-deb.stderr");
    let stderr = File::create(&said).map_err(io_error("make", &said))?;
    let mut child = program.to_command().stdout(Stdio::piped()).stderr(stderr).spawn().map_err(failed)?;
    let stdout = child.stdout.take();
    let stdout: &mut dyn Read =
        &mut stdout.map_or(Box::new(io::empty()) as Box<dyn Read>, |out| Box::new(out));
    let tree = read_archive(stdout, spool, &Limits::PACKAGE, progress, wanted);
    if tree.is_err() {
        // Its output is no longer read, so it would wait for ever; it may have ended just now.
        let _ = child.kill();
    }
    let status = child.wait().map_err(failed)?;
    match tree {
        // A reader sees a failed dpkg-deb as an archive that is cut short; what it said is the better reason.
        Ok(tree) if status.success() => Ok(tree),
        Err(error) if status.success() || status.code().is_none() => match error {
            source if source.is_cancelled() => Err(PullError::Cancelled),
            source => Err(PullError::Unpack { package: package.to_owned(), source }),
        },
        Ok(_) | Err(_) => {
            let stderr = fs::read_to_string(&said).unwrap_or_default();
            let stderr = last_lines(&stderr, 5);
            Err(CommandError::Failed { program: program.path().to_owned(), status, stderr }.into())
        }
    }
}

/// The only kernel below /boot, and its release.
pub(super) fn kernel_image(tree: &Tree) -> Result<(String, NodeId), String> {
    let boot = tree.find(b"boot").ok_or("it has no /boot")?;
    let mut images = tree.children(boot).filter_map(|(name, id)| Some((name.strip_prefix(b"vmlinuz-")?, id)));
    let (Some((release, id)), None) = (images.next(), images.next()) else {
        return Err("it has not exactly one /boot/vmlinuz-*".to_owned());
    };
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"._+~-".contains(byte);
    let release = std::str::from_utf8(release).ok().filter(|text| text.bytes().all(|byte| allowed(&byte)));
    match release {
        Some(release) if is_file_name(release) && release.len() <= 64 => Ok((release.to_owned(), id)),
        _ => Err("its release is no release of a kernel".to_owned()),
    }
}

/// Writes the tree's directories and files, as plain ones of this user, below a new directory. Names come from a
/// tree, so they are single names, and every directory is made here: nothing can lead elsewhere.
pub(super) fn unpack(
    tree: &Tree,
    spooled: &Spooled,
    dir: &Path,
    unusable: &impl Fn(String) -> PullError,
) -> Result<(), PullError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io_error("make", dir))?;
    let mut directories = vec![(ROOT, dir.to_owned())];
    while let Some((directory, dir)) = directories.pop() {
        for (name, id) in tree.children(directory) {
            let path = dir.join(std::ffi::OsStr::from_bytes(name));
            match &tree.node(id).kind {
                Kind::Directory(_) => {
                    make_dir(&path)?;
                    directories.push((id, path));
                }
                Kind::File(content) => {
                    let mut file = create(&path).map_err(io_error("make", &path))?;
                    let bytes = spooled.read(content).map_err(io_error("read for", &path))?;
                    io::Write::write_all(&mut file, &bytes).map_err(io_error("write", &path))?;
                }
                // Links to a build directory; depmod has no use for them.
                Kind::Symlink(_) => {}
                Kind::CharDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo => {
                    let name = path.display();
                    return Err(unusable(format!("{name} among its modules is neither file nor directory")));
                }
            }
        }
    }
    Ok(())
}

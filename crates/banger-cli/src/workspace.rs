//! The tracked files of a git repository, as they are in its working tree, as a tar archive.
//!
//! Untracked files stay home: notes and credentials are merely untracked. git itself says what is tracked, told neither to
//! write anything nor to run what the repository's configuration names, and with none of the caller's GIT_ variables.

use std::fs::{File, Metadata};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use banger_proto::{ErrorCode, ErrorReport};
use banger_sys::command::{CommandError, Program};
use banger_tree::Exactly;
use rustix::fs::OFlags;

use crate::error::CliError;
use crate::exec::{Feed, Input, Pieces};

/// A repository's tracked files.
#[derive(Debug)]
pub(crate) struct Workspace {
    top: PathBuf,
    files: Vec<PathBuf>,
    untracked: usize,
}

impl Workspace {
    /// Lists the files of the repository that `path` is in.
    pub(crate) fn scan(path: &Path) -> Result<Self, CliError> {
        let shown = path.display();
        let dir = std::fs::canonicalize(path).map_err(|error| {
            let text = format!("cannot use {shown} as a repository");
            CliError::from(
                ErrorReport::caused_by(ErrorCode::InvalidInput, text, &error)
                    .hint("give the path of a git repository; a command goes after '--'"),
            )
        })?;
        if !dir.is_dir() {
            let text = format!("cannot use {shown} as a repository");
            let report = ErrorReport::new(ErrorCode::InvalidInput, text).cause("it is not a directory");
            return Err(report.hint("give the path of a git repository; a command goes after '--'").into());
        }
        let top = git(&dir, &["rev-parse", "--show-toplevel"]).map_err(|error| {
            let text = format!("{shown} is not in the working tree of a git repository");
            let report = ErrorReport::caused_by(ErrorCode::InvalidInput, text, &error);
            let hint = "run 'git init' and 'git add' there, or leave PATH out and copy with 'banger vm cp DIR NAME:'";
            CliError::from(report.hint(hint))
        })?;
        let top =
            PathBuf::from(std::ffi::OsString::from_vec(top.strip_suffix(b"\n").unwrap_or(&top).to_vec()));
        let failed = |error: CommandError| {
            let text = format!("cannot list the files of {}", top.display());
            CliError::from(
                ErrorReport::caused_by(ErrorCode::InvalidInput, text, &error)
                    .hint("see what git says: git status"),
            )
        };
        let tracked = git(&top, &["ls-files", "-z", "--stage"]).map_err(failed)?;
        let untracked = git(&top, &["ls-files", "-z", "--others", "--exclude-standard"]).map_err(failed)?;
        let files = parse(&tracked).map_err(|module| {
            let text =
                format!("{} has the submodule '{module}', and submodules are not built yet", top.display());
            CliError::from(
                ErrorReport::new(ErrorCode::NotBuilt, text).hint("leave PATH out and clone inside the VM"),
            )
        })?;
        Ok(Self {
            top,
            files,
            untracked: untracked.split(|byte| *byte == 0).filter(|name| !name.is_empty()).count(),
        })
    }

    /// Where the files go if nobody says otherwise.
    pub(crate) fn default_target(&self) -> String {
        let name = self.top.file_name().map(|name| name.to_string_lossy().into_owned());
        format!("/root/{}", name.unwrap_or_else(|| "repository".to_owned()))
    }

    /// One line on what stays home.
    pub(crate) fn skipped(&self) -> Option<String> {
        match self.untracked {
            0 => None,
            1 => Some("1 untracked file stays here; 'git add' takes it along".to_owned()),
            count => Some(format!("{count} untracked files stay here; 'git add' takes them along")),
        }
    }

    /// The archive, made while it is sent.
    pub(crate) fn archive(self) -> Input {
        let (sender, input) = Input::channel();
        std::thread::spawn(move || {
            let end = match self.write(Pieces::new(sender.clone())) {
                Ok(()) => Feed::End,
                Err(error) => {
                    Feed::Failed(format!("cannot read the files of {}: {error}", self.top.display()))
                }
            };
            // The session is over when nobody receives any more.
            let _ = sender.blocking_send(end);
        });
        input
    }

    fn write(&self, pieces: Pieces) -> io::Result<()> {
        let mut archive = tar::Builder::new(pieces);
        for file in &self.files {
            self.append(&mut archive, file)
                .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", file.display())))?;
        }
        archive.into_inner()?.flush()
    }

    /// Appends one entry. A file that is tracked and deleted is no entry, also where a directory took its place, or a
    /// file that of its directory.
    fn append(&self, archive: &mut tar::Builder<Pieces>, name: &Path) -> io::Result<()> {
        let path = self.top.join(name);
        let meta = match path.symlink_metadata() {
            Ok(meta) => meta,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if meta.is_dir() {
            return Ok(());
        }
        if meta.is_symlink() {
            let target = std::fs::read_link(&path)?;
            let mut header = header(&meta, tar::EntryType::Symlink, 0);
            return archive.append_link(&mut header, name, target);
        }
        if !meta.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is neither a file nor a link"));
        }
        // Between the look and the opening somebody may have put a link or a pipe there.
        let flags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).bits();
        let flags = i32::try_from(flags).map_err(io::Error::other)?;
        let file = File::options().read(true).custom_flags(flags).open(&path)?;
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no longer a file"));
        }
        let mut header = header(&meta, tar::EntryType::Regular, meta.len());
        archive.append_data(&mut header, name, Exactly::new(file, meta.len()))
    }
}

fn header(meta: &Metadata, kind: tar::EntryType, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    // What git would check out: only the executable bit counts. In the guest all belongs to root.
    header.set_mode(if meta.mode() & 0o100 == 0 { 0o644 } else { 0o755 });
    header.set_mtime(u64::try_from(meta.mtime()).unwrap_or(0));
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn git(dir: &Path, args: &[&str]) -> Result<Vec<u8>, CommandError> {
    let mut git = Program::new("git")?
        .args(["-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"])
        .args(args)
        .env("GIT_OPTIONAL_LOCKS", "0")
        .dir(dir);
    // git asks the owner's own configuration whether a repository of somebody else is to be trusted.
    if let Some(home) = banger_sys::env::var(banger_sys::env::HOME) {
        git = git.env("HOME", home);
    }
    git.run().map(|output| output.stdout)
}

/// The paths of `git ls-files -z --stage`: mode, object, stage, TAB, path. An unmerged path comes several times.
/// The error is the path of a submodule.
fn parse(listing: &[u8]) -> Result<Vec<PathBuf>, String> {
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in listing.split(|byte| *byte == 0).filter(|entry| !entry.is_empty()) {
        let Some(tab) = entry.iter().position(|byte| *byte == b'\t') else { continue };
        let path = Path::new(std::ffi::OsStr::from_bytes(&entry[tab + 1..]));
        if entry.starts_with(b"160000 ") {
            return Err(path.display().to_string());
        }
        if files.last().is_none_or(|last| last != path) {
            files.push(path.to_owned());
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;
    use tokio::sync::mpsc;

    #[test]
    fn a_listing_is_parsed() {
        let listing = b"100644 aa 0\ta\x00100755 bb 1\tdir/b\n\x00100755 cc 2\tdir/b\n\x00120000 dd 0\tl\0";
        let files = parse(listing).unwrap();
        assert_eq!(files, [Path::new("a"), Path::new("dir/b\n"), Path::new("l")]);
        assert_eq!(parse(b"160000 aa 0\tsub\0").unwrap_err(), "sub");
        assert!(parse(b"").unwrap().is_empty());
    }

    #[test]
    fn tracked_files_go_in_as_they_are_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("repo");
        std::fs::create_dir_all(top.join("sub")).unwrap();
        std::fs::create_dir(top.join("was-dir")).unwrap();
        let files = [("a", "one"), ("sub/run", "two"), ("gone", "x"), ("was-file", "x"), ("was-dir/b", "x")];
        for (name, text) in files.into_iter().chain([(".env", "secret")]) {
            std::fs::write(top.join(name), text).unwrap();
        }
        std::fs::set_permissions(top.join("sub/run"), std::fs::Permissions::from_mode(0o750)).unwrap();
        std::os::unix::fs::symlink("a", top.join("link")).unwrap();
        git(dir.path(), &["init", "-q", "repo"]).unwrap();
        git(&top, &["add", "a", "sub/run", "gone", "link", "was-file", "was-dir"]).unwrap();
        std::fs::write(top.join("a"), "changed").unwrap();
        std::fs::remove_file(top.join("gone")).unwrap();
        std::fs::remove_file(top.join("was-file")).unwrap();
        std::fs::create_dir(top.join("was-file")).unwrap();
        std::fs::remove_dir_all(top.join("was-dir")).unwrap();
        std::fs::write(top.join("was-dir"), "untracked").unwrap();

        let workspace = Workspace::scan(&top.join("sub")).unwrap();
        assert_eq!(workspace.default_target(), "/root/repo");
        assert!(workspace.skipped().unwrap().starts_with("2 untracked files"));
        let (sender, mut receiver) = mpsc::channel(100);
        workspace.write(Pieces::new(sender)).unwrap();
        let mut bytes = Vec::new();
        while let Ok(Feed::Bytes(piece)) = receiver.try_recv() {
            bytes.extend(piece);
        }
        let mut seen = Vec::new();
        for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            let name = entry.path().unwrap().display().to_string();
            seen.push((name, entry.header().mode().unwrap(), text));
        }
        let expected = [("a", 0o644, "changed"), ("link", 0o755, ""), ("sub/run", 0o755, "two")];
        assert_eq!(seen, expected.map(|(name, mode, text)| (name.to_owned(), mode, text.to_owned())));
    }

    #[test]
    fn what_is_no_repository_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = Workspace::scan(dir.path()).unwrap_err();
        let CliError::Failed(report) = error else { panic!("{error:?}") };
        assert!(report.message.contains("git repository"), "{}", report.message);
        assert!(!report.hints.is_empty());
    }
}

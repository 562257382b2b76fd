//! One marked Include at the top of the user's ssh configuration, and its removal without a trace.
//!
//! The file is the user's: every other byte stays as it is, also a CRLF or an end without a newline, and so do its mode
//! and its owner. It is replaced as a whole, beside the real file where `config` is a symlink. What banger had to make
//! (the file, its directory) is noted in the mark, so that the removal can take it away again.

use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use banger_proto::{ErrorCode, ErrorReport};
use banger_sys::{durable, paths};

/// The line before the Include.
const MARK: &str =
    "# banger: the next line makes 'ssh NAME.vm' work; 'banger ssh-config --uninstall' removes both";
/// Longer configurations are not edited.
const MAX_CONFIG: u64 = 4 << 20;

/// What had to be made for the Include.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Made {
    Nothing,
    File,
    Directory,
}

impl Made {
    const ALL: [Self; 3] = [Self::Nothing, Self::File, Self::Directory];

    /// How the mark goes on.
    const fn note(self) -> &'static str {
        match self {
            Self::Nothing => "",
            Self::File => ", and this file",
            Self::Directory => ", and this directory",
        }
    }
}

/// What became of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// It is another now.
    Done,
    /// There was nothing to do.
    None,
}

/// Refuses a configuration that [`install`] would not edit.
pub(crate) fn check(config: &Path) -> Result<(), ErrorReport> {
    UserFile::open(config).map(drop)
}

/// Puts the Include of `included`, a path in quotes, at the top of the configuration `config`.
pub(crate) fn install(config: &Path, included: &str) -> Result<Change, ErrorReport> {
    let failed = |path: &Path, error: &(dyn std::error::Error + 'static)| {
        failed(format!("cannot add banger's Include to {}", path.display()), error)
    };
    let Some(file) = UserFile::open(config)? else {
        let dir = config.parent().unwrap_or(Path::new("/"));
        let made = if dir.exists() { Made::File } else { Made::Directory };
        // ssh(1) recommends these modes.
        paths::make_private(dir).map_err(|error| failed(dir, &error))?;
        let content = with_include(&[], included, made);
        durable::replace(config, &content, 0o600).map_err(|error| failed(config, &error))?;
        return Ok(Change::Done);
    };
    let (rest, made) = without_include(&file.content);
    let content = with_include(&rest, included, made);
    file.replace(&content).map_err(|error| failed(&file.path, &error))
}

/// Takes every Include of banger's out of the configuration.
pub(crate) fn uninstall(config: &Path) -> Result<Change, ErrorReport> {
    let Some(file) = UserFile::open(config)? else { return Ok(Change::None) };
    let (rest, made) = without_include(&file.content);
    let doing = || format!("cannot remove banger's Include from {}", file.path.display());
    if made == Made::Nothing || !rest.is_empty() {
        return file.replace(&rest).map_err(|error| failed(doing(), &error));
    }
    std::fs::remove_file(&file.path).map_err(|error| failed(doing(), &error))?;
    match (made, file.path.parent()) {
        (Made::Directory, Some(dir)) => match std::fs::remove_dir(dir) {
            // Something else came to be in it.
            Err(error) if error.kind() != ErrorKind::DirectoryNotEmpty => Err(failed(doing(), &error)),
            _ => Ok(Change::Done),
        },
        _ => Ok(Change::Done),
    }
}

/// A configuration that exists, where it really is.
struct UserFile {
    path: PathBuf,
    meta: std::fs::Metadata,
    content: Vec<u8>,
}

impl UserFile {
    /// `None` where nothing is there. What cannot be replaced without harm is refused.
    fn open(config: &Path) -> Result<Option<Self>, ErrorReport> {
        let doing = || format!("cannot edit {}", config.display());
        match config.symlink_metadata() {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(doing(), &error)),
            Ok(_) => {}
        }
        // What a symlink leads to, a manager of dotfiles' say, is replaced there; the symlink stays.
        let path = config.canonicalize().map_err(|error| match error.kind() {
            ErrorKind::NotFound => failed(format!("{}: it is a symlink to nothing", doing()), &error),
            _ => failed(doing(), &error),
        })?;
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let file = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits().cast_signed())
            .open(&path)
            .map_err(|error| failed(doing(), &error))?;
        let meta = file.metadata().map_err(|error| failed(doing(), &error))?;
        let refused = |why: String| {
            let report = ErrorReport::new(ErrorCode::InvalidInput, doing()).cause(why);
            report.hint("put it where you want it by hand: banger ssh-config prints what ssh needs")
        };
        if !meta.is_file() {
            return Err(refused(format!("{} is not a regular file", path.display())));
        }
        let me = rustix::process::geteuid();
        if meta.uid() != me.as_raw() && !me.is_root() {
            return Err(refused(format!(
                "{} belongs to user id {}, not to you ({})",
                path.display(),
                meta.uid(),
                me.as_raw()
            )));
        }
        let mut content = Vec::new();
        file.take(MAX_CONFIG + 1).read_to_end(&mut content).map_err(|error| failed(doing(), &error))?;
        if content.len() as u64 > MAX_CONFIG {
            return Err(refused(format!("it has more than {MAX_CONFIG} bytes")));
        }
        Ok(Some(Self { path, meta, content }))
    }

    fn replace(&self, content: &[u8]) -> std::io::Result<Change> {
        if content == self.content {
            return Ok(Change::None);
        }
        durable::replace_keeping(&self.path, content, &self.meta)?;
        Ok(Change::Done)
    }
}

fn failed(message: String, error: &(dyn std::error::Error + 'static)) -> ErrorReport {
    let report = ErrorReport::caused_by(ErrorCode::PermissionDenied, message, error);
    report.hint("put it where you want it by hand: banger ssh-config prints what ssh needs")
}

/// The configuration with the Include before everything else: after a Host line it would belong to that.
fn with_include(rest: &[u8], included: &str, made: Made) -> Vec<u8> {
    let first = rest.split_inclusive(|byte| *byte == b'\n').next().unwrap_or_default();
    let end = if first.ends_with(b"\r\n") { "\r\n" } else { "\n" };
    let mut content = format!("{MARK}{}{end}Include {included}{end}", made.note()).into_bytes();
    content.extend_from_slice(rest);
    content
}

/// The configuration without any mark and the Include after it, and what was made for them.
fn without_include(content: &[u8]) -> (Vec<u8>, Made) {
    let mut rest = Vec::with_capacity(content.len());
    let mut made = Made::Nothing;
    let mut lines = content.split_inclusive(|byte| *byte == b'\n').peekable();
    while let Some(line) = lines.next() {
        match marked(line) {
            Some(noted) => {
                made = made.max(noted);
                lines.next_if(|next| is_ours(next));
            }
            None => rest.extend_from_slice(line),
        }
    }
    (rest, made)
}

/// Whether a line includes a file of banger's, wherever its state was then. The next Include may be the user's own.
fn is_ours(line: &[u8]) -> bool {
    let path = line.strip_prefix(b"Include ").unwrap_or_default().trim_ascii();
    let path = path.strip_suffix(b"\"").or_else(|| path.strip_suffix(b"'")).unwrap_or(path);
    path.ends_with(b"/ssh/config")
}

/// What a line notes, if it is the mark.
fn marked(line: &[u8]) -> Option<Made> {
    let note = line.strip_prefix(MARK.as_bytes())?.trim_ascii_end();
    Made::ALL.into_iter().find(|made| made.note().as_bytes() == note)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    const PATH: &str = "\"/state/ssh/config\"";

    fn block(made: Made, end: &str) -> Vec<u8> {
        format!("{MARK}{}{end}Include {PATH}{end}", made.note()).into_bytes()
    }

    #[test]
    fn the_include_comes_first_and_leaves_no_trace() {
        for (content, end) in [
            ("", "\n"),
            ("\n", "\n"),
            ("Host *\n  User me\n", "\n"),
            ("Host a\n  User me", "\n"),
            ("Host a\r\n  User me\r\n", "\r\n"),
            ("Host a\r\n  User me", "\r\n"),
            ("Host a\n  User me\r\n", "\n"),
            ("# banger: mine\nInclude other\n", "\n"),
            ("Include \"/state/ssh/config\"\n", "\n"),
            ("\u{feff}Host *\n\tUser me\n\n\n", "\n"),
        ] {
            let with = with_include(content.as_bytes(), PATH, Made::Nothing);
            assert_eq!(with, [&block(Made::Nothing, end), content.as_bytes()].concat(), "{content:?}");
            assert_eq!(without_include(&with), (content.as_bytes().to_vec(), Made::Nothing), "{content:?}");
        }
    }

    #[test]
    fn what_became_of_the_include_meanwhile_is_put_right() {
        let block = block(Made::File, "\n");
        for (name, content, rest) in [
            ("moved down", [b"Host a\n".as_slice(), &block, b"  User me\n"].concat(), "Host a\n  User me\n"),
            ("twice", [block.as_slice(), &block, b"x\n"].concat(), "x\n"),
            (
                "of another place",
                block.iter().copied().map(|b| if b == b'"' { b'\'' } else { b }).collect(),
                "",
            ),
            (
                "with the next Include of the user's",
                format!("{MARK}, and this file\nInclude ~/.ssh/conf.d/*\nInclude ~/.ssh/config.d\n")
                    .into_bytes(),
                "Include ~/.ssh/conf.d/*\nInclude ~/.ssh/config.d\n",
            ),
            ("without its second line", format!("{MARK}, and this file\nHost a\n").into_bytes(), "Host a\n"),
            ("with CRLF since", block.split(|b| *b == b'\n').collect::<Vec<_>>().join(&b"\r\n"[..]), ""),
            ("cut", block[..block.len() - 1].to_vec(), ""),
        ] {
            assert_eq!(without_include(&content), (rest.as_bytes().to_vec(), Made::File), "{name}");
        }
    }

    proptest! {
        #[test]
        fn install_and_uninstall_is_nothing(content in config()) {
            for made in Made::ALL {
                let with = with_include(&content, PATH, made);
                let (rest, noted) = without_include(&with);
                prop_assert_eq!((&rest, noted), (&content, made));
                prop_assert_eq!(with_include(&rest, PATH, noted), with);
            }
        }
    }

    /// Bytes of any kind, or lines like those of a configuration.
    fn config() -> impl Strategy<Value = Vec<u8>> {
        let line = prop_oneof![
            "Host [a-z*.]{1,8}",
            "  User [a-z]{1,8}",
            "Include [a-z/]{1,8}",
            "# banger: [a-z ]{0,8}",
            Just(String::new())
        ];
        let end = prop_oneof![Just("\n"), Just("\r\n")];
        let lines = (proptest::collection::vec((line, end), 0..8), "[a-z]{0,3}").prop_map(|(lines, last)| {
            let text: String = lines.iter().map(|(line, end)| format!("{line}{end}")).collect();
            (text + &last).into_bytes()
        });
        prop_oneof![lines, proptest::collection::vec(any::<u8>(), 0..64)]
    }

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().mode() & 0o7777
    }

    #[test]
    fn what_was_not_there_is_not_there_again() {
        let home = tempfile::tempdir().unwrap();
        let config = home.path().join(".ssh/config");
        assert_eq!(uninstall(&config).unwrap(), Change::None);
        assert_eq!(install(&config, PATH).unwrap(), Change::Done);
        assert_eq!((mode(&config), mode(config.parent().unwrap())), (0o600, 0o700));
        assert_eq!(install(&config, PATH).unwrap(), Change::None);
        assert_eq!(uninstall(&config).unwrap(), Change::Done);
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
        // What came since stays.
        install(&config, PATH).unwrap();
        let mut content = std::fs::read(&config).unwrap();
        content.extend_from_slice(b"Host a\n");
        std::fs::write(&config, content).unwrap();
        install(&config, "\"/elsewhere/ssh/config\"").unwrap();
        uninstall(&config).unwrap();
        assert_eq!(std::fs::read(&config).unwrap(), b"Host a\n");
        // A directory that was there, with whatever mode, and another file in it.
        std::fs::remove_file(&config).unwrap();
        std::fs::set_permissions(config.parent().unwrap(), PermissionsExt::from_mode(0o775)).unwrap();
        install(&config, PATH).unwrap();
        uninstall(&config).unwrap();
        assert!(!config.exists() && mode(config.parent().unwrap()) == 0o775);
        // An empty file that was there.
        std::fs::write(&config, "").unwrap();
        install(&config, PATH).unwrap();
        uninstall(&config).unwrap();
        assert_eq!(std::fs::read(&config).unwrap(), b"");
    }

    #[test]
    fn mode_and_symlink_stay() {
        let home = tempfile::tempdir().unwrap();
        let (real, config) = (home.path().join("dotfiles"), home.path().join("config"));
        std::fs::write(&real, "Host a").unwrap();
        symlink("dotfiles", &config).unwrap();
        for bits in [0o644, 0o400] {
            std::fs::set_permissions(&real, PermissionsExt::from_mode(bits)).unwrap();
            assert_eq!(install(&config, PATH).unwrap(), Change::Done);
            assert_eq!(mode(&real), bits);
            assert!(std::fs::read(&real).unwrap().starts_with(MARK.as_bytes()));
            assert_eq!(uninstall(&config).unwrap(), Change::Done);
            assert_eq!(mode(&real), bits);
            assert_eq!(std::fs::read(&real).unwrap(), b"Host a");
        }
        assert_eq!(std::fs::read_link(&config).unwrap(), Path::new("dotfiles"));
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_cannot_be_edited_is_refused_and_stays() {
        let home = tempfile::tempdir().unwrap();
        let refused = |name: &str, says: &str| {
            for error in [install(&home.path().join(name), PATH), uninstall(&home.path().join(name))]
                .map(Result::unwrap_err)
            {
                let said = format!("{error:?}");
                assert!(said.contains(says) && said.contains("banger ssh-config prints"), "{name}: {said}");
            }
        };
        symlink("nothing", home.path().join("dangling")).unwrap();
        refused("dangling", "a symlink to nothing");
        std::fs::create_dir(home.path().join("dir")).unwrap();
        refused("dir", "not a regular file");
        symlink("/dev/null", home.path().join("null")).unwrap();
        refused("null", "/dev/null is not a regular file");
        symlink("loop", home.path().join("loop")).unwrap();
        refused("loop", "cannot edit");
        let large = std::fs::File::create(home.path().join("large")).unwrap();
        large.set_len(MAX_CONFIG + 1).unwrap();
        refused("large", "more than 4194304 bytes");
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 5);
    }
}

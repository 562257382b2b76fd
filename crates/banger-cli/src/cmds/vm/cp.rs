//! `banger vm cp`

use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use banger_tree::Owners;
use clap::Args;

use crate::context::Context;
use crate::copy::{Copier, GuestPath, Manner};
use crate::error::CliError;
use crate::names;
use crate::signals::Interrupts;

/// Copy files into a VM, or out of one
///
/// One of SRC and DST is VM:PATH; a PATH that does not begin with '/' begins at root's home. A directory is copied with
/// all that is in it; modes, times, symlinks, hard links and holes are kept. Into a directory that exists it goes under
/// its own name; 'DIR/.' copies only what is in DIR. Otherwise DST is its new name. With '-' in the place of the other
/// side, a tar archive is read from standard input or written to standard output.
///
/// What a VM sends is never trusted: it is written below DST only, through no symlink, and no file keeps set-user-id bits.
/// A copy out of a VM stops before a file system here is full.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    banger vm cp ./app.conf box:/etc/app.conf\n  \
    banger vm cp ./src box:                     as src in root's home\n  \
    banger vm cp ./src/. box:/srv/app           what is in it\n  \
    banger vm cp box:/var/log ./logs\n  \
    banger vm cp box:/etc - | tar tv\n  \
    tar c . | banger vm cp - box:/srv")]
pub(crate) struct Cp {
    /// Follow SRC where it is a symlink; links inside a directory stay links
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Keep owners: by default files belong to root in the VM, and to you here
    #[arg(short, long)]
    archive: bool,
    /// A path here, VM:PATH, or '-'
    #[arg(add = names::vms_and_paths())]
    src: OsString,
    /// VM:PATH, a path here, or '-'
    #[arg(add = names::vms_and_paths())]
    dst: OsString,
}

/// One end of a copy.
#[derive(Debug)]
enum Side {
    Guest(GuestPath),
    Here(PathBuf),
    Stream,
}

impl Cp {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let sides = (Side::parse(&self.src)?, Side::parse(&self.dst)?);
        self.refuse(&sides)?;
        let owners = if self.archive { Owners::Archive } else { Owners::Caller };
        let manner = Manner { follow: self.follow_link, owners };
        let mut interrupts = Interrupts::new()?;
        let mut session = context.session().await?;
        let mut copier = Copier { ui: context.ui, session: &mut session, interrupts: &mut interrupts };
        match &sides {
            (Side::Here(from), Side::Guest(to)) => copier.put(from, to, manner).await?,
            (Side::Guest(from), Side::Here(to)) => copier.get(from, to, manner).await?,
            (Side::Stream, Side::Guest(to)) => copier.put_archive(to).await?,
            (Side::Guest(from), Side::Stream) => copier.get_archive(from, manner).await?,
            (Side::Guest(_), Side::Guest(_))
            | (Side::Here(_) | Side::Stream, Side::Here(_) | Side::Stream) => {
                return Err(not_one_guest(&sides));
            }
        }
        Ok(0)
    }

    /// What cannot work is refused before anything is asked.
    fn refuse(&self, sides: &(Side, Side)) -> Result<(), CliError> {
        let no = |text: &str, hint: &str| Err(CliError::usage(text, hint));
        match sides {
            (Side::Stream, Side::Guest(_)) if self.archive || self.follow_link => no(
                "-a and -L do not go with an archive on standard input",
                "leave them out; what is unpacked belongs to root",
            ),
            (Side::Stream, Side::Guest(_)) if std::io::stdin().is_terminal() => no(
                "an archive does not come from a terminal",
                "pipe it in: tar c DIR | banger vm cp - VM:PATH",
            ),
            (Side::Guest(_), Side::Stream) if std::io::stdout().is_terminal() => {
                no("an archive does not go to a terminal", "send it on: banger vm cp VM:PATH - | tar tv")
            }
            (Side::Guest(_), Side::Here(_)) if self.archive && !rustix::process::geteuid().is_root() => no(
                "only root can give files to other users, so -a out of a VM is refused",
                "leave -a out, or write an archive: banger vm cp VM:PATH - > FILE.tar",
            ),
            (Side::Here(_) | Side::Stream, Side::Guest(_))
            | (Side::Guest(_), Side::Here(_) | Side::Stream) => Ok(()),
            (Side::Guest(_), Side::Guest(_))
            | (Side::Here(_) | Side::Stream, Side::Here(_) | Side::Stream) => Err(not_one_guest(sides)),
        }
    }
}

impl Side {
    /// What has a colon before the first slash names a VM, as in scp.
    fn parse(text: &OsStr) -> Result<Self, CliError> {
        let bytes = text.as_bytes();
        if bytes == b"-" {
            return Ok(Self::Stream);
        }
        if bytes.is_empty() {
            return Err(CliError::usage(
                "an empty path is no place to copy from or to",
                "give a path, or VM:PATH",
            ));
        }
        let colon = bytes.iter().position(|byte| matches!(byte, b':' | b'/'));
        let colon = colon.filter(|at| bytes[*at] == b':' && *at > 0);
        let Some(colon) = colon else { return Ok(Self::Here(PathBuf::from(text))) };
        let Some(text) = text.to_str() else {
            return Err(CliError::usage(
                "a path in a VM has to be UTF-8 here",
                "copy the directory that it is in: names in a tree may be any bytes",
            ));
        };
        let vm = names::without_domain(&text[..colon]).to_owned();
        Ok(Self::Guest(GuestPath { vm, path: text[colon + 1..].to_owned() }))
    }
}

fn not_one_guest(sides: &(Side, Side)) -> CliError {
    match sides {
        (Side::Guest(_), Side::Guest(_)) => CliError::usage(
            "cannot copy from one VM to another directly",
            "pipe an archive: banger vm cp ONE:PATH - | banger vm cp - OTHER:DIR",
        ),
        _ => CliError::usage(
            "neither SRC nor DST is in a VM",
            "write it as VM:PATH; a path here that has a colon begins with ./",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_is_a_path_or_a_vm_however_ssh_calls_it() {
        for text in ["box:/srv", "box.vm:/srv"] {
            let side = Side::parse(text.as_ref()).unwrap();
            assert!(matches!(&side, Side::Guest(to) if to.vm == "box" && to.path == "/srv"), "{side:?}");
        }
        for text in ["./box:/srv", "/a:b", "box.vm"] {
            assert!(matches!(Side::parse(text.as_ref()).unwrap(), Side::Here(_)), "{text}");
        }
    }
}

//! Copying trees between this host and a guest: an archive in a session, made at one end while it is written at the other.
//!
//! What a guest sends is written by `banger_tree`, below the destination only, and compared at the end with what the guest
//! says it sent. Any failure says what arrived: it stays, but for a part of a file.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use banger_proto::daemon::{JobEventKind, ProgressUnit};
use banger_proto::guest::{Open, Outcome};
use banger_proto::{ErrorCode, ErrorReport};
use banger_tree::{Counts, Owners, Packed, Rules, Top, TreeError};

use crate::error::CliError;
use crate::exec::{self, Captured, Feed, Input, Local, Outputs, Pieces, drive};
use crate::progress::{Lines, Progress, TICK};
use crate::session::Session;
use crate::signals::Interrupts;
use crate::ui::Ui;

/// Where a guest can do harm and where not.
const WITHIN: &str = "nothing is written outside the destination; see what is there, and try another";

/// One end in a guest.
#[derive(Debug, Clone)]
pub(crate) struct GuestPath {
    /// Name or id.
    pub(crate) vm: String,
    /// Absolute, or from root's home.
    pub(crate) path: String,
}

/// How to copy.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    /// A source that is a symlink is followed.
    pub(crate) follow: bool,
    /// Owners are kept.
    pub(crate) owners: Owners,
}

/// A copy that is under way.
#[derive(Debug)]
pub(crate) struct Copier<'a, 'b> {
    pub(crate) ui: Ui,
    pub(crate) session: &'a mut Session<'b>,
    pub(crate) interrupts: &'a mut Interrupts,
}

impl Copier<'_, '_> {
    /// Copies a tree of this host into a guest.
    pub(crate) async fn put(&mut self, from: &Path, to: &GuestPath, manner: Manner) -> Result<(), CliError> {
        let text = format!("cannot copy {} to {}:{}", from.display(), to.vm, to.path);
        let meta = if manner.follow { from.metadata() } else { from.symlink_metadata() };
        let meta = meta.map_err(|error| {
            let report = ErrorReport::caused_by(ErrorCode::InvalidInput, text.clone(), &error);
            CliError::from(report.hint("give the path of a file or a directory"))
        })?;
        let total = if meta.is_file() { meta.len() } else { 0 };
        let (sender, input) = Input::channel();
        let pieces = Pieces::new(sender.clone());
        let moved = pieces.moved();
        let source = from.to_owned();
        let packing: JoinHandle<Result<Packed, Option<TreeError>>> = std::thread::spawn(move || {
            let mut packed = Packed::default();
            match banger_tree::pack(&source, manner.follow, pieces, &mut packed) {
                Ok(()) => {
                    // The session is over when nobody receives any more.
                    let _ = sender.blocking_send(Feed::End);
                    Ok(packed)
                }
                // The session ended before: it knows why.
                Err(_) if sender.is_closed() => Err(None),
                Err(error) => {
                    let _ = sender.blocking_send(Feed::Failed(error.chain()));
                    Err(Some(error))
                }
            }
        });
        let open = Open::Place { path: to.path.clone(), keep_owners: manner.owners == Owners::Archive };
        let local = Local::copying(input, Outputs::none());
        let outcome = self.drive(&to.vm, open, local, &moved, total).await;
        let packed = packing.join().map_err(|_| died(&text))?;
        match (outcome, packed) {
            (_, Err(Some(error))) => {
                let report = ErrorReport::new(ErrorCode::InvalidInput, text).cause(error.chain());
                Err(report.hint("what was copied before is in the guest").into())
            }
            (Ok(Outcome::Failed(failure)), _) => Err(exec::guest_failed(text, &failure)),
            (Ok(Outcome::Unpacked { .. }), Ok(packed)) => {
                self.left_out(packed.skipped);
                Ok(())
            }
            (Ok(other), _) => Err(exec::unexpected(&other)),
            (Err(error), _) => Err(interrupted(error)),
        }
    }

    /// Copies a tree of a guest to this host. The guest may be hostile.
    pub(crate) async fn get(&mut self, from: &GuestPath, to: &Path, manner: Manner) -> Result<(), CliError> {
        let text = format!("cannot copy {}:{} to {}", from.vm, from.path, to.display());
        let (output, captured) = Outputs::captured();
        let moved = captured.moved();
        let name = Top::Named(banger_tree::name_of(Path::new(&from.path)));
        let destination = to.to_owned();
        let placing = std::thread::spawn(move || receive(&destination, name, manner.owners, captured));
        let open = Open::Pack { path: from.path.clone(), follow: manner.follow };
        let outcome = self.drive(&from.vm, open, Local::copying(Input::none(), output), &moved, 0).await;
        let (counts, placed) = placing.join().map_err(|_| died(&text))?;
        let report = match (outcome, placed) {
            (Ok(Outcome::Packed { entries, bytes, skipped }), Ok(())) => {
                if counts == (Counts { entries, bytes }) {
                    self.left_out(skipped);
                    return Ok(());
                }
                let cause = format!("the guest says that it sent {entries} entries and {bytes} bytes");
                ErrorReport::new(ErrorCode::GuestFailed, text).cause(cause)
            }
            (Ok(Outcome::Packed { .. }) | Err(CliError::Said(_)), Err(error)) => {
                let (code, hint) = match &error {
                    TreeError::NoRoom(_) => {
                        (ErrorCode::ResourceExhausted, "make room there, or copy to another file system")
                    }
                    TreeError::System { .. } => (ErrorCode::InvalidInput, WITHIN),
                    TreeError::Broken(_) | TreeError::Refused(_) => (ErrorCode::GuestFailed, WITHIN),
                };
                ErrorReport::new(code, text).cause(exec::printable(&error.chain())).hint(hint)
            }
            (Ok(Outcome::Failed(failure)), _) => {
                ErrorReport::new(ErrorCode::GuestFailed, text).cause(exec::printable(&failure.message))
            }
            (Ok(other), _) => return Err(exec::unexpected(&other)),
            (Err(CliError::Interrupted(_)), _) => {
                let why = match arrived(counts) {
                    Some(arrived) => format!("interrupted; {arrived}, and stayed in {}", to.display()),
                    None => "interrupted before anything had arrived".to_owned(),
                };
                return Err(CliError::Interrupted(why));
            }
            (Err(error), _) => return Err(error.doing(text)),
        };
        let arrived = arrived(counts);
        Err(arrived.into_iter().fold(report, ErrorReport::cause).into())
    }

    /// Unpacks the archive on our standard input below a directory of a guest.
    pub(crate) async fn put_archive(&mut self, to: &GuestPath) -> Result<(), CliError> {
        let open = Open::Unpack { directory: to.path.clone() };
        let local = Local::copying(exec::read_stdin(), Outputs::none());
        match self.drive(&to.vm, open, local, &AtomicU64::new(0), 0).await.map_err(interrupted)? {
            Outcome::Unpacked { .. } => Ok(()),
            Outcome::Failed(failure) => {
                Err(exec::guest_failed(format!("cannot unpack into {}:{}", to.vm, to.path), &failure))
            }
            other => Err(exec::unexpected(&other)),
        }
    }

    /// Writes a tree of a guest as an archive to our standard output.
    pub(crate) async fn get_archive(&mut self, from: &GuestPath, manner: Manner) -> Result<(), CliError> {
        let open = Open::Pack { path: from.path.clone(), follow: manner.follow };
        let local = Local::copying(Input::none(), Outputs::start());
        match self.drive(&from.vm, open, local, &AtomicU64::new(0), 0).await.map_err(interrupted)? {
            Outcome::Packed { skipped, .. } => {
                self.left_out(skipped);
                Ok(())
            }
            Outcome::Failed(failure) => {
                let text = format!("cannot copy {}:{}", from.vm, from.path);
                let report = ErrorReport::new(ErrorCode::GuestFailed, text);
                Err(report.cause(exec::printable(&failure.message)).into())
            }
            other => Err(exec::unexpected(&other)),
        }
    }

    /// Runs a session, and shows how far it is.
    async fn drive(
        &mut self,
        vm: &str,
        open: Open,
        local: Local,
        moved: &AtomicU64,
        total: u64,
    ) -> Result<Outcome, CliError> {
        let mut progress = Progress::new(self.ui, Lines::Stages, format!("VM {vm}"));
        progress.stage("copying");
        let mut ticks = tokio::time::interval(TICK);
        let work = drive(self.session, vm, open, local, self.interrupts);
        tokio::pin!(work);
        loop {
            tokio::select! {
                outcome = &mut work => return outcome,
                _ = ticks.tick() => {
                    let done = moved.load(Ordering::Relaxed);
                    // The archive has a little more than the file.
                    let total = if total < done { 0 } else { total };
                    progress.event(&JobEventKind::Progress { done, total, unit: ProgressUnit::Bytes });
                }
            }
        }
    }

    fn left_out(&self, skipped: u64) {
        match skipped {
            0 => {}
            1 => self.ui.warning("1 entry was left out: it is neither a file, a directory nor a link"),
            _ => self.ui.warning(format!(
                "{skipped} entries were left out: they are neither files, directories nor links"
            )),
        }
    }
}

fn receive(
    destination: &Path,
    name: Top,
    owners: Owners,
    captured: Captured,
) -> (Counts, Result<(), TreeError>) {
    let mut counts = Counts::default();
    let placed = banger_tree::place(destination, name, captured, Rules::host(owners), &mut counts);
    (counts, placed)
}

fn arrived(Counts { entries, bytes }: Counts) -> Option<String> {
    (entries > 0).then(|| format!("{entries} entries and {bytes} bytes had arrived"))
}

fn interrupted(error: CliError) -> CliError {
    match error {
        CliError::Interrupted(_) => {
            CliError::Interrupted("interrupted; what was copied so far stays where it is".to_owned())
        }
        other => other,
    }
}

fn died(text: &str) -> CliError {
    CliError::from(ErrorReport::new(ErrorCode::Internal, text).cause("the thread that copies has died"))
}

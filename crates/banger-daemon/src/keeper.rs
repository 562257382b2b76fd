//! The keeper of a VM's logs and the guard of its network: a small process per VM that outlives the daemon.
//!
//! ```text
//! fd 3: QEMU's serial port (socket pair) --> console.log  -> console.log.1
//! fd 4: what QEMU itself says (pipe)     --> vmm.log      -> vmm.log.1
//! fd 5: QEMU's network card (socket pair) <-> guard <-> fd 6: passt (socket pair); only with a network
//! ```
//!
//! It drains both, whatever happens: a full disk loses lines but never blocks the guest, and what is kept is
//! bounded. It ends when all have ended, which is when QEMU has. `bangerd keeper CONSOLE_LOG VMM_LOG
//! [network]` is a hidden mode.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;

use banger_sys::become_program::FIRST_FD;
use banger_sys::inherited::take;
use banger_sys::rotate::RotatingLog;

use crate::net::guard;

/// The hidden mode's name on the command line of `bangerd`.
pub const MODE: &str = "keeper";
/// Bytes of a console log before it is rotated; twice that is kept.
pub const CONSOLE_BOUND: u64 = 4 << 20;
/// Bytes of a VMM's log before it is rotated; twice that is kept.
pub const VMM_BOUND: u64 = 256 << 10;

/// The word that says that descriptors 5 and 6 are there.
const NETWORK: &str = "network";

/// The keeper's arguments.
pub fn args(console_log: &Path, vmm_log: &Path, network: bool) -> Vec<OsString> {
    let mut args = vec![MODE.into(), console_log.into(), vmm_log.into()];
    args.extend(network.then(|| NETWORK.into()));
    args
}

/// `bangerd keeper`: `args` are those after the mode's name.
pub fn main(args: &[OsString]) -> ExitCode {
    let (console_log, vmm_log, network) = match args {
        [console, vmm] => (console, vmm, false),
        [console, vmm, network] if network == NETWORK => (console, vmm, true),
        _ => {
            eprintln!("usage: bangerd {MODE} CONSOLE_LOG VMM_LOG [{NETWORK}]");
            return ExitCode::from(2);
        }
    };
    match run(Path::new(console_log), Path::new(vmm_log), network) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot keep the logs: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(console_log: &Path, vmm_log: &Path, network: bool) -> io::Result<()> {
    let (console, vmm) = (take(FIRST_FD)?, take(FIRST_FD + 1)?);
    let network = if network { Some((take(FIRST_FD + 2)?, take(FIRST_FD + 3)?)) } else { None };
    std::thread::scope(|threads| {
        threads.spawn(|| keep(vmm, vmm_log, VMM_BOUND));
        if let Some((card, passt)) = network {
            threads.spawn(|| guard::run(card.into(), passt.into()));
        }
        keep(console, console_log, CONSOLE_BOUND);
    });
    Ok(())
}

/// Copies a stream into a log of bounded size until its end.
pub fn keep(stream: impl Into<OwnedFd>, path: &Path, bound: u64) {
    let mut stream = File::from(stream.into());
    let mut log = RotatingLog::open(path, bound).ok();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            // A line that cannot be written is lost; the file is opened again, it may have been made unusable.
            Ok(count) if !written(log.as_mut(), &buffer[..count]) => {
                log = RotatingLog::open(path, bound).ok()
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The other end of a socket was reset: it is gone.
            Err(_) => return,
        }
    }
}

fn written(log: Option<&mut RotatingLog>, bytes: &[u8]) -> bool {
    log.is_some_and(|log| log.write_all(bytes).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_end_of_a_long_console_is_kept_within_the_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let (mut guest, keeper) = UnixStream::pair().unwrap();
        let log = path.clone();
        let keeper = std::thread::spawn(move || keep(keeper, &log, 1000));
        for line in 0..2000 {
            writeln!(guest, "line {line}").unwrap();
        }
        drop(guest);
        keeper.join().unwrap();
        let older = std::fs::read(RotatingLog::older(&path)).unwrap();
        let newer = std::fs::read(&path).unwrap();
        assert!(older.len() <= 1000 && newer.len() <= 1000);
        assert!(newer.ends_with(b"line 1999\n"));
    }

    #[test]
    fn a_log_that_cannot_be_written_does_not_stop_the_guest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing/console.log");
        let (mut guest, keeper) = UnixStream::pair().unwrap();
        let log = path.clone();
        let keeper = std::thread::spawn(move || keep(keeper, &log, 1000));
        guest.write_all(&[b'x'; 1 << 20]).unwrap();
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        // The first write after the directory is there may still be lost: it is what makes the keeper look again.
        while std::fs::read(&path).map_or(0, |log| log.len()) == 0 {
            guest.write_all(b"again\n").unwrap();
        }
        drop(guest);
        keeper.join().unwrap();
    }

    #[test]
    fn a_link_in_the_place_of_the_log_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let target = dir.path().join("target");
        std::os::unix::fs::symlink(&target, &path).unwrap();
        let (mut guest, keeper) = UnixStream::pair().unwrap();
        guest.write_all(b"x").unwrap();
        drop(guest);
        keep(keeper, &path, 1000);
        assert!(!target.exists());
    }
}

//! Looking at a VM's logs on the host: its guest's console and its VMM's own words. What is in there is bounded and made
//! printable before anybody sees it. A log that cannot be read is an empty one: this is only ever more detail on something
//! else.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

/// What Linux says when it gives up (kernel/panic.c).
const PANIC: &[u8] = b"Kernel panic - not syncing";
/// What Linux says last, on every console (kernel/reboot.c).
const LAST_WORDS: [(&str, Farewell); 2] =
    [("reboot: Power down", Farewell::PowerOff), ("reboot: Restarting system", Farewell::Restart)];
/// So many of a log's last lines are enough to say why something ended.
pub const WORDS: usize = 5;
/// So much of a log's end is looked at for its last lines.
const TAIL: u64 = 32 * 1024;
/// So much is read at once while a boot is watched.
const CHUNK: u64 = 256 * 1024;
/// Longer lines are cut, in characters.
const WIDTH: usize = 200;

/// The last lines of a log. Where the kernel gave up they begin a little before it says so, because the trace that
/// follows can be long.
pub fn last_lines(log: &Path, count: usize) -> Vec<String> {
    let text = read_tail(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<String> =
        text.split(['\n', '\r']).map(printable).filter(|line| !line.is_empty()).collect();
    let panicked =
        lines.iter().rposition(|line| line.as_bytes().windows(PANIC.len()).any(|part| part == PANIC));
    let end = lines.len().saturating_sub(count);
    let start = panicked.map_or(end, |panic| end.min(panic.saturating_sub(count / 4)));
    lines.into_iter().skip(start).take(count).collect()
}

/// Whether a panic is among a log's last lines.
pub fn tail_panicked(log: &Path) -> bool {
    read_tail(log).is_ok_and(|text| text.windows(PANIC.len()).any(|window| window == PANIC))
}

/// How a guest's kernel took its leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Farewell {
    /// It gave up.
    Panic,
    /// It powered off.
    PowerOff,
    /// It restarted.
    Restart,
}

/// How the kernel took its leave whose machine is gone; `None` where it did not, or where nothing was written since then
/// (seconds since 1970), so that whatever is there is an earlier boot's.
pub fn farewell(log: &Path, since: Option<i64>) -> Option<Farewell> {
    let written = open(log).and_then(|log| log.metadata()).ok()?.mtime();
    if since.is_some_and(|since| written < since) {
        return None;
    }
    if tail_panicked(log) {
        return Some(Farewell::Panic);
    }
    let last = last_lines(log, 1).pop()?;
    LAST_WORDS.into_iter().find_map(|(words, farewell)| last.contains(words).then_some(farewell))
}

/// A text of a guest's as one line that does nothing to a terminal.
pub fn printable(text: &str) -> String {
    let mut line = String::new();
    let mut chars = text.chars();
    let mut width = 0;
    while let Some(char) = chars.next() {
        if width == WIDTH {
            line.push_str("...");
            break;
        }
        match char {
            // An escape sequence (ECMA-48) is two characters; a control sequence goes on to its final letter.
            '\u{1b}' => {
                if chars.next() == Some('[') {
                    while chars.next().is_some_and(|char| !('@'..='~').contains(&char)) {}
                }
                continue;
            }
            '\t' => line.push(' '),
            char if char.is_control() => continue,
            char => line.push(char),
        }
        width += 1;
    }
    line.trim().to_owned()
}

fn read_tail(log: &Path) -> io::Result<Vec<u8>> {
    let mut file = open(log)?;
    let start = file.metadata()?.len().saturating_sub(TAIL);
    file.seek(SeekFrom::Start(start))?;
    let mut text = Vec::new();
    file.take(TAIL).read_to_end(&mut text)?;
    Ok(text)
}

fn open(log: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(log)
}

/// Follows a console from a start on.
#[derive(Debug)]
pub struct Watch {
    log: PathBuf,
    offset: u64,
    /// The end of what was read, in which a panic may have begun.
    carry: Vec<u8>,
    panicked: bool,
}

impl Watch {
    /// From the log's present end on.
    pub fn from_end(log: PathBuf) -> Self {
        let offset = open(&log).and_then(|log| log.metadata()).map_or(0, |meta| meta.len());
        Self { log, offset, carry: Vec::new(), panicked: false }
    }

    /// Reads on; says whether anything came.
    pub fn grew(&mut self) -> bool {
        self.read().unwrap_or(false)
    }

    /// Whether the kernel gave up.
    pub fn panicked(&self) -> bool {
        self.panicked
    }

    fn read(&mut self) -> io::Result<bool> {
        let mut file = open(&self.log)?;
        let len = file.metadata()?.len();
        if len < self.offset {
            // It was rotated.
            self.offset = 0;
        }
        if len == self.offset {
            return Ok(false);
        }
        file.seek(SeekFrom::Start(self.offset))?;
        let mut text = std::mem::take(&mut self.carry);
        let read = file.take(CHUNK).read_to_end(&mut text)?;
        self.offset += read as u64;
        self.panicked |= text.windows(PANIC.len()).any(|window| window == PANIC);
        self.carry = text.split_off(text.len().saturating_sub(PANIC.len()));
        Ok(read > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn last_lines_are_bounded_and_printable() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("console.log");
        assert!(last_lines(&log, 3).is_empty());
        std::os::unix::fs::symlink("/proc/self/status", &log).unwrap();
        assert!(last_lines(&log, 3).is_empty(), "what a log's name leads to is not a log");
        std::fs::remove_file(&log).unwrap();
        let mut file = File::create(&log).unwrap();
        for number in 0..50_000 {
            writeln!(file, "line {number}\r").unwrap();
        }
        write!(file, "\x1b[31mred\x1b[0m\x07\tbell\n\x1b]{}\n\n", "x".repeat(5000)).unwrap();
        file.write_all(b"\xff\xfe no text").unwrap();
        let lines = last_lines(&log, 4);
        assert_eq!(lines[0], "line 49999");
        assert_eq!(lines[1], "red bell");
        assert_eq!(lines[2].chars().count(), WIDTH + 3);
        assert!(lines[3].ends_with("no text"));
        assert!(lines.iter().all(|line| !line.contains('\x1b')));
    }

    #[test]
    fn a_long_trace_does_not_hide_the_panic() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("console.log");
        let trace = (0..90).map(|line| format!("trace {line}\n"));
        let text: String =
            std::iter::once("before\nKernel panic - not syncing: so\n".to_owned()).chain(trace).collect();
        std::fs::write(&log, text).unwrap();
        let lines = last_lines(&log, 8);
        assert_eq!((lines.len(), lines[0].as_str(), lines[7].as_str()), (8, "before", "trace 5"));
    }

    #[test]
    fn a_panic_is_seen_across_reads_and_not_from_an_earlier_boot() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("console.log");
        std::fs::write(&log, "Kernel panic - not syncing: an old one\n").unwrap();
        let mut watch = Watch::from_end(log.clone());
        assert!(!watch.grew() && !watch.panicked());
        let mut file = File::options().append(true).open(&log).unwrap();
        file.write_all(b"booting\nKernel panic - no").unwrap();
        assert!(watch.grew() && !watch.panicked());
        file.write_all(b"t syncing: VFS\n").unwrap();
        assert!(watch.grew() && watch.panicked());
        assert!(!watch.grew());
    }

    #[test]
    fn a_farewell_is_the_last_word_and_of_this_boot() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("console.log");
        assert_eq!(farewell(&log, None), None);
        for (text, expected) in [
            ("up\r\n[    9.1] reboot: Power down\r\n", Some(Farewell::PowerOff)),
            ("[    9.1] reboot: Restarting system\r\n", Some(Farewell::Restart)),
            ("reboot: Power down\r\nand up again\r\n", None),
            ("Kernel panic - not syncing: x\n  trace\n", Some(Farewell::Panic)),
        ] {
            std::fs::write(&log, text).unwrap();
            assert_eq!(farewell(&log, Some(1)), expected, "{text}");
            assert_eq!(farewell(&log, Some(i64::MAX)), None, "nothing was written since");
        }
    }

    #[test]
    fn a_rotated_log_is_read_from_its_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("console.log");
        std::fs::write(&log, "x".repeat(1000)).unwrap();
        let mut watch = Watch::from_end(log.clone());
        std::fs::write(&log, "Kernel panic - not syncing: x").unwrap();
        assert!(watch.grew() && watch.panicked());
    }
}

//! The end of a log that a guest wrote, made safe to show.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::ports::VmDirs;

/// Bytes looked at.
const WINDOW: u64 = 16 << 10;
/// Characters of a line that are shown.
const LINE: usize = 200;

/// The last lines of a VM's console, for an error message. Empty where there are none.
pub fn console_tail(dirs: &VmDirs, lines: usize) -> Vec<String> {
    tail(&dirs.console_log(), lines)
}

/// The last lines of a log, without control characters (a guest must not drive the user's terminal), each cut to 200
/// characters. Empty where the file cannot be read: this is only ever more detail on another error.
pub fn tail(path: &Path, lines: usize) -> Vec<String> {
    let text = end(path).unwrap_or_default();
    let shown: Vec<String> = String::from_utf8_lossy(&text)
        .split(['\n', '\r'])
        .map(plain)
        .filter(|line| !line.trim().is_empty())
        .collect();
    shown[shown.len().saturating_sub(lines)..].to_vec()
}

fn end(path: &Path) -> std::io::Result<Vec<u8>> {
    let file: File = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)?;
    let length = file.metadata()?.len();
    let mut text = vec![0; usize::try_from(length.min(WINDOW)).unwrap_or(0)];
    let count = file.read_at(&mut text, length.saturating_sub(WINDOW))?;
    text.truncate(count);
    Ok(text)
}

/// A line without escape sequences (ECMA-48: CSI ends at a byte of 0x40 to 0x7e) and other control characters.
fn plain(line: &str) -> String {
    let mut plain = String::new();
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' {
            if characters.next() == Some('[') {
                while characters.next().is_some_and(|c| !('\u{40}'..='\u{7e}').contains(&c)) {}
            }
        } else if character == '\t' {
            plain.push(' ');
        } else if !character.is_control() {
            plain.push(character);
        }
        if plain.len() >= LINE {
            break;
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_shown_without_what_drives_a_terminal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut text = "x".repeat(40_000);
        text.push_str("\none\r\n\u{1b}[1;31mtwo\u{1b}[0m\u{7}\n\n\u{1b}]0;title\n");
        std::fs::write(&path, text).unwrap();
        assert_eq!(tail(&path, 2), ["two", "0;title"]);
        assert_eq!(tail(&path, 9).len(), 4);
        assert!(tail(&dir.path().join("none"), 2).is_empty());
    }
}

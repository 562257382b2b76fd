//! What a program in the guest has switched on in our terminal's emulator.
//!
//! A program that ends switches off what it switched on. One that is left with `~.`, or whose VM is gone, does not: the
//! shell would be found on the alternate screen, with a mouse that types. So the switches in its output are watched.

use std::collections::BTreeSet;

/// Private modes (xterm's ctlseqs, "DECSET") that are switched back, with their usual state. The screen comes last, so
/// that all else is switched back on the one it was switched on.
const WATCHED: [(u16, bool); 14] = [
    (1, false),
    (25, true),
    (1000, false),
    (1002, false),
    (1003, false),
    (1004, false),
    (1005, false),
    (1006, false),
    (1015, false),
    (2004, false),
    (2026, false),
    (47, false),
    (1047, false),
    (1049, false),
];
/// More than any program sets at once.
const MAX_NUMBERS: usize = 16;

/// The modes that are not as usual.
#[derive(Debug, Default)]
pub(super) struct Modes {
    unusual: BTreeSet<u16>,
    state: State,
}

/// How far into `ESC [ ? N ; N h` the output is.
#[derive(Debug, Default)]
enum State {
    #[default]
    Text,
    Escape,
    Bracket,
    Numbers(Vec<u16>),
}

impl Modes {
    /// Takes what is shown.
    pub(super) fn watch(&mut self, bytes: &[u8]) {
        for byte in bytes.iter().copied() {
            self.state = match (std::mem::take(&mut self.state), byte) {
                (_, 0x1b) => State::Escape,
                (State::Escape, b'[') => State::Bracket,
                (State::Bracket, b'?') => State::Numbers(vec![0]),
                (State::Numbers(mut numbers), b'0'..=b'9') => {
                    if let Some(last) = numbers.last_mut() {
                        *last = last.saturating_mul(10).saturating_add(u16::from(byte - b'0'));
                    }
                    State::Numbers(numbers)
                }
                (State::Numbers(mut numbers), b';') if numbers.len() < MAX_NUMBERS => {
                    numbers.push(0);
                    State::Numbers(numbers)
                }
                (State::Numbers(numbers), b'h' | b'l') => {
                    numbers.into_iter().for_each(|number| self.switch(number, byte == b'h'));
                    State::Text
                }
                _ => State::Text,
            };
        }
    }

    fn switch(&mut self, number: u16, on: bool) {
        if let Some((_, usual)) = WATCHED.iter().find(|(watched, _)| *watched == number) {
            if on == *usual {
                self.unusual.remove(&number);
            } else {
                self.unusual.insert(number);
            }
        }
    }

    /// What makes them usual again, and the colours; nothing where all are.
    pub(super) fn undo(&self) -> Vec<u8> {
        let unusual = WATCHED.iter().filter(|(number, _)| self.unusual.contains(number));
        let mut text: String = unusual
            .map(|(number, usual)| format!("\x1b[?{number}{}", if *usual { 'h' } else { 'l' }))
            .collect();
        if !text.is_empty() {
            text.push_str("\x1b[m");
        }
        text.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn undo(pieces: &[&str]) -> String {
        let mut modes = Modes::default();
        pieces.iter().for_each(|piece| modes.watch(piece.as_bytes()));
        String::from_utf8(modes.undo()).unwrap()
    }

    #[test]
    fn what_is_left_on_is_switched_off_and_the_screen_last() {
        assert_eq!(
            undo(&["\x1b[?1049h\x1b[?25l\x1b[?1002;1006htext"]),
            "\x1b[?25h\x1b[?1002l\x1b[?1006l\x1b[?1049l\x1b[m"
        );
        // A switch may be cut anywhere.
        assert_eq!(undo(&["\x1b", "[", "?20", "04h"]), "\x1b[?2004l\x1b[m");
    }

    #[test]
    fn a_program_that_ended_well_leaves_nothing() {
        assert_eq!(undo(&["\x1b[?1049h\x1b[?2004h", "\x1b[?2004l\x1b[?1049l"]), "");
        assert_eq!(undo(&["\x1b[31mred\x1b[m \x1b[?7h ?1049h [?1049h \x1b[1049h \x1b[?1049x"]), "");
    }

    #[test]
    fn no_output_makes_it_grow() {
        let held = |modes: &Modes| match &modes.state {
            State::Numbers(numbers) => numbers.len(),
            State::Text | State::Escape | State::Bracket => 0,
        };
        let mut modes = Modes::default();
        modes.watch(b"\x1b[?");
        for _ in 0..1000 {
            modes.watch(b"9999999999;");
            assert!(held(&modes) <= MAX_NUMBERS, "{} numbers are held", held(&modes));
        }
        (0..=u16::MAX).for_each(|number| modes.watch(format!("\x1b[?{number}h\x1b[?{number}l").as_bytes()));
        assert!(modes.unusual.len() <= WATCHED.len(), "{:?}", modes.unusual);
        // As many as there is space for count, and one more makes it no switch.
        let with = |others: usize| format!("\x1b[?{}1049h", "7;".repeat(others));
        assert_eq!(undo(&[&with(MAX_NUMBERS - 1)]), "\x1b[?1049l\x1b[m");
        assert_eq!(undo(&[&with(MAX_NUMBERS)]), "");
    }
}

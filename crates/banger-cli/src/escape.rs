//! A tilde at the beginning of a line speaks to banger instead of to the guest, as in ssh(1).

/// What `~?` shows.
pub(crate) const HELP: &str = "\
banger takes these at the beginning of a line, that is after Enter:
  ~.   leave; what runs in this session is ended
  ~^Z  stop banger, as Ctrl-Z stops any program here; fg goes on
  ~?   this help
  ~~   send one tilde";

/// Finds the escape in what is typed. What a terminal marks as pasted (xterm's "bracketed paste") is nobody's wish to leave.
#[derive(Debug, Default)]
pub(crate) struct Escape {
    place: Place,
    /// Between the marks of a paste.
    pasting: bool,
    /// So many bytes of a mark were typed last.
    mark: usize,
}

/// Where the next key goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Place {
    /// At the beginning of a line.
    #[default]
    LineStart,
    /// After a tilde at the beginning of a line, which is held back.
    Tilde,
    /// Anywhere else.
    Inside,
}

/// What is to be done with what was typed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Typed {
    /// To the guest.
    pub(crate) send: Vec<u8>,
    /// From us.
    pub(crate) asked: Vec<Asked>,
}

/// What the user wants from us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Out. Nothing comes after it.
    Leave,
    /// To be told what there is.
    Help,
    /// To get back to the shell for a while.
    Stop,
}

/// Ctrl-Z.
const STOP: u8 = 0x1a;
/// What both marks of a paste begin with; then 0 or 1, and a tilde.
const MARK: &[u8] = b"\x1b[20";
/// [`Escape::mark`] after all of the first mark but its tilde, and [`ENDS`] of the last.
const BEGINS: usize = 5;
/// See [`BEGINS`].
const ENDS: usize = 6;

impl Escape {
    /// Takes what was typed. What follows the wish to leave is dropped.
    pub(crate) fn filter(&mut self, bytes: &[u8]) -> Typed {
        let mut typed = Typed { send: Vec::with_capacity(bytes.len()), asked: Vec::new() };
        for byte in bytes.iter().copied() {
            let asked = match (self.place, byte) {
                (Place::LineStart, b'~') if !self.pasting => {
                    self.place = Place::Tilde;
                    continue;
                }
                (Place::Tilde, b'.') => Some(Asked::Leave),
                (Place::Tilde, b'?') => Some(Asked::Help),
                (Place::Tilde, STOP) => Some(Asked::Stop),
                (Place::Tilde, b'~') | (Place::LineStart | Place::Inside, _) => None,
                (Place::Tilde, _) => {
                    typed.send.push(b'~');
                    None
                }
            };
            if let Some(asked) = asked {
                self.place = Place::LineStart;
                typed.asked.push(asked);
                if asked == Asked::Leave {
                    break;
                }
                continue;
            }
            typed.send.push(byte);
            self.look_for_marks(byte);
            self.place = if matches!(byte, b'\r' | b'\n') { Place::LineStart } else { Place::Inside };
        }
        typed
    }

    fn look_for_marks(&mut self, byte: u8) {
        self.mark = match (self.mark, byte) {
            (at, byte) if MARK.get(at) == Some(&byte) => at + 1,
            (4, b'0') => BEGINS,
            (4, b'1') => ENDS,
            (at @ (BEGINS | ENDS), b'~') => {
                self.pasting = at == BEGINS;
                0
            }
            (_, 0x1b) => 1,
            _ => 0,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(pieces: &[&[u8]]) -> (String, Vec<Asked>) {
        let mut escape = Escape::default();
        let mut all = Typed::default();
        for piece in pieces {
            let typed = escape.filter(piece);
            all.send.extend(typed.send);
            all.asked.extend(typed.asked);
            if all.asked.last() == Some(&Asked::Leave) {
                break;
            }
        }
        (String::from_utf8(all.send).unwrap(), all.asked)
    }

    #[test]
    fn only_a_tilde_and_a_dot_at_the_beginning_of_a_line_leave() {
        assert_eq!(run(&[b"~."]), (String::new(), vec![Asked::Leave]));
        assert_eq!(run(&[b"ls\r", b"~", b".dropped"]), ("ls\r".into(), vec![Asked::Leave]));
        assert_eq!(run(&[b"a~.\r"]), ("a~.\r".into(), vec![]));
        assert_eq!(run(&[b"~~.\r"]), ("~.\r".into(), vec![]));
        assert_eq!(run(&[b"~x"]), ("~x".into(), vec![]));
        assert_eq!(run(&[b"~\r~."]), ("~\r".into(), vec![Asked::Leave]));
    }

    #[test]
    fn help_and_stop_leave_the_line_at_its_beginning() {
        assert_eq!(run(&[b"~?~.x"]), (String::new(), vec![Asked::Help, Asked::Leave]));
        assert_eq!(run(&[b"~", &[STOP], b"ls\r"]), ("ls\r".into(), vec![Asked::Stop]));
        // Without the tilde it is the guest's own Ctrl-Z.
        assert_eq!(run(&[&[STOP]]), ("\u{1a}".into(), vec![]));
    }

    #[test]
    fn a_paste_is_no_wish() {
        let paste = b"\x1b[200~\r~.\r~?~~\x1b[201~";
        assert_eq!(run(&[paste]), (String::from_utf8(paste.to_vec()).unwrap(), vec![]));
        assert_eq!(run(&[b"\x1b[20", b"0~\n~.", b"\x1b[201~\r~."]).1, vec![Asked::Leave]);
        // The keys Insert and F9, say, are no marks.
        assert_eq!(run(&[b"\x1b[2~\x1b[20~\x1b[200\r~."]).1, vec![Asked::Leave]);
    }

    proptest! {
        #[test]
        fn what_begins_no_line_with_a_tilde_arrives_as_it_is(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0usize..200) {
            // A pasted text or an image, say: everything but the escape itself.
            let bytes: Vec<u8> = std::iter::once(b'x').chain(bytes.into_iter().filter(|byte| *byte != b'~')).collect();
            let (one, other) = bytes.split_at(at.min(bytes.len()));
            let mut escape = Escape::default();
            let sent = [escape.filter(one).send, escape.filter(other).send].concat();
            prop_assert_eq!(sent, bytes);
        }
    }
}

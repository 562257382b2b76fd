//! `~.` at the beginning of a line ends a session from the keyboard, and `~~` sends a tilde, as in ssh(1).

/// Finds the escape in what is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Escape {
    /// At the beginning of a line.
    #[default]
    LineStart,
    /// After a tilde at the beginning of a line, which is held back.
    Tilde,
    /// Anywhere else.
    Inside,
}

/// What is to be done with what was typed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Typed {
    /// To the guest.
    pub(crate) send: Vec<u8>,
    /// The user wants out.
    pub(crate) leave: bool,
}

impl Escape {
    /// Takes what was typed. What follows the escape is dropped.
    pub(crate) fn filter(&mut self, typed: &[u8]) -> Typed {
        let mut send = Vec::with_capacity(typed.len());
        for byte in typed.iter().copied() {
            match (*self, byte) {
                (Self::Tilde, b'.') => return Typed { send, leave: true },
                (Self::LineStart, b'~') => {
                    *self = Self::Tilde;
                    continue;
                }
                (Self::Tilde, b'~') => send.push(b'~'),
                (Self::Tilde, other) => send.extend([b'~', other]),
                (_, other) => send.push(other),
            }
            *self = if matches!(byte, b'\r' | b'\n') { Self::LineStart } else { Self::Inside };
        }
        Typed { send, leave: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(pieces: &[&str]) -> (String, bool) {
        let mut escape = Escape::default();
        let mut sent = Vec::new();
        for piece in pieces {
            let typed = escape.filter(piece.as_bytes());
            sent.extend(typed.send);
            if typed.leave {
                return (String::from_utf8(sent).unwrap(), true);
            }
        }
        (String::from_utf8(sent).unwrap(), false)
    }

    #[test]
    fn only_a_tilde_and_a_dot_at_the_beginning_of_a_line_leave() {
        assert_eq!(run(&["~."]), (String::new(), true));
        assert_eq!(run(&["ls\r", "~", "."]), ("ls\r".into(), true));
        assert_eq!(run(&["a~.\r"]), ("a~.\r".into(), false));
        assert_eq!(run(&["~~.\r"]), ("~.\r".into(), false));
        assert_eq!(run(&["~x"]), ("~x".into(), false));
        assert_eq!(run(&["~\r~."]), ("~\r".into(), true));
    }
}

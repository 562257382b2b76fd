//! A marked block of lines in a file that belongs to others too, such as `/etc/hosts`.

const BEGIN: &str = "# BEGIN banger: these lines are replaced at each start";
const END: &str = "# END banger";

/// `old` with banger's block replaced by `lines`, at its place or else at the end; without lines there is no block.
/// Every byte of the others' lines stays. A block whose end is missing reaches to the next empty line, so that nobody's
/// lines are lost.
pub(crate) fn replace<S: AsRef<str>>(old: &[u8], lines: &[S]) -> Vec<u8> {
    let mut text = Vec::with_capacity(old.len() + 128);
    let mut placed = false;
    let mut inside = false;
    for whole in old.split_inclusive(|byte| *byte == b'\n') {
        let line = whole.strip_suffix(b"\n").unwrap_or(whole);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.starts_with(b"# BEGIN banger") {
            inside = true;
            if !placed {
                push_block(&mut text, lines);
                placed = true;
            }
        } else if inside {
            inside = line != END.as_bytes() && !line.is_empty();
        } else {
            text.extend_from_slice(whole);
        }
    }
    if !placed {
        push_block(&mut text, lines);
    }
    text
}

fn push_block<S: AsRef<str>>(text: &mut Vec<u8>, lines: &[S]) {
    if lines.is_empty() {
        return;
    }
    if text.last().is_some_and(|last| *last != b'\n') {
        text.push(b'\n');
    }
    let mut line = |line: &str| {
        text.extend_from_slice(line.as_bytes());
        text.push(b'\n');
    };
    line(BEGIN);
    for entry in lines {
        // One entry is one line, whatever the host sent.
        let entry: String = entry.as_ref().chars().filter(|c| !c.is_control() || *c == '\t').collect();
        line(&entry);
    }
    line(END);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replaced(old: &str, lines: &[&str]) -> String {
        String::from_utf8(replace(old.as_bytes(), lines)).unwrap()
    }

    #[test]
    fn a_block_is_added_replaced_and_removed_and_the_rest_stays() {
        let first = replaced("127.0.0.1 localhost\n", &["127.0.1.1 one"]);
        assert_eq!(first, format!("127.0.0.1 localhost\n{BEGIN}\n127.0.1.1 one\n{END}\n"));
        let second = replaced(&format!("{first}10.0.0.1 mine\n"), &["127.0.1.1 two"]);
        assert_eq!(second, format!("127.0.0.1 localhost\n{BEGIN}\n127.0.1.1 two\n{END}\n10.0.0.1 mine\n"));
        assert_eq!(replaced(&second, &[]), "127.0.0.1 localhost\n10.0.0.1 mine\n");
        assert_eq!(replaced(&second, &["127.0.1.1 two"]), second);
    }

    #[test]
    fn the_others_lines_keep_every_byte() {
        for old in [&b"a # caf\xe9\n"[..], b"a\r\nb\r\n", b"\n\n a", b"\xff\xfe\0\n"] {
            let with = replace(old, &["one"]);
            assert!(with.starts_with(old), "{}", with.escape_ascii());
            let without = replace::<&str>(&with, &[]);
            // The block needs a line of its own.
            assert_eq!(
                without.strip_suffix(b"\n").unwrap_or(&without),
                old.strip_suffix(b"\n").unwrap_or(old)
            );
            assert_eq!(replace(&with, &["one"]), with);
            assert_eq!(replace::<&str>(old, &[]), old);
        }
    }

    #[test]
    fn a_block_without_its_end_takes_nobodys_lines() {
        assert_eq!(replaced("# BEGIN banger\nours\n\nmine\n", &[]), "mine\n");
    }

    #[test]
    fn an_entry_stays_one_line() {
        assert_eq!(replaced("", &["a\nb\tc\r"]), format!("{BEGIN}\nab\tc\n{END}\n"));
    }
}

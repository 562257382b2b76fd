//! A marked block of lines in a file that belongs to others too, such as `/etc/hosts`.

const BEGIN: &str = "# BEGIN banger: these lines are replaced at each start";
const END: &str = "# END banger";

/// `old` with banger's block replaced by `lines`, at its place or else at the end; without lines there is no block.
/// A block whose end is missing reaches to the next empty line, so that nobody's lines are lost.
pub(crate) fn replace<S: AsRef<str>>(old: &str, lines: &[S]) -> String {
    let mut text = String::with_capacity(old.len() + 128);
    let mut placed = false;
    let mut inside = false;
    for line in old.lines() {
        if line.starts_with("# BEGIN banger") {
            inside = true;
            if !placed {
                push_block(&mut text, lines);
                placed = true;
            }
        } else if inside {
            inside = line != END && !line.is_empty();
        } else {
            text.push_str(line);
            text.push('\n');
        }
    }
    if !placed {
        push_block(&mut text, lines);
    }
    text
}

fn push_block<S: AsRef<str>>(text: &mut String, lines: &[S]) {
    if lines.is_empty() {
        return;
    }
    text.push_str(BEGIN);
    text.push('\n');
    for line in lines {
        // One entry is one line, whatever the host sent.
        text.extend(line.as_ref().chars().filter(|c| !c.is_control() || *c == '\t'));
        text.push('\n');
    }
    text.push_str(END);
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_added_replaced_and_removed_and_the_rest_stays() {
        let first = replace("127.0.0.1 localhost\n", &["127.0.1.1 one"]);
        assert_eq!(first, format!("127.0.0.1 localhost\n{BEGIN}\n127.0.1.1 one\n{END}\n"));
        let second = replace(&format!("{first}10.0.0.1 mine\n"), &["127.0.1.1 two"]);
        assert_eq!(second, format!("127.0.0.1 localhost\n{BEGIN}\n127.0.1.1 two\n{END}\n10.0.0.1 mine\n"));
        assert_eq!(replace::<&str>(&second, &[]), "127.0.0.1 localhost\n10.0.0.1 mine\n");
        assert_eq!(replace(&second, &["127.0.1.1 two"]), second);
    }

    #[test]
    fn a_block_without_its_end_takes_nobodys_lines() {
        assert_eq!(replace::<&str>("# BEGIN banger\nours\n\nmine\n", &[]), "mine\n");
    }

    #[test]
    fn an_entry_stays_one_line() {
        assert_eq!(replace("", &["a\nb\tc\r"]), format!("{BEGIN}\nab\tc\n{END}\n"));
    }
}

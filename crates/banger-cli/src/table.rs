//! Rows under headings as text: a line is a row, on a terminal and in a pipe, and nothing is ever wrapped.

use unicode_width::UnicodeWidthStr;

/// Between two columns.
const GAP: usize = 2;
/// A column that is cut keeps so much, or its heading.
const LEAST: usize = 8;
/// Columns that are copied into the next command, and so never cut: the first, and these.
const WHOLE: &[&str] = &["ID", "DIGEST"];

/// The lines. `right` names the columns of numbers. Where a `width` is given the widest columns of words are cut
/// until the table fits it, as far as that goes.
pub(crate) fn text(headings: &[&str], right: &[usize], rows: &[Vec<String>], width: Option<usize>) -> String {
    let mut widths: Vec<usize> = headings.iter().map(|heading| heading.width()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.width());
        }
    }
    if let Some(most) = width {
        fit(&mut widths, headings, right, most);
    }
    let headings: Vec<String> = headings.iter().map(|heading| (*heading).to_owned()).collect();
    let mut text = String::new();
    for row in std::iter::once(&headings).chain(rows) {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let cell = cut(cell, *width);
            let space = " ".repeat(width.saturating_sub(cell.width()));
            let gap = " ".repeat(GAP);
            line.push_str(&if right.contains(&column) {
                format!("{space}{cell}{gap}")
            } else {
                format!("{cell}{space}{gap}")
            });
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn fit(widths: &mut [usize], headings: &[&str], right: &[usize], most: usize) {
    let least = |column: usize| LEAST.max(headings[column].width());
    let words =
        |column: &usize| *column > 0 && !right.contains(column) && !WHOLE.contains(&headings[*column]);
    loop {
        let total = widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1);
        let columns = (0..widths.len()).filter(words).filter(|column| widths[*column] > least(*column));
        let Some(widest) = columns.max_by_key(|column| widths[*column]).filter(|_| total > most) else {
            return;
        };
        widths[widest] -= 1;
    }
}

/// The beginning of a text that is too wide, and a mark that there is more.
pub(crate) fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut beginning = String::new();
    for letter in text.chars() {
        beginning.push(letter);
        if beginning.width() >= width {
            beginning.pop();
            break;
        }
    }
    format!("{}…", beginning.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Vec<String>> {
        let row = |cells: [&str; 4]| cells.map(str::to_owned).to_vec();
        vec![
            row(["box", "0123456789ab", "5 MiB", "Debian bookworm by mmdebstrap"]),
            row(["a-name-that-is-long", "0123456789ac", "12 GiB", "the file /srv/größe.ext4"]),
        ]
    }

    #[test]
    fn a_pipe_gets_everything() {
        let text = text(&["NAME", "ID", "DISK", "SOURCE"], &[2], &rows(), None);
        insta::assert_snapshot!(text, @r"
        NAME                 ID              DISK  SOURCE
        box                  0123456789ab   5 MiB  Debian bookworm by mmdebstrap
        a-name-that-is-long  0123456789ac  12 GiB  the file /srv/größe.ext4
        ");
    }

    #[test]
    fn a_terminal_gets_what_fits() {
        let narrow = text(&["NAME", "ID", "DISK", "SOURCE"], &[2], &rows(), Some(60));
        insta::assert_snapshot!(narrow, @r"
        NAME                 ID              DISK  SOURCE
        box                  0123456789ab   5 MiB  Debian bookworm…
        a-name-that-is-long  0123456789ac  12 GiB  the file /srv/gr…
        ");
        // What is copied into the next command stays whole, however narrow it is.
        let text = text(&["NAME", "ID", "DISK", "SOURCE"], &[2], &rows(), Some(1));
        assert!(text.contains("a-name-that-is-long  0123456789ac") && text.contains("Debian…"), "{text}");
    }

    #[test]
    fn wide_letters_are_two_columns() {
        assert_eq!(cut("漢字漢字", 5), "漢字…");
        assert_eq!(cut("漢字漢字", 4), "漢…");
        assert_eq!(cut("abc", 3), "abc");
    }
}

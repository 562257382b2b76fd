//! How far long work is: one moving line on a terminal, plain lines elsewhere, and nothing where it is quick.

use std::time::{Duration, Instant};

use banger_proto::ByteSize;
use banger_proto::daemon::{JobEventKind, ProgressUnit};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use unicode_width::UnicodeWidthStr;

use crate::doc;
use crate::table::cut;
use crate::terminal;
use crate::ui::Ui;

/// What is over sooner shows nothing on a terminal.
const QUICK: Duration = Duration::from_millis(300);
/// A stage that is over sooner gets no plain line.
const BRIEF: Duration = Duration::from_secs(2);
/// Between two plain lines of the same stage.
const AGAIN: Duration = Duration::from_secs(15);
/// The spinner and its space.
const SPINNER: usize = 2;
/// So much of what is done is named on the narrowest terminal.
const LEAST: usize = 12;
/// How often [`Progress::tick`] is to be called.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// What is told where no person watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lines {
    /// Every stage that takes a while.
    Stages,
    /// Notes and warnings only: a guest command's streams are about to be ours.
    Notes,
}

/// A display of progress.
#[derive(Debug)]
pub(crate) struct Progress {
    ui: Ui,
    lines: Lines,
    title: String,
    began: Instant,
    bar: Option<ProgressBar>,
    stage: Option<Stage>,
    told: Vec<String>,
}

#[derive(Debug)]
struct Stage {
    text: String,
    began: Instant,
    told: Option<Instant>,
    done: u64,
    total: u64,
    unit: ProgressUnit,
}

impl Progress {
    /// A display for one piece of work; `title` begins every line of it.
    pub(crate) fn new(ui: Ui, lines: Lines, title: impl Into<String>) -> Self {
        Self {
            ui,
            lines,
            title: title.into(),
            began: Instant::now(),
            bar: None,
            stage: None,
            told: Vec::new(),
        }
    }

    /// A new stage begins.
    pub(crate) fn stage(&mut self, text: &str) {
        let now = Instant::now();
        if self.stage.as_ref().is_some_and(|stage| stage.text == text) {
            return;
        }
        let unit = ProgressUnit::Items;
        self.stage = Some(Stage { text: text.to_owned(), began: now, told: None, done: 0, total: 0, unit });
        self.tick();
    }

    /// An event of a job.
    pub(crate) fn event(&mut self, event: &JobEventKind) {
        match event {
            JobEventKind::Stage { text } => self.stage(text),
            JobEventKind::Progress { done, total, unit } => {
                if let Some(stage) = &mut self.stage {
                    (stage.done, stage.total, stage.unit) = (*done, *total, *unit);
                }
                self.tick();
            }
            JobEventKind::Note { text } => self.tell(text, |ui, text| ui.note(text)),
            JobEventKind::Warning { text } => self.tell(text, |ui, text| ui.warning(text)),
            JobEventKind::Finished { .. } => self.clear(),
            JobEventKind::Heartbeat {} => {}
        }
    }

    /// Time passed.
    pub(crate) fn tick(&mut self) {
        let Some(stage) = &mut self.stage else { return };
        if self.ui.moves() {
            if self.began.elapsed() < QUICK {
                return;
            }
            let bar = self.bar.get_or_insert_with(bar);
            // How far it is has to be seen, and the end of a name need not.
            let how_far = stage.how_far(stage.began.elapsed().as_secs());
            let left = usize::from(terminal::size().cols).saturating_sub(SPINNER + how_far.width());
            let what = cut(&format!("{}: {}", self.title, stage.text), left.max(LEAST));
            bar.set_message(format!("{what}{how_far}"));
            bar.tick();
        } else if self.lines == Lines::Stages {
            let due = match stage.told {
                None => stage.began.elapsed() >= BRIEF,
                Some(told) => stage.done > 0 && told.elapsed() >= AGAIN,
            };
            if due {
                // A line that stays: what is measured meanwhile belongs to the later ones.
                let text = if stage.told.is_none() { stage.text.clone() } else { stage.describe() };
                stage.told = Some(Instant::now());
                self.ui.status(format!("{}: {text}", self.title));
            }
        }
    }

    /// Takes the line away.
    pub(crate) fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        self.stage = None;
    }

    fn tell(&mut self, text: &str, how: impl Fn(Ui, &str)) {
        if self.told.iter().any(|told| told == text) {
            return;
        }
        self.told.push(text.to_owned());
        match &self.bar {
            Some(bar) => bar.suspend(|| how(self.ui, text)),
            None => how(self.ui, text),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Stage {
    fn describe(&self) -> String {
        format!("{}{}", self.text, self.how_far(self.began.elapsed().as_secs()))
    }

    /// What is known of it after so many seconds.
    fn how_far(&self, seconds: u64) -> String {
        let size = |count| match self.unit {
            ProgressUnit::Bytes => ByteSize::bytes(count).to_string(),
            ProgressUnit::Items => count.to_string(),
        };
        let mut text = String::new();
        match (self.done, self.total) {
            (0, 0) => {}
            (done, 0) => text.push_str(&format!(", {}", size(done))),
            (done, total) => text.push_str(&format!(", {} of {}", size(done), size(total))),
        }
        if self.unit == ProgressUnit::Bytes && seconds > 0 && self.done > 0 {
            let rate = self.done / seconds;
            text.push_str(&format!(", {}/s", ByteSize::bytes(rate)));
            if let Some(left) =
                self.total.saturating_sub(self.done).checked_div(rate).filter(|left| *left > 0)
            {
                text.push_str(&format!(", {} left", doc::duration(i64::try_from(left).unwrap_or(i64::MAX))));
            }
        }
        if seconds >= 2 {
            text.push_str(&format!(" ({seconds} s)"));
        }
        text
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
        bar.set_style(style);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_says_what_is_known() {
        let mut stage = Stage {
            text: "write".into(),
            began: Instant::now(),
            told: None,
            done: 0,
            total: 0,
            unit: ProgressUnit::Bytes,
        };
        assert_eq!(stage.describe(), "write");
        stage.done = 3 << 20;
        assert_eq!(stage.describe(), "write, 3 MiB");
        stage.total = 6 << 20;
        assert_eq!(stage.describe(), "write, 3 MiB of 6 MiB");
        assert_eq!(stage.how_far(1), ", 3 MiB of 6 MiB, 3 MiB/s, 1s left");
        stage.total = 603 << 20;
        assert_eq!(stage.how_far(3), ", 3 MiB of 603 MiB, 1 MiB/s, 10m left (3 s)");
        (stage.done, stage.unit) = (2, ProgressUnit::Items);
        assert_eq!(stage.how_far(1), format!(", 2 of {}", 603 << 20));
    }
}

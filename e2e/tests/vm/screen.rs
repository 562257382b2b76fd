//! Programs that take the whole screen, and shells, as a person uses them: through a terminal, which an emulator shows.

use anyhow::{Context, ensure};
use e2e::pty::{Pty, Settings};
use e2e::world::{SMALL, World};
use e2e::{KERNEL, SYSVINIT};

use crate::Body;

pub(crate) const TESTS: &[(&str, Body)] =
    &[("screen_is_an_editors_at_every_size", full), ("screen_of_a_run_is_a_shells", shells)];

/// A terminal with a program on it, and what it shows.
struct Screen {
    pty: Pty,
    emulator: vt100::Parser,
    before: Settings,
}

impl Screen {
    /// `banger` with these arguments on a terminal of 30 by 100.
    fn start(world: &World, args: &[&str]) -> anyhow::Result<Self> {
        let mut command = world.command(args);
        command.env("TERM", "xterm-256color");
        let pty = Pty::start(command, 30, 100)?;
        let before = pty.settings()?;
        Ok(Self { pty, emulator: vt100::Parser::new(30, 100, 0), before })
    }

    fn resize(&mut self, rows: u16, cols: u16) -> anyhow::Result<()> {
        self.emulator.screen_mut().set_size(rows, cols);
        self.pty.resize(rows, cols)
    }

    /// Waits until the lines of the screen, without what is blank at their ends, are so.
    fn until(&mut self, what: &str, so: impl Fn(&[String]) -> bool) -> anyhow::Result<()> {
        self.pty.until_screen(&mut self.emulator, what, |screen| {
            let lines = screen.rows(0, screen.size().1).map(|line| line.trim_end().to_owned());
            so(&lines.collect::<Vec<_>>())
        })
    }

    /// Waits for a text anywhere.
    fn shows(&mut self, text: &str) -> anyhow::Result<()> {
        self.until(&format!("{text:?} is shown"), |lines| lines.iter().any(|line| line.contains(text)))
    }

    /// Waits for what root's shell asks with.
    fn prompts(&mut self) -> anyhow::Result<()> {
        self.until("a shell prompts", |lines| lines.iter().any(|line| line.ends_with('#')))
    }

    /// The program's end: its status, and a terminal as it was before. Returns the screen.
    fn end(mut self) -> anyhow::Result<(i32, String)> {
        let status = self.pty.end()?;
        self.pty.until_screen(&mut self.emulator, "the rest is shown", |_| true)?;
        let settings = self.pty.settings()?;
        ensure!(settings == self.before, "{settings:?} instead of {:?}", self.before);
        let screen = self.emulator.screen();
        ensure!(!screen.alternate_screen() && !screen.hide_cursor(), "the program's screen stays");
        ensure!(!screen.bracketed_paste() && !screen.application_cursor(), "the keys stay the program's");
        ensure!(
            screen.mouse_protocol_mode() == vt100::MouseProtocolMode::None,
            "the mouse stays the program's"
        );
        Ok((status, screen.contents()))
    }
}

fn full(world: &mut World) -> anyhow::Result<()> {
    let line = [
        "vm", "create", "--name", "box", "--image", SYSVINIT, "--kernel", KERNEL, "--memory", "256MiB",
        "--vcpu", "1", "--no-nat", "--wait", "agent",
    ];
    world.ok(&line)?;
    let exec = ["vm", "exec", "-it", "box", "--"];
    edit(world, &[&exec[..], &["vi", "/root/plain"]].concat(), "/root/plain", 0)?;
    // The last line is the one of tmux itself.
    let tmux = ["tmux", "-u", "new-session", "vi /root/inside"];
    edit(world, &[&exec[..], &tmux].concat(), "/root/inside", 1)?;
    look(world, &[&exec[..], &["htop"]].concat())
}

/// Types a text into an editor, with its window made smaller and larger on the way, and saves it.
fn edit(world: &World, args: &[&str], file: &str, of_others: usize) -> anyhow::Result<()> {
    let long: String = ('a'..='z').chain('0'..='9').cycle().take(90).collect();
    let long = long.as_str();
    let text = [long, "\tit's \"here\" ~. and €", "a ~. ~~ ~?"];
    let mut screen = Screen::start(world, args)?;
    let last = |rows: usize| rows - 1 - of_others;
    // What it says of the file comes last, and what is typed before that it may throw away.
    screen.until("the editor is there", |lines| {
        lines[1..last(30)].iter().all(|line| line == "~") && lines[last(30)].contains("[New")
    })?;
    screen.pty.press(b"i")?;
    screen.pty.press(text.join("\r").as_bytes())?;
    // A line that was typed in one go is whole here: 90 letters have room in 100 columns.
    let shown = "        it's \"here\" ~. and €";
    let at = |lines: &[String], rows: usize, expected: &[&str]| {
        let (of_text, rest) = lines[..last(rows)].split_at(expected.len());
        of_text == expected && rest.iter().all(|line| line == "~")
    };
    screen.until("the text is there", |lines| at(lines, 30, &[long, shown, text[2]]))?;
    screen.pty.press(b"\x1b")?;
    screen.resize(20, 60)?;
    let (head, tail) = long.split_at(60);
    screen.until("it is drawn in 20 by 60", |lines| at(lines, 20, &[head, tail, shown, text[2]]))?;
    screen.resize(40, 120)?;
    screen.until("it is drawn in 40 by 120", |lines| at(lines, 40, &[long, shown, text[2]]))?;
    screen.pty.press(b":wq\r")?;
    let (status, left) = screen.end()?;
    ensure!(status == 0, "{args:?} ended with {status}: {left}");
    let written = world.exec("box", &["cat", file])?.stdout;
    ensure!(
        written == format!("{}\n", text.join("\n")).into_bytes(),
        "{:?}",
        String::from_utf8_lossy(&written)
    );
    Ok(())
}

/// Watches processes, in colours, until a key ends it.
fn look(world: &World, args: &[&str]) -> anyhow::Result<()> {
    let mut screen = Screen::start(world, args)?;
    let keys = "F1Help";
    let drawn = |lines: &[String]| {
        lines.last().is_some_and(|line| line.starts_with(keys))
            && lines.iter().any(|line| line.contains("PID USER"))
    };
    screen.until("htop is drawn in 30 by 100", drawn)?;
    let colours = (0..30).flat_map(|row| (0..100).map(move |col| (row, col)));
    let is_coloured = |(row, col)| {
        let cell = screen.emulator.screen().cell(row, col);
        cell.is_some_and(|cell| cell.fgcolor() != vt100::Color::Default)
    };
    ensure!(colours.filter(|at| is_coloured(*at)).count() > 20, "there are no colours");
    screen.resize(20, 60)?;
    screen.until("htop is drawn in 20 by 60", drawn)?;
    screen.pty.press(b"q")?;
    let (status, left) = screen.end()?;
    ensure!(status == 0, "htop ended with {status}: {left}");
    Ok(())
}

/// `vm run` on a terminal: a command, a shell, and a shell whose VM goes with it.
fn shells(world: &mut World) -> anyhow::Result<()> {
    let run =
        |flags: &[&'static str], rest: &[&'static str]| [&["vm", "run"][..], flags, SMALL, rest].concat();
    let command = ["--", "sh", "-c", "tty; stty size; read word; echo \"[$word]\"; exit 7"];
    let mut screen = Screen::start(world, &run(&["--rm", "-it"], &command))?;
    screen.shows("30 100")?;
    screen.pty.press(b"\x03typed\r")?;
    let (status, left) = screen.end()?;
    ensure!(status == 130 && !left.contains("still runs"), "{status}: {left}");
    let mut screen = Screen::start(world, &run(&["--rm", "-it"], &command))?;
    screen.shows("/dev/pts/")?;
    screen.pty.press(b"typed\r")?;
    let (status, left) = screen.end()?;
    ensure!(status == 7 && left.contains("[typed]") && !left.contains("still runs"), "{status}: {left}");
    ensure!(world.vms()?.is_empty(), "--rm leaves {:?}", world.vms()?);

    let mut screen = Screen::start(world, &run(&["--name", "box"], &[]))?;
    screen.prompts()?;
    screen.pty.press(b"tty; cd /etc; echo on-$((6 * 7)) $PWD\r")?;
    screen.shows("on-42 /etc")?;
    screen.pty.press(b"exit 3\r")?;
    let (status, left) = screen.end()?;
    let last = left.trim_end().lines().last().context("nothing is shown")?;
    ensure!(status == 3, "{status}: {left}");
    ensure!(last == "VM box still runs; stop it with: banger vm stop box", "{left}");
    ensure!(world.vm_state("box")? == "running");

    let mut screen = Screen::start(world, &run(&["--rm"], &[]))?;
    screen.prompts()?;
    screen.pty.press(b"\x04")?;
    let (status, left) = screen.end()?;
    ensure!(status == 0 && !left.contains("still runs"), "{status}: {left}");
    ensure!(world.vms()? == ["box"], "--rm leaves {:?}", world.vms()?);
    Ok(())
}

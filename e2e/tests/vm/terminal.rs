//! `vm exec -it` on a real terminal: every key is the guest's, every byte of the screen is the program's, and the terminal
//! is given back as it was.

use std::time::Duration;

use anyhow::{Context, ensure};
use e2e::pty::Pty;
use e2e::world::World;
use sha2::{Digest, Sha256};

use crate::Body;

pub(crate) const TESTS: &[(&str, Body)] = &[
    ("terminal_passes_keys_sizes_and_colours", keys),
    ("terminal_escapes_as_ssh_does", escapes),
    ("terminal_is_put_right_behind_what_waits", behind),
    ("terminal_survives_the_daemon", daemon),
    ("terminal_is_given_back", given_back),
    ("terminal_carries_pastes_and_screens_exactly", exactly),
    ("terminal_without_a_keyboard_leaves_the_keys_here", no_keyboard),
];

/// `vm exec` with these flags and this command of a shell, on a terminal of 40 by 100.
fn exec(world: &World, flags: &str, script: &str) -> anyhow::Result<Pty> {
    let mut command = world.command(&["vm", "exec", flags, "term", "--", "sh", "-c", script]);
    command.env("TERM", "xterm-256color").env("COLORTERM", "truecolor");
    Pty::start(command, 40, 100)
}

fn keys(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("term")?;
    let mut pty = exec(world, "-it", "PS1='ready> ' exec sh -i")?;
    let before = pty.settings()?;
    pty.until("ready> ")?;
    ensure!(pty.settings()? != before, "the terminal is not in raw mode");
    pty.press(b"stty size; echo $TERM $COLORTERM $LC_CTYPE.\r")?;
    pty.until("40 100\r\nxterm-256color truecolor C.UTF-8.\r\nready> ")?;
    pty.resize(51, 117)?;
    // The size comes by the session's control stream, apart from what is typed.
    pty.press(b"until [ \"$(stty size)\" = '51 117' ]; do sleep 0.1; done; echo has-new-si''ze\r")?;
    pty.until("has-new-size\r\n")?;
    // Ctrl-C ends the guest's program, and neither its shell nor us.
    pty.press(b"echo sle''eps; sleep 1000\r")?;
    pty.until("sleeps\r\n")?;
    pty.press(b"\x03")?;
    pty.press(b"echo status-$?\r")?;
    pty.until("status-130\r\n")?;
    // Every one of them arrives as it is where a program wants it so.
    pty.press(b"stty raw -echo; echo is-r''aw; head -c 4 | od -An -tx1; stty sane; echo\r")?;
    pty.until("is-raw")?;
    pty.press(b"\x03\x1a\x1c\x11")?;
    pty.until("03 1a 1c 11")?;
    pty.press(b"\rexit 7\r")?;
    ensure!(pty.end()? == 7);
    ensure!(pty.settings()? == before, "{:?} instead of {before:?}", pty.settings()?);
    Ok(())
}

fn escapes(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("term")?;
    let script =
        "printf '\\033[?1049h\\033[?25lup'; stty -echo; read line; echo \"[$line]\"; exec sleep 1234";
    let mut pty = exec(world, "-it", script)?;
    let before = pty.settings()?;
    pty.until("up")?;
    pty.press(b"~?")?;
    pty.until("~^Z")?;
    pty.press(b"~~.not left~.\r")?;
    pty.until("[~.not left~.]\r\n")?;
    pty.press(b"~.")?;
    ensure!(pty.end()? == 125);
    // The program did not get to switch its screen off.
    pty.until("\x1b[?25h\x1b[?1049l\x1b[m")?;
    pty.until("left with ~.")?;
    ensure!(pty.settings()? == before, "{:?} instead of {before:?}", pty.settings()?);
    world.until("what it ran is ended", || {
        // The pattern does not match itself.
        let look = "! grep -l 'sleep.123[4]' /proc/[0-9]*/cmdline";
        Ok(world.run(&["vm", "exec", "term", "--", "sh", "-c", look])?.status == 0)
    })
}

/// What the program has left switched on goes off when all that it wrote is out, though the terminal takes it late.
fn behind(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("term")?;
    let script = "printf '\\033[?2004hup'; stty -echo; read go; seq 10000; echo the-last; exec sleep 1234";
    let mut pty = exec(world, "-it", script)?;
    pty.until("up")?;
    pty.hold(true)?;
    pty.press(b"\r")?;
    world.until("it has written all", || {
        let look = "grep -lx sleep /proc/[0-9]*/comm";
        Ok(world.run(&["vm", "exec", "term", "--", "sh", "-c", look])?.status == 0)
    })?;
    pty.press(b"\r~.")?;
    // It has two seconds for it.
    std::thread::sleep(Duration::from_millis(500));
    pty.hold(false)?;
    ensure!(pty.end()? == 125);
    // How much of it had come here when it was left is not known, but more than the terminal had taken.
    let before = pty.until("\x1b[?2004l\x1b[m")?.len();
    let after = String::from_utf8_lossy(&pty.shown()).into_owned();
    let numbers = after.lines().filter(|line| line.parse::<u32>().is_ok()).count();
    ensure!(
        before > 8192 && numbers == 0,
        "{before} bytes came before, and {numbers} lines after: {after:?}"
    );
    Ok(())
}

fn daemon(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("term")?;
    let mut pty = exec(world, "-it", "stty -echo; while read line; do echo \"[$line]\"; done")?;
    let before = pty.settings()?;
    for turn in 0..3 {
        pty.press(format!("turn {turn}\r").as_bytes())?;
        pty.until(&format!("[turn {turn}]\r\n"))?;
        world.kill_daemon()?;
    }
    pty.press(b"and on\r\x04")?;
    pty.until("[and on]\r\n")?;
    ensure!(pty.end()? == 0);
    ensure!(pty.settings()? == before, "{:?} instead of {before:?}", pty.settings()?);
    Ok(())
}

fn given_back(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("term")?;
    for signal in ["TERM", "HUP", "QUIT", "INT"] {
        let mut pty = exec(world, "-it", "echo up; sleep 1000")?;
        let before = pty.settings()?;
        pty.until("up")?;
        ensure!(pty.settings()? != before, "the terminal is not in raw mode");
        pty.signal(signal)?;
        ensure!(pty.end()? == 125, "after {signal}");
        ensure!(pty.settings()? == before, "after {signal}: {:?}", pty.settings()?);
    }
    // Not even asked.
    for signal in ["KILL", "ABRT"] {
        let mut pty = exec(world, "-it", "printf '\\033[?1049hup'; sleep 1000")?;
        let before = pty.settings()?;
        pty.until("up")?;
        pty.signal(signal)?;
        ensure!(pty.end()? > 128, "after {signal}");
        pty.until_settings(true, &before)?;
        pty.until("\x1b[?47l")?;
    }
    stopped(world)?;
    // The VM dies under it.
    let mut pty = exec(world, "-it", "printf '\\033[?2004hup'; sleep 1000")?;
    let before = pty.settings()?;
    pty.until("up")?;
    world.ok(&["vm", "kill", "term"])?;
    ensure!(pty.end()? == 125);
    pty.until("\x1b[?2004l")?;
    ensure!(pty.settings()? == before, "after the VM's death: {:?}", pty.settings()?);
    Ok(())
}

/// Stopped, it gives the terminal to the shell that stopped it, and takes it again.
fn stopped(world: &World) -> anyhow::Result<()> {
    let mut pty =
        exec(world, "-it", "stty -echo; echo up; while read line; do stty size; echo \"[$line]\"; done")?;
    let before = pty.settings()?;
    pty.until("up")?;
    for turn in 0..2 {
        if turn == 0 {
            pty.signal("TSTP")?;
        } else {
            pty.press(b"~\x1a")?;
        }
        pty.until_settings(true, &before)?;
        let state = || -> anyhow::Result<String> {
            let status = std::fs::read_to_string(format!("/proc/{}/status", pty.pid()))?;
            Ok(status.lines().find(|line| line.starts_with("State:")).context("no state")?.to_owned())
        };
        world.until("it is stopped", || Ok(state()?.contains("T (stopped)")))?;
        pty.resize(20 + turn, 70)?;
        pty.signal("CONT")?;
        pty.until_settings(false, &before)?;
        let wanted = format!("{} 70\r\n[on]\r\n", 20 + turn);
        world.until("it goes on with the new size", || {
            pty.press(b"on\r")?;
            pty.until("[on]\r\n").map(|shown| String::from_utf8_lossy(&shown).ends_with(&wanted))
        })?;
    }
    pty.press(b"\x04")?;
    ensure!(pty.end()? == 0);
    ensure!(pty.settings()? == before, "after its end: {:?}", pty.settings()?);
    Ok(())
}

fn exactly(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("term")?;
    // What an editor gets when 400 KB are pasted: marks around, and inside what would leave if it were typed.
    let mut pasted = b"\x1b[200~".to_vec();
    (0..8000)
        .for_each(|line| pasted.extend(format!("~. line {line} of\twhat \x03\x1a is pasted~~\r").bytes()));
    pasted.extend(b"\x1b[201~");
    let script = format!(
        "stty raw -echo; printf '\\033[?2004hup'; head -c {} | sha256sum; printf '\\033[?2004l'",
        pasted.len()
    );
    let mut pty = exec(world, "-it", &script)?;
    pty.until("\x1b[?2004hup")?;
    pty.press(&pasted)?;
    let sum: String = Sha256::digest(&pasted).iter().map(|byte| format!("{byte:02x}")).collect();
    pty.until(&sum)?;
    ensure!(pty.end()? == 0);

    // A screen of bytes of every kind: the alternate screen, colours, and what is no text at all.
    let mut screen = b"\x1b[?1049h\x1b[2J\x1b[H\x1b[38;2;1;2;3m".to_vec();
    (0..200_000u32).for_each(|at| screen.push((at.wrapping_mul(2_654_435_761) >> 24) as u8));
    screen.extend(b"\x1b[?1049l");
    world
        .run_with(&["vm", "exec", "-i", "term", "--", "sh", "-c", "cat >/root/screen"], screen.clone())?
        .expect(0)?;
    let mut pty = exec(world, "-it", "stty raw -echo; printf BEGIN; cat /root/screen; printf THE-END")?;
    pty.until("BEGIN")?;
    let mut shown = pty.until("THE-END")?;
    shown.truncate(shown.len() - "THE-END".len());
    ensure!(shown.len() == screen.len(), "{} bytes of {} are shown", shown.len(), screen.len());
    ensure!(shown == screen, "the screen's bytes differ");
    ensure!(pty.end()? == 0);
    Ok(())
}

/// Nobody reads the keyboard for the guest: Ctrl-C is ours, and sent on as a signal.
fn no_keyboard(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("term")?;
    let mut pty = exec(world, "-t", "stty size; sleep 1000")?;
    let before = pty.settings()?;
    pty.until("40 100")?;
    ensure!(pty.settings()? == before, "the terminal is in raw mode, and nobody reads it");
    pty.press(b"\x03")?;
    ensure!(pty.end()? == 130);
    Ok(())
}

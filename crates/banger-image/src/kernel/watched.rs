//! Programs that take long: told to end when their work is no longer wanted, and watched meanwhile.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use banger_sys::command::{CommandError, Program, last_lines};

use super::PullError;
use crate::Progress;

/// How often the watcher looks.
const TICK: Duration = Duration::from_millis(200);
/// Of a program's output, what is kept.
const MAX_OUTPUT: u64 = 1 << 20;

/// Runs a program to its end and calls `watch` meanwhile. Ends it, with what it has started, when the work
/// is cancelled or takes longer than `limit`, or when this process ends.
pub(crate) fn run(
    program: &Program,
    limit: Duration,
    progress: &dyn Progress,
    watch: impl Fn(),
) -> Result<(), PullError> {
    let io = |source| CommandError::Io { program: program.path().to_owned(), source };
    let mut command = program.to_bound_command();
    command.stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(io)?;
    let (said, heard) = mpsc::channel();
    let stderr = child.stderr.take();
    let listener = std::thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(mut stderr) = stderr {
            // A read error ends what it says as an end of file does: the exit status tells the rest.
            let _ = stderr.by_ref().take(MAX_OUTPUT).read_to_end(&mut text);
            let _ = std::io::copy(&mut stderr, &mut std::io::sink());
        }
        // Nobody listens any more where the program was ended.
        let _ = said.send(text);
    });
    let begun = Instant::now();
    let text = loop {
        match heard.recv_timeout(TICK) {
            Ok(text) => break text,
            Err(RecvTimeoutError::Disconnected) => break Vec::new(),
            Err(RecvTimeoutError::Timeout) => watch(),
        }
        if progress.cancelled() {
            end(&mut child).map_err(io)?;
            return Err(PullError::Cancelled);
        }
        if begun.elapsed() > limit {
            end(&mut child).map_err(io)?;
            return Err(CommandError::TimedOut { program: program.path().to_owned(), timeout: limit }.into());
        }
    };
    let status = child.wait().map_err(io)?;
    // It has sent its text, so it is at its end.
    let _ = listener.join();
    if status.success() {
        return Ok(());
    }
    let stderr = last_lines(&String::from_utf8_lossy(&text), 5);
    Err(CommandError::Failed { program: program.path().to_owned(), status, stderr }.into())
}

/// Kills a program and its children, which share its process group.
fn end(child: &mut Child) -> std::io::Result<()> {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        rustix::process::kill_process_group(group, rustix::process::Signal::KILL)?;
    }
    child.wait().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Silent;
    use crate::progress::Unwanted;

    #[test]
    fn a_program_is_ended_when_cancelled_or_late() {
        let program = Program::new("sleep").unwrap().arg("600");
        let long = Duration::from_secs(600);
        assert!(matches!(run(&program, long, &Unwanted, || {}), Err(PullError::Cancelled)));
        let late = run(&program, Duration::ZERO, &Silent, || {});
        assert!(matches!(late, Err(PullError::Command(CommandError::TimedOut { .. }))));
    }

    #[test]
    fn a_failure_carries_the_last_words() {
        let program = Program::new("sh").unwrap().args(["-c", "echo why >&2; exit 100"]);
        let error = run(&program, Duration::from_secs(60), &Silent, || {}).unwrap_err().to_string();
        assert!(error.contains("why"), "{error}");
        run(&Program::new("true").unwrap(), Duration::from_secs(60), &Silent, || {}).unwrap();
    }
}

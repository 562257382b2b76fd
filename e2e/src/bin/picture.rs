//! A picture of the whole machine around a suite: `picture save FILE` before it, `picture compare FILE` after it.
//!
//! What only a program of root makes and nothing but a leak leaves (links, rules, mounts, loop devices) must be as it
//! was. Processes and sockets of a machine that does other things too come and go: they are shown.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use testkit::leaks::{Picture, report};

const FIRM: &[&str] = &["link", "rule", "mount", "loop", "dm"];

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [verb, path] = arguments.as_slice() else { bail!("usage: picture save|compare FILE") };
    match verb.as_str() {
        "save" => {
            let picture = Picture::take(&[])?;
            for hole in picture.unseen() {
                testkit::not_run("leak check of the machine", hole);
            }
            std::fs::write(path, serde_json::to_vec(&picture)?).with_context(|| format!("writing {path}"))?;
            Ok(ExitCode::SUCCESS)
        }
        "compare" => {
            let before: Picture =
                serde_json::from_slice(&std::fs::read(path)?).context("reading the picture")?;
            let deadline = Instant::now() + Duration::from_secs(5);
            let (leaks, others) = loop {
                let found = before.differences(&before.again()?, &|_| false);
                let (leaks, others): (Vec<_>, Vec<_>) =
                    found.into_iter().partition(|difference| FIRM.contains(&difference.kind.as_str()));
                if leaks.is_empty() || Instant::now() > deadline {
                    break (leaks, others);
                }
                std::thread::sleep(Duration::from_millis(100));
            };
            if !others.is_empty() {
                println!("since the suite began, on this machine (by whomever):\n{}", report(&others));
            }
            if leaks.is_empty() {
                return Ok(ExitCode::SUCCESS);
            }
            println!("left on the machine by the suite:\n{}", report(&leaks));
            Ok(ExitCode::FAILURE)
        }
        _ => bail!("usage: picture save|compare FILE"),
    }
}

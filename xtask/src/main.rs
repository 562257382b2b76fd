//! `cargo run -p xtask -- check`: the rules of this repository. `-- bless` accepts the agent's present dependencies.

use std::process::ExitCode;

use anyhow::bail;
use xtask::check;

fn main() -> anyhow::Result<ExitCode> {
    let root = check::repository();
    let command = std::env::args().nth(1);
    match command.as_deref() {
        Some("check") => {
            let mut broken = Vec::new();
            for (name, check) in check::all() {
                match check(&root)? {
                    check::Verdict::Broken(rules) => {
                        broken.extend(rules.into_iter().map(|rule| format!("{name}: {rule}")));
                    }
                    check::Verdict::NotRun(why) => println!("{name}: *not run*: {why}"),
                }
            }
            for rule in &broken {
                eprintln!("{rule}");
            }
            println!("xtask check: {} broken", broken.len());
            Ok(if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Some("bless") => {
            check::dependencies::bless(&root)?;
            Ok(ExitCode::SUCCESS)
        }
        Some(_) | None => bail!("usage: xtask check | bless"),
    }
}

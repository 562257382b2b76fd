//! Completion in the shells themselves: each is started, takes the script as a user's start file does, and is asked what comes
//! next.

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use anyhow::{Context, ensure};
use e2e::help::Page;
use e2e::isolate;
use e2e::world::{Ran, SMALL, World, finish};

use crate::job::Mirror;
use crate::{Body, Need};

pub(crate) const TESTS: &[(&str, Body)] =
    &[("completion_in_bash", bash), ("completion_in_zsh", zsh), ("completion_in_fish", fish)];
pub(crate) const NEEDS: &[(&str, Need)] = &[
    ("completion_in_bash", || missing("bash")),
    ("completion_in_zsh", || missing("zsh")),
    ("completion_in_fish", || missing("fish")),
];

fn missing(shell: &str) -> Option<String> {
    isolate::find(shell).is_none().then(|| format!("{shell} is not installed"))
}

/// Two VMs, and a job that runs as long as its mirror does: its id.
fn names(world: &mut World) -> anyhow::Result<(String, Mirror)> {
    let mirror = Mirror::start()?;
    world.env = mirror.env()?;
    for name in ["work-horse", "other"] {
        let mut line = vec!["vm", "create", "--no-start", "--name", name];
        line.extend(SMALL);
        world.ok(&line)?;
    }
    Ok((world.ok(&["kernel", "pull", "--replace", "-d", e2e::KERNEL])?.text(), mirror))
}

fn shell(world: &World, shell: &str, args: &[&str]) -> anyhow::Result<Ran> {
    let mut command = Command::new(isolate::find(shell).context("it is not installed")?);
    world.dress(&mut command);
    let path = format!("{}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", e2e::bin_dir().display());
    command.args(args).env("PATH", path).env("TERM", "dumb");
    finish(command, None)?.expect(0)
}

/// What each of these lines is to be completed with: its last word is what stands there already.
fn expected(job: &str) -> Vec<(Vec<&str>, Vec<String>)> {
    let of = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    vec![
        (vec!["vm", "stop", "wo"], of(&["work-horse"])),
        (vec!["vm", "delete", "other", ""], of(&["work-horse", "other"])),
        (vec!["vm", "exec", "o"], of(&["other"])),
        (vec!["job", "cancel", &job[..4]], of(&[job])),
        (vec!["image", "show", "ti"], of(&[e2e::TINY])),
        (vec!["image", "build", "debian-bookworm-"], of(&["debian-bookworm-minimal"])),
        (vec!["vm", "run", "--env-f"], of(&["--env-file"])),
        (vec!["daem"], of(&["daemon"])),
    ]
}

/// All that is to be there is offered; flags may come too.
fn offers(line: &[&str], wanted: &[String], offered: &[&str]) -> anyhow::Result<()> {
    let words: Vec<&str> = offered.iter().copied().filter(|word| !word.starts_with('-')).collect();
    let flags = wanted.iter().all(|word| word.starts_with('-'));
    let same = if flags { offered } else { &words[..] };
    let same = wanted.iter().all(|word| same.contains(&word.as_str())) && same.len() == wanted.len();
    ensure!(same, "banger {}: offered {offered:?} instead of {wanted:?}", line.join(" "));
    Ok(())
}

fn bash(world: &mut World) -> anyhow::Result<()> {
    let (job, _mirror) = names(world)?;
    for (line, wanted) in expected(&job) {
        let words: Vec<String> = line.iter().map(|word| format!("'{word}'")).collect();
        let script = format!(
            "source <(banger completion bash); COMP_WORDS=(banger {}); COMP_CWORD={}; COMP_TYPE=9
             function=$(complete -p banger | sed 's/.* -F \\([^ ]*\\) .*/\\1/')
             $function banger '{}' x; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            words.join(" "),
            words.len(),
            line.last().context("no word")?
        );
        let ran = shell(world, "bash", &["--norc", "--noprofile", "-c", &script])?;
        let text = ran.text();
        offers(&line, &wanted, &text.lines().map(str::trim).collect::<Vec<_>>())?;
    }
    Ok(())
}

/// With a terminal of its own: zsh completes in its line editor only. What has one answer is completed by Tab, and a key
/// prints the line. Its start files are the machine's, and what the help says to write to one's own.
fn zsh(world: &mut World) -> anyhow::Result<()> {
    let (job, _mirror) = names(world)?;
    let page = Page { words: Vec::new(), help: world.ok(&["completion", "--help"])?.text() };
    let told = page.examples().into_iter().find(|example| example.contains("zsh")).context("no example")?;
    shell(world, "bash", &["--norc", "--noprofile", "-c", &told])?;
    // Run by an ordinary user, a test is root in a namespace where the machine's files are nobody's, and zsh takes no
    // functions of nobody's.
    let of_nobody = std::fs::metadata("/usr")?.uid() != 0;
    let functions = if of_nobody { "export FPATH=~/functions;" } else { "" };
    if of_nobody {
        let copy = "mkdir ~/functions; for file in $^fpath/*(N.); do cp -L $file ~/functions; done";
        shell(world, "zsh", &["-f", "-c", copy])?;
    }
    for (line, wanted) in expected(&job).into_iter().filter(|(_, wanted)| wanted.len() == 1) {
        let script = format!(
            "{functions} zmodload zsh/zpty; zpty z zsh -i
             zpty -w z 'PS1=; show() {{ print -r -- \"<$BUFFER>\" }}; zle -N show; bindkey \"^X\" show; print -r -- REA\"\"DY'
             zpty -r -m z out '*READY*'
             zpty -n -w z $'banger {}\\t\\C-X'
             zpty -r -m z out '*<banger*>*'; print -r -- \"$out\"; zpty -d z",
            line.join(" ")
        );
        let ran = shell(world, "zsh", &["-f", "-c", &script])?;
        let text = ran.text();
        let completed = [&line[..line.len() - 1], &[wanted[0].as_str()]].concat().join(" ");
        ensure!(text.contains(&format!("<banger {completed} >")), "banger {}: {text:?}", line.join(" "));
    }
    // The start file, and what zsh keeps of its completion.
    for file in [".zshrc", ".zcompdump"] {
        std::fs::remove_file(world.dir.join("home").join(file))?;
    }
    if of_nobody {
        std::fs::remove_dir_all(world.dir.join("home/functions"))?;
    }
    Ok(())
}

fn fish(world: &mut World) -> anyhow::Result<()> {
    let (job, _mirror) = names(world)?;
    for (line, wanted) in expected(&job) {
        let script = format!("banger completion fish | source; complete -C 'banger {}'", line.join(" "));
        let ran = shell(world, "fish", &["--no-config", "-c", &script])?;
        let text = ran.text();
        let offered: Vec<&str> = text.lines().filter_map(|line| line.split('\t').next()).collect();
        offers(&line, &wanted, &offered)?;
    }
    // What fish makes for itself wherever it runs.
    for dir in [".config", ".local"] {
        std::fs::remove_dir_all(world.dir.join("home").join(dir))?;
    }
    Ok(())
}

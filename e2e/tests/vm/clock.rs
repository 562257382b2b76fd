//! A clock that is really set: this machine's own is left alone, so a daemon runs in a guest and has the guest's.

use std::process::Command;

use anyhow::{Context, ensure};
use e2e::bin_dir;
use e2e::world::World;

use crate::Body;

pub(crate) const TESTS: &[(&str, Body)] = &[("clock_that_is_set_is_seen_by_the_daemon", seen)];

/// What a daemon says of it.
const SEEN: &str = "the host's clock was set, or it was suspended";
/// A timer that a step cancels: TFD_TIMER_ABSTIME and TFD_TIMER_CANCEL_ON_SET of the wall clock (proc(5)).
const ARMED: &str =
    "cat /proc/$(cat /t/pid)/fdinfo/* | tr '\\n' ' ' | grep -q 'clockid: 0 .*settime flags: 03'";

fn seen(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("box")?;
    let sh = |script: &str| world.exec("box", &["sh", "-c", script]);
    sh("mkdir /t && mount -t tmpfs -o size=160m none /t && mkdir /t/lib")?;
    // With the libraries that it has here: the guest has none.
    let bangerd = bin_dir().join("bangerd");
    let bangerd = bangerd.to_str().context("no text")?;
    let output = Command::new("ldd").arg(bangerd).output().context("running ldd")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let needed = String::from_utf8(output.stdout)?;
    let files: Vec<&str> = needed.split_whitespace().filter(|word| word.starts_with('/')).collect();
    let loader = files.iter().filter_map(|file| file.rsplit('/').next()).find(|name| name.starts_with("ld-"));
    let loader = loader.with_context(|| format!("no loader in {needed}"))?;
    for file in &files {
        world.ok(&["vm", "cp", "-L", file, "box:/t/lib/"])?;
    }
    world.ok(&["vm", "cp", bangerd, "box:/t/bangerd"])?;
    let dirs = ["STATE", "RUNTIME", "CACHE"].map(|dir| format!("BANGER_{dir}_DIR=/t/{dir}")).join(" ");
    let start = format!(
        "mkdir -m 700 /t/RUNTIME; {dirs} /t/lib/{loader} --library-path /t/lib /t/bangerd </dev/null >/t/out 2>&1 & \
         echo $! >/t/pid"
    );
    sh(&start)?;
    let holds = |script: &str| Ok(world.run(&["vm", "exec", "box", "--", "sh", "-c", script])?.status == 0);
    let looks = world.until("the daemon in the guest looks at the clock", || holds(ARMED));
    looks.or_else(|error| anyhow::bail!("{error:#}: {}", sh("cat /t/out")?.text()))?;
    let log = || Ok::<_, anyhow::Error>(sh("cat /t/STATE/*.log")?.text());
    ensure!(!log()?.contains(SEEN), "nobody has set the clock: {}", log()?);
    // On and back, each of them is told once.
    for (to, times) in [("2031-01-01 00:00:00", 1), ("2030-01-01 00:00:00", 2)] {
        sh(&format!("date -s '{to}'"))?;
        world.until("the step is seen", || Ok(log()?.matches(SEEN).count() >= times))?;
        ensure!(log()?.matches(SEEN).count() == times, "{}", log()?);
    }
    Ok(())
}

//! How guests are: `vm health`, `vm ping`, `vm console`, and the guest's clock.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use e2e::world::{World, code, wait};
use serde_json::Value;

use crate::Body;

pub(crate) const TESTS: &[(&str, Body)] = &[
    ("health_tells_what_is_not_in_order", health),
    ("health_clock_is_right_after_a_pause", clock),
    ("console_follows_reboots_and_daemons_and_is_left", console),
];

/// What `vm health --json` says of one VM, which has this exit status.
fn told(world: &World, name: &str, status: i32) -> anyhow::Result<Value> {
    let told = world.run(&["vm", "health", "--json", name])?.expect(status)?.json()?;
    Ok(told["vms"][0].clone())
}

fn says(told: &Value, problem: &str) -> anyhow::Result<()> {
    let problems = told["problems"].as_array().context("no problems")?;
    let says = |said: &Value| said.as_str().is_some_and(|said| said.contains(problem));
    ensure!(problems.iter().any(says), "{problem} is not told: {told}");
    Ok(())
}

fn health(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("one")?;
    let mut create = vec!["vm", "create", "--name", "two", "--no-start"];
    create.extend(e2e::world::SMALL.iter().take_while(|flag| **flag != "--wait"));
    world.ok(&create)?;
    let one = told(world, "one", 0)?;
    ensure!(
        one["healthy"] == true && one["system"] == "running" && one["problems"] == Value::Array(vec![]),
        "{one}"
    );
    let metrics = &one["metrics"];
    let number = |key: &str| metrics[key].as_u64().with_context(|| format!("{key} of {one}"));
    ensure!((1 << 20..256 << 20).contains(&number("memory_bytes")?) && number("processes")? > 3, "{one}");
    ensure!(number("memory_available_bytes")? < number("memory_bytes")?, "{one}");
    ensure!(number("disk_free_bytes")? < number("disk_bytes")? && number("cpus")? == 1, "{one}");
    ensure!(number("uptime_s")? > 0 && number("cpu_busy_ms")? > 0, "{one}");
    ensure!(one["agent"]["round_trip_us"].as_u64().is_some_and(|time| time > 0), "{one}");
    // Several, one of which does not run, and one that is not there.
    let several = world.run(&["vm", "health", "one", "two", "nobody"])?.expect(1)?;
    let text = several.text();
    ensure!(text.contains("two: it does not run: it is created") && text.lines().count() == 4, "{text}");
    ensure!(several.stderr.contains("nobody"), "{}", several.stderr);
    let ping = world.ok(&["vm", "ping", "-c", "3", "one"])?.text();
    let mean = ping.lines().last().context("it says nothing")?;
    ensure!(
        ping.contains("3 asked, 3 answered, 0% lost") && mean.starts_with("round trip min/avg/max = "),
        "{ping}"
    );
    let refused = world.run(&["vm", "ping", "-c", "1", "two"])?.expect(1)?;
    ensure!(refused.stderr.contains("banger vm start two"), "{}", refused.stderr);
    // A disk that is full, and a memory that is.
    world.run(&["vm", "exec", "one", "--", "sh", "-c", "cat /dev/zero >/fill"])?.expect(1)?;
    says(&told(world, "one", 1)?, "its root disk is nearly full")?;
    world.exec("one", &["rm", "/fill"])?;
    let eaten = "mkdir /eaten; mount -t tmpfs -o size=100% none /eaten; \
        a=$(awk '/MemAvailable/ {print $2}' /proc/meminfo); head -c $(((a - 6000) * 1024)) /dev/zero >/eaten/all";
    world.exec("one", &["sh", "-c", eaten])?;
    says(&told(world, "one", 1)?, "its memory is nearly used up")?;
    world.exec("one", &["umount", "/eaten"])?;
    told(world, "one", 0)?;
    // An agent that does not answer is waited for a bounded time.
    world.freeze_agent("one", 15)?;
    let silent = told(world, "one", 1)?;
    ensure!(
        silent["agent"].is_null()
            && silent["problems"][0].as_str().is_some_and(|text| text.contains("for 5 s")),
        "{silent}"
    );
    let lost = world.run(&["vm", "ping", "-c", "1", "one"])?.expect(1)?;
    ensure!(lost.text().contains("1 asked, 0 answered, 100% lost"), "{}", lost.text());
    world.until("the agent goes on", || Ok(world.run(&["vm", "health", "one"])?.status == 0))
}

fn clock(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("box")?;
    let offset = |world: &World| -> anyhow::Result<i64> {
        let told = world.run(&["vm", "health", "--json", "box"])?.json()?;
        told["vms"][0]["agent"]["clock_offset_ms"].as_i64().with_context(|| format!("no offset: {told}"))
    };
    ensure!(offset(world)?.abs() < 1000, "after its boot it is {} ms off", offset(world)?);
    let pause = |seconds: u64| -> anyhow::Result<()> {
        world.ok(&["vm", "pause", "box"])?;
        std::thread::sleep(Duration::from_secs(seconds));
        world.ok(&["vm", "resume", "box"]).map(drop)
    };
    pause(4)?;
    ensure!(offset(world)?.abs() < 1000, "after a pause it is {} ms off", offset(world)?);
    // Somebody in the guest lives in 1970, or in 2100. A clock that began before the system did the kernel does not take.
    for (date, how) in [("@86400", "days behind"), ("@4102444800", "days before")] {
        world.exec("box", &["date", "-s", date])?;
        says(&told(world, "box", 1)?, how)?;
    }
    pause(0)?;
    told(world, "box", 0)?;
    let seen: u64 = world.exec("box", &["date", "+%s"])?.text().parse()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    ensure!(seen.abs_diff(now) < 60, "the guest says {seen} at {now}");
    Ok(())
}

/// `vm console` through a pseudo-terminal, over a reboot and a daemon that is killed, to `~.`.
fn console(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("box")?;
    let says =
        |word: &str| world.exec("box", &["sh", "-c", &format!("echo said-{word} >/dev/console")]).map(drop);
    says("before")?;
    let mut command = Command::new("script");
    let line = format!("{} vm console box", e2e::bin_dir().join("banger").display());
    command.args(["-qfec", &line, "/dev/null"]);
    world.dress(&mut command);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut keys = child.stdin.take().context("no stdin")?;
    let mut output = child.stdout.take().context("no stdout")?;
    let seen = Arc::new(Mutex::new(String::new()));
    let all = Arc::clone(&seen);
    let reader = std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = output.read(&mut piece) {
            if let Ok(mut all) = all.lock() {
                all.push_str(&String::from_utf8_lossy(&piece[..count]));
            }
        }
    });
    let shown = |word: &str| {
        world.until(&format!("the console shows {word}"), || {
            Ok(seen.lock().is_ok_and(|seen| seen.contains(word)))
        })
    };
    shown("read-only")?;
    shown("said-before")?;
    says("after")?;
    shown("said-after")?;
    world.kill_daemon()?;
    says("later")?;
    shown("said-later")?;
    world.ok(&["vm", "restart", "--wait", "agent", "box"])?;
    says("again")?;
    shown("said-again")?;
    keys.write_all(b"typed\r~.")?;
    let status = wait(&mut child, Duration::from_secs(30))?.context("it does not leave")?;
    ensure!(code(status) == 0, "its status is {status}");
    ensure!(reader.join().is_ok(), "the reader panicked");
    // One that is deleted ends it.
    let mut watch = world.command(&["vm", "console", "box"]).stdout(Stdio::null()).spawn()?;
    std::thread::sleep(Duration::from_millis(500));
    world.ok(&["vm", "delete", "-f", "box"])?;
    let status = wait(&mut watch, Duration::from_secs(30))?.context("it does not end with its VM")?;
    ensure!(code(status) == 0, "its status is {status}");
    world.run(&["vm", "console", "box"])?.expect(1).map(drop)
}

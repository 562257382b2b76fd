//! A guest that lies to the real daemon and the real command line. Between QEMU and the daemon an agent takes the guest's
//! place: it says whatever a guest that was taken over can say, without one having to be.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, ensure};
use banger_proto::guest::{ExitStatus, GuestFailure, GuestFailureCode, Listening, Open, Outcome, Ports};
use e2e::world::{World, code, wait};
use e2e::{branch, isolate};
use tar::{EntryType, Header};
use testkit::liar::{self, Answer};

use crate::Body;

pub(crate) const TESTS: &[(&str, Body)] = &[
    ("lies_cost_a_clear_error_and_nobody_else", lies),
    ("lies_do_not_fill_the_disk_of_a_copy", endless_copies),
];

/// What the daemon may have in memory, KiB: a few windows of the channel.
const MEMORY: u64 = 128 * 1024;

type Now = Arc<Mutex<Box<dyn Fn(&Open) -> Answer + Send>>>;

/// A liar in the place of the guest of `box`, and the end of it.
struct InPlace {
    now: Now,
    channel: PathBuf,
    _liar: liar::Listening,
}

impl InPlace {
    fn take(world: &World) -> anyhow::Result<Self> {
        let channel = branch::dirs(world, "box")?.channel_socket();
        std::fs::rename(&channel, channel.with_extension("true"))?;
        let now: Now = Arc::new(Mutex::new(Box::new(liar::honest)));
        let lies = Arc::clone(&now);
        let say = move |open: &Open| lies.lock().map_or_else(|_| liar::honest(open), |now| now(open));
        let liar = liar::listen(&channel, Arc::new(say))?;
        // The next one connects to the liar.
        world.kill_daemon()?;
        Ok(Self { now, channel, _liar: liar })
    }

    fn says(&self, lie: impl Fn(&Open) -> Answer + Send + 'static) -> anyhow::Result<()> {
        *self.now.lock().ok().context("the liar panicked")? = Box::new(lie);
        Ok(())
    }

    fn give_back(self, world: &World) -> anyhow::Result<()> {
        std::fs::rename(self.channel.with_extension("true"), &self.channel)?;
        world.kill_daemon()?;
        ensure!(world.exec("box", &["echo", "honest"])?.text() == "honest");
        Ok(())
    }
}

fn ports(count: usize) -> Ports {
    let socket = |at: usize| Listening {
        address: std::net::Ipv4Addr::UNSPECIFIED.into(),
        port: u16::try_from(at % 65_535).unwrap_or(0) + 1,
        processes: Vec::new(),
    };
    Ports { listening: (0..count).map(socket).collect(), complete: true }
}

/// A million ports, as long as that is.
fn million() -> anyhow::Result<Arc<Vec<u8>>> {
    Ok(Arc::new(serde_json::to_vec(&Outcome::Ports(ports(1_000_000)))?))
}

fn lies(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("box")?;
    world.small_vm("other")?;
    let liar = InPlace::take(world)?;
    let text = million()?;
    let evil = || "\u{1b}]0;evil\u{7}\n".repeat(10_000);
    let failed = |message| GuestFailure { code: GuestFailureCode::System, message };
    let list: &[&str] = &["vm", "ports", "box"];
    let copy: &[&str] = &["vm", "cp", "box:/x", "."];
    let run: &[&str] = &["vm", "exec", "box", "--", "true"];
    type Lie = Box<dyn Fn(&Open) -> Answer + Send>;
    let table: Vec<(&[&str], Lie, i32, &[&str])> = vec![
        (
            list,
            Box::new(move |_| Answer::Message(Arc::clone(&text))),
            1,
            &["cannot list the ports of VM 'box'", "Outcome frame of", "banger vm restart"],
        ),
        (
            list,
            Box::new(|_| Answer::Outcome(Outcome::Ports(ports(5000)))),
            1,
            &["cannot list the ports of VM 'box'", "the guest listens on more than 1024 ports"],
        ),
        (
            list,
            Box::new(|_| Answer::Endless(Box::new(|| vec![b'x'; 1 << 16]))),
            1,
            &["output where there is none"],
        ),
        (list, Box::new(|_| Answer::Offset(1 << 40)), 1, &["broke the rules", "bytes 1099511627776 to"]),
        (list, Box::new(|_| Answer::Raw(vec![0xa5; 1 << 16])), 1, &["unknown kind 165", "banger vm restart"]),
        (list, Box::new(|_| Answer::Outcome(Outcome::ShuttingDown)), 1, &["something else than was asked"]),
        (list, Box::new(move |_| Answer::Outcome(Outcome::Failed(failed(evil())))), 1, &["\\u{1b}]0;evil"]),
        (run, Box::new(|_| Answer::Offset(1)), 125, &["broke the rules", "banger vm restart"]),
        (
            run,
            Box::new(|_| Answer::Raw([5, 0, 0, 0, 0xff, 0xff, 0xff, 0xff].repeat(3))),
            125,
            &["4294967295 bytes"],
        ),
        (run, Box::new(|_| Answer::Outcome(Outcome::Exited { status: ExitStatus::Code(7) })), 7, &[]),
        (copy, Box::new(|_| Answer::Offset(1 << 40)), 1, &["cannot copy box:/x to .", "broke the rules"]),
        (
            copy,
            Box::new(|_| Answer::Outcome(Outcome::Packed { entries: 9, bytes: 9, skipped: 0 })),
            1,
            &["cannot copy"],
        ),
        // Its clock is in 1970.
        (
            &["vm", "health", "box"],
            Box::new(|open| match open {
                Open::Clock { .. } => Answer::Outcome(Outcome::Clock { unix_ns: 0 }),
                _ => liar::honest(open),
            }),
            1,
            &[],
        ),
    ];
    for (args, lie, status, says) in table {
        liar.says(lie)?;
        let ran = world.run(args)?;
        let told = format!("{args:?}: status {}\n{}", ran.status, ran.stderr);
        ensure!(ran.status == status && says.iter().all(|word| ran.stderr.contains(word)), "{told}");
        let printed = [ran.text(), ran.stderr].concat();
        ensure!(
            printed.len() < 256 << 10 && !printed.contains(['\u{1b}', '\u{7}']),
            "{} bytes",
            printed.len()
        );
        ensure!(printed.lines().count() < 1100, "{} lines", printed.lines().count());
        ensure!(world.exec("other", &["echo", "here"])?.text() == "here");
    }
    let health = world.run(&["vm", "health", "box"])?;
    ensure!(health.text().contains("days behind the host's"), "{}", health.text());
    // Output without an end is read for as long as somebody wants it.
    liar.says(|_| Answer::Endless(Box::new(|| vec![b'x'; 1 << 16])))?;
    let mut child = world.command(&["vm", "exec", "box", "--", "yes"]).stdout(Stdio::piped()).spawn()?;
    let mut read = vec![0; 8 << 20];
    let mut output = child.stdout.take().context("no stdout")?;
    std::io::Read::read_exact(&mut output, &mut read)?;
    drop(output);
    wait(&mut child, Duration::from_secs(30))?.context("it goes on without a reader")?;
    let kib = world.daemon_kib()?;
    ensure!(kib < MEMORY, "the daemon has {kib} KiB");
    liar.give_back(world)
}

/// An entry's header.
fn header(path: &str, kind: EntryType, size: u64) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_size(size);
    header.set_cksum();
    header.as_bytes().to_vec()
}

/// A tree that never ends: after its top whatever `next` gives for the numbers from 0.
fn tree(next: impl Fn(u64) -> Vec<u8> + Send + 'static) -> Answer {
    let mut count = 0;
    let mut first = Some(header("x/", EntryType::Directory, 0));
    Answer::Endless(Box::new(move || {
        first.take().unwrap_or_else(|| {
            count += 1;
            next(count - 1)
        })
    }))
}

/// So many entries without content, each time.
fn many(kind: EntryType, end: &str, count: u64) -> Vec<u8> {
    (0..64).flat_map(|at| header(&format!("x/{}{end}", count * 64 + at), kind, 0)).collect()
}

fn endless_copies(world: &mut World) -> anyhow::Result<()> {
    world.small_vm("box")?;
    let home = world.dir.join("home");
    let small = home.join("small");
    std::fs::create_dir(&small)?;
    let path = small.to_str().context("no text")?.to_owned();
    let liar = InPlace::take(world)?;
    type Next = fn(u64) -> Vec<u8>;
    let table: [(&str, Next); 3] = [
        // One file of 8 GiB that is no hole anywhere.
        ("no room for x/big", |count| match count {
            0 => header("x/big", EntryType::Regular, (8 << 30) - 1),
            _ => vec![b'x'; 1 << 16],
        }),
        ("inodes free", |count| many(EntryType::Regular, "", count)),
        ("inodes free", |count| many(EntryType::Directory, "/", count)),
    ];
    for (says, next) in table {
        isolate::run("mount", &["-t", "tmpfs", "-o", "size=48m,nr_inodes=2000", "small", &path])?;
        liar.says(
            move |open| if matches!(open, Open::Pack { .. }) { tree(next) } else { liar::honest(open) },
        )?;
        let ran = world.run(&["vm", "cp", "box:/x", "small"])?.expect(1)?;
        let told =
            ["cannot copy box:/x to small", says, "a copy from a VM leaves", "had arrived", "make room"];
        ensure!(told.iter().all(|told| ran.stderr.contains(told)), "{}", ran.stderr);
        let stat = rustix::fs::statvfs(&small)?;
        let left = format!("{says}: {} blocks and {} inodes are free", stat.f_bavail, stat.f_favail);
        ensure!(stat.f_favail >= stat.f_files / 20 && stat.f_bavail >= stat.f_blocks / 20, "{left}");
        if says.contains("inodes") {
            ensure!(stat.f_favail < stat.f_files / 10, "it stopped too soon: {left}");
        } else {
            ensure!(!small.join("x/big").exists(), "a part of a file stays");
        }
        isolate::run("umount", &[&path])?;
    }
    // Nothing but zeros takes no room, and ends when the user has enough of it.
    liar.says(|open| match open {
        Open::Pack { .. } => tree(|count| match count {
            0 => header("x/zeros", EntryType::Regular, (8 << 30) - 1),
            _ => vec![0; 1 << 16],
        }),
        _ => liar::honest(open),
    })?;
    let mut child = world.command(&["vm", "cp", "box:/x", "small"]).stderr(Stdio::piped()).spawn()?;
    world.until("it arrives", || Ok(small.join("x/zeros").exists()))?;
    isolate::run("kill", &["-INT", &child.id().to_string()])?;
    let status = wait(&mut child, Duration::from_secs(30))?.context("the copy goes on")?;
    let said = std::io::read_to_string(child.stderr.take().context("no stderr")?)?;
    ensure!(
        code(status) == 130 && said.contains("1 entries and 0 bytes had arrived, and stayed in small"),
        "{said}"
    );
    ensure!(!small.join("x/zeros").exists(), "a part of a file stays");
    std::fs::remove_dir_all(&small)?;
    liar.give_back(world)
}

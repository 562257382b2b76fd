//! Firecracker with a guest that is no Linux: what a VMM does without a guest's help, where KVM cannot run real kernels.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use async_trait::async_trait;
use banger_daemon::launch::Launcher;
use banger_daemon::ports::{Launch, Machine, MachineExit, ProcessJournal, ProcessRole, RootDisk, Vmm};
use banger_daemon::vmm::firecracker::{Firecracker, FirecrackerConfig};
use banger_proto::{ByteSize, ErrorReport};
use banger_sys::paths::make_private;
use banger_sys::process::ProcessRecord;
use e2e::isolate;
use e2e::world::{World, finish};
use testkit::contract::machines::{self, Life};
use testkit::contract::{self, vmm};
use testkit::stub;

use crate::contract::{Places, kill, lives};
use crate::{Body, Need};

pub(crate) const TESTS: &[(&str, Body)] = &[(VMM, run), (GUESTS, guests)];
pub(crate) const NEEDS: &[(&str, Need)] = &[(VMM, no_firecracker), (GUESTS, no_linux)];

const VMM: &str = "contract_firecracker_is_a_vmm";
const GUESTS: &str = "contract_firecracker_guests_answer";

/// The argument that makes this program run the suite: `RUN_FIRECRACKER BINARY RUNTIME_DIR STATE_DIR`.
pub(crate) const RUN_FIRECRACKER: &str = "contract-firecracker";

fn binary() -> Option<PathBuf> {
    match std::env::var_os("BANGER_FIRECRACKER") {
        Some(path) => Some(PathBuf::from(path)),
        None => isolate::find("firecracker"),
    }
}

fn no_firecracker() -> Option<String> {
    if binary().is_none() {
        return Some("no Firecracker: BANGER_FIRECRACKER is not set, and none is on PATH".to_owned());
    }
    let opened = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    opened.err().map(|error| format!("/dev/kvm does not open: {error}"))
}

fn no_linux() -> Option<String> {
    Some(
        "a Linux guest on Firecracker has no network and cannot power off before there is a system mode"
            .to_owned(),
    )
}

fn guests(_: &mut World) -> anyhow::Result<()> {
    bail!("not before there is a system mode")
}

/// In a process of its own, as QEMU's suite.
fn run(world: &mut World) -> anyhow::Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(RUN_FIRECRACKER).arg(binary().context("no Firecracker")?);
    command.args([&world.runtime, &world.state]);
    finish(command, None)?.expect(0)?;
    Ok(())
}

/// The child of [`run`].
pub(crate) fn run_firecracker() -> anyhow::Result<()> {
    let args: Vec<PathBuf> = std::env::args_os().skip(2).map(PathBuf::from).collect();
    let [binary, runtime, state] = &args[..] else { bail!("three arguments: {args:?}") };
    let places = Places::new(runtime.join("contract"), state.join("contract"));
    let bench = Bench { binary: binary.clone(), places };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        contract::run(vmm::CASES, &bench as &dyn machines::Bench).await?;
        a_guest_ends(&bench).await.context("a_guest_ends")?;
        what_is_restored_does_not_boot(&bench).await.context("what_is_restored_does_not_boot")?;
        what_it_cannot_do_is_refused(&bench).await.context("what_it_cannot_do_is_refused")
    })?;
    bench.places.clear()
}

struct Bench {
    binary: PathBuf,
    places: Places,
}

#[async_trait]
impl machines::Bench for Bench {
    fn vmm(&self) -> Arc<dyn Vmm> {
        let launcher = Launcher::with_executable(e2e::bin_dir().join("bangerd"));
        Arc::new(Firecracker::new(FirecrackerConfig { binary: Some(self.binary.clone()), launcher }))
    }

    async fn launch(&self) -> anyhow::Result<Launch> {
        let (vm, dirs) = self.places.next();
        make_private(&dirs.state)?;
        let file = |name: &str, content: &[u8]| -> anyhow::Result<PathBuf> {
            let path = dirs.state.join(name);
            fs::write(&path, content)?;
            Ok(path)
        };
        Ok(Launch {
            kernel: file("stub", &stub::kernel())?,
            initrd: file("initrd", &[0; 4096])?,
            modules_drive: file("modules", &[0; 4096])?,
            root: RootDisk { path: file("root.raw", &[0; 4096])?, format: "raw", size: ByteSize::mib(1) },
            vm,
            name: "contract".parse()?,
            dirs,
            vcpus: 1,
            memory: ByteSize::mib(128),
            nat: false,
        })
    }

    async fn life(&self, launch: &Launch, _: &dyn Machine) -> anyhow::Result<Box<dyn Life>> {
        Ok(Box::new(Beats(launch.dirs.console_log())))
    }

    fn kill(&self, process: &ProcessRecord) -> anyhow::Result<()> {
        kill(process)
    }

    fn lives(&self, process: &ProcessRecord) -> anyhow::Result<bool> {
        lives(process)
    }
}

/// A guest that shows life on its console.
struct Beats(PathBuf);

#[async_trait]
impl Life for Beats {
    async fn sign(&self) -> anyhow::Result<()> {
        // What the keeper still had to write when this was called is none.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let before = console(&self.0)?.len();
        while !console(&self.0)?.get(before..).is_some_and(|since| since.ends_with(&[stub::BEAT])) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    async fn close(&self) {}
}

fn console(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// A journal that nobody reads.
struct Unread;

#[async_trait]
impl ProcessJournal for Unread {
    async fn record(&self, _: ProcessRole, _: &ProcessRecord) -> Result<(), ErrorReport> {
        Ok(())
    }
}

/// What a guest can do to end it: nothing says that it powered off.
async fn a_guest_ends(bench: &Bench) -> anyhow::Result<()> {
    let start = async |way: u8| {
        let launch = machines::Bench::launch(bench).await?;
        fs::write(&launch.initrd, [way; 4096])?;
        let machine = machines::Bench::vmm(bench).start(&launch, &Unread).await?;
        anyhow::Ok((launch, machine))
    };
    let patience = Duration::from_secs(20);
    for way in [stub::RESETS, stub::FAULTS] {
        let (launch, machine) = start(way).await?;
        let mut exit = machine.exit();
        let exit = tokio::time::timeout(patience, exit.wait_for(Option::is_some)).await??.clone();
        let fits = match exit {
            Some(MachineExit::Rebooted) => way == stub::RESETS,
            Some(MachineExit::Died(_)) => way == stub::FAULTS,
            _ => false,
        };
        let said = fs::read_to_string(launch.dirs.vmm_log())?;
        ensure!(fits, "'{}' ended as {exit:?}: {said}", char::from(way));
        ensure!(console(&launch.dirs.console_log())?.starts_with(stub::GREETING.as_bytes()));
        ensure!(!launch.dirs.runtime.exists(), "its sockets are left");
    }
    let (launch, machine) = start(stub::HALTS).await?;
    let greeted = async {
        while console(&launch.dirs.console_log())? != stub::GREETING.as_bytes() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(patience, greeted).await.context("it does not greet")??;
    let mut exit = machine.exit();
    let ended = tokio::time::timeout(Duration::from_secs(1), exit.wait_for(Option::is_some)).await;
    ensure!(ended.is_err(), "one that halts ended");
    Ok(machine.kill().await?)
}

async fn what_is_restored_does_not_boot(bench: &Bench) -> anyhow::Result<()> {
    let launch = machines::Bench::launch(bench).await?;
    let (vmm, log) = (machines::Bench::vmm(bench), launch.dirs.console_log());
    let machine = vmm.start(&launch, &Unread).await?;
    let life = machines::Bench::life(bench, &launch, &*machine).await?;
    life.sign().await?;
    ensure!(console(&log)?.starts_with(stub::GREETING.as_bytes()), "it does not greet");
    machine.pause().await?;
    let saved = launch.dirs.state.join("saved");
    fs::create_dir(&saved)?;
    machine.save(&saved).await?;
    machine.kill().await?;
    let machine = vmm.restore(&launch, &saved, &Unread).await?;
    // Its pages are read when they are wanted: the files may go, and may not change.
    fs::remove_dir_all(&saved)?;
    life.sign().await?;
    machine.kill().await?;
    let said = console(&log)?;
    ensure!(
        said.iter().all(|byte| *byte == stub::BEAT),
        "it began again: {}",
        String::from_utf8_lossy(&said)
    );
    Ok(())
}

async fn what_it_cannot_do_is_refused(bench: &Bench) -> anyhow::Result<()> {
    let launch = machines::Bench::launch(bench).await?;
    let root = RootDisk { format: "qcow2", ..launch.root.clone() };
    let many = Launch { vcpus: 33, ..launch.clone() };
    for (launch, word) in [
        (Launch { nat: true, ..launch.clone() }, "tap"),
        (Launch { root, ..launch.clone() }, "raw disks"),
        (many, "vCPU"),
    ] {
        let Err(error) = machines::Bench::vmm(bench).start(&launch, &Unread).await else {
            bail!("it was started without a word about '{word}'")
        };
        ensure!(error.causes.iter().any(|cause| cause.contains(word)), "{error:?}");
        ensure!(!launch.dirs.runtime.exists(), "its sockets are left");
    }
    Ok(())
}

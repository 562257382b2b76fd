//! A daemon that lives and dies inside a test.

use std::net::{Ipv4Addr, TcpListener};
use std::num::NonZeroU16;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use banger_daemon::lifecycle::faults::{Faults, NoFaults};
use banger_daemon::service::Services;
use banger_proto::daemon::{Accepted, JobEventKind, JobResult, StartOptions, VmInfo};
use banger_proto::ports::ForwardState;
use banger_proto::spec::Wait;
use banger_proto::{ByteSize, ErrorCode, ErrorReport, Forward, VmId, VmSpec, VmState};
use testkit::fake::{FakeWorld, IMAGE, IMAGE_SIZE, KERNEL};
use tokio::runtime::{Builder, Runtime};

/// The name of the one VM that most tests have.
pub(crate) const NAME: &str = "box";
/// Longest wait, in real time, for what has to happen by itself.
const PATIENCE: Duration = Duration::from_secs(20);

/// A daemon on a runtime of its own: with that goes every task it has.
pub(crate) struct Daemon {
    runtime: Runtime,
    services: Arc<Services>,
    world: FakeWorld,
}

impl Daemon {
    /// Opens what the world has.
    pub(crate) fn open(world: &FakeWorld) -> anyhow::Result<Self> {
        Self::open_with(world, Arc::new(NoFaults))
    }

    /// The same with operations that break.
    pub(crate) fn open_with(world: &FakeWorld, faults: Arc<dyn Faults>) -> anyhow::Result<Self> {
        let never = std::future::pending();
        Self::open_or_die(world, faults, never)?.context("the daemon died")
    }

    /// The same, but where `dies` returns before the daemon is open it is dead. `None` then.
    pub(crate) fn open_or_die(
        world: &FakeWorld,
        faults: Arc<dyn Faults>,
        dies: impl Future<Output = ()>,
    ) -> anyhow::Result<Option<Self>> {
        let runtime = Builder::new_current_thread().enable_all().start_paused(true).build()?;
        let opened = runtime.block_on(async {
            tokio::select! {
                opened = Services::open_with_faults(world.paths(), world.ports(), faults) => Some(opened),
                () = dies => None,
            }
        });
        match opened {
            Some(services) => {
                Ok(Some(Self { runtime, services: services.map_err(whole)?, world: world.clone() }))
            }
            None => {
                end(runtime, world)?;
                Ok(None)
            }
        }
    }

    /// Runs a client of this daemon.
    pub(crate) fn run<T>(&self, client: impl AsyncFnOnce(&Client<'_>) -> T) -> T {
        let client_of = Client { services: &self.services, world: &self.world };
        self.runtime.block_on(client(&client_of))
    }

    /// `kill -9`: whatever it was doing is not done any more.
    pub(crate) fn die(self) -> anyhow::Result<()> {
        drop(self.services);
        end(self.runtime, &self.world)
    }

    /// An orderly end.
    pub(crate) fn close(self) -> anyhow::Result<()> {
        self.runtime.block_on(self.services.close());
        self.die()
    }
}

/// Ends a runtime with its tasks and waits until its store is closed, as it is with a process that is gone.
fn end(runtime: Runtime, world: &FakeWorld) -> anyhow::Result<()> {
    runtime.shutdown_timeout(PATIENCE);
    let database = world.paths().database();
    let deadline = Instant::now() + PATIENCE;
    while is_open(&database)? {
        ensure!(Instant::now() < deadline, "the store of a daemon that is gone stays open");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn is_open(file: &Path) -> anyhow::Result<bool> {
    let open = std::fs::read_dir("/proc/self/fd")?;
    // A descriptor of another test may be closed while it is looked at.
    Ok(open.flatten().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|target| target == file)))
}

/// Somebody who asks a daemon for things.
pub(crate) struct Client<'d> {
    pub(crate) services: &'d Services,
    pub(crate) world: &'d FakeWorld,
}

impl Client<'_> {
    /// Waits for what was begun.
    pub(crate) async fn result(
        &self,
        begun: Result<Accepted, ErrorReport>,
    ) -> anyhow::Result<Result<JobResult, ErrorReport>> {
        let accepted = match begun {
            Ok(accepted) => accepted,
            Err(error) => return Ok(Err(error)),
        };
        let mut watch = self.services.job_watch(&accepted.job, 0).await.map_err(whole)?;
        while let Some(event) = watch.next().await {
            if let JobEventKind::Finished { result } = event.event {
                return Ok(match result {
                    JobResult::Failed { error } => Err(error),
                    result => Ok(result),
                });
            }
        }
        bail!("a job ended without a result")
    }

    /// The same, and it has to succeed.
    pub(crate) async fn done(&self, begun: Result<Accepted, ErrorReport>) -> anyhow::Result<JobResult> {
        self.result(begun).await?.map_err(whole)
    }

    /// Every VM.
    pub(crate) async fn vms(&self) -> anyhow::Result<Vec<VmInfo>> {
        Ok(self.services.vm_list().await.map_err(whole)?.vms)
    }

    /// The one VM.
    pub(crate) async fn vm(&self) -> anyhow::Result<VmInfo> {
        self.services.vm_show(NAME).await.map_err(whole)
    }

    /// The id of the one VM.
    pub(crate) async fn id(&self) -> anyhow::Result<VmId> {
        Ok(self.vm().await?.id)
    }

    /// Waits until all that is said of the VMs is so, and nothing is under way or left.
    pub(crate) async fn at_rest(&self) -> anyhow::Result<Vec<VmInfo>> {
        self.until("it comes to rest", |_| true).await
    }

    /// Waits until they are at rest and this is so as well.
    pub(crate) async fn until(
        &self,
        what: &str,
        so: impl Fn(&[VmInfo]) -> bool,
    ) -> anyhow::Result<Vec<VmInfo>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let vms = self.vms().await?;
            let (mut untruths, leaks) = (self.world.untruths(&vms)?, self.world.leaks()?);
            untruths.extend(vms.iter().filter_map(untrue_port));
            if untruths.is_empty() && leaks.is_empty() && so(&vms) {
                return Ok(vms);
            }
            if Instant::now() > deadline {
                let states: Vec<_> = vms.iter().map(|vm| (vm.state, vm.cause.as_deref())).collect();
                bail!("waited in vain until {what}: {states:?}, untrue: {untruths:?}, left: {leaks:?}");
            }
            // The store's thread needs real time; whatever waits for tokio's, the grace of a lost client say, gets that
            // at once.
            std::thread::sleep(Duration::from_millis(1));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Deletes every VM, which has to work whatever state it is in, and looks for what is left of them.
    pub(crate) async fn delete_all(&self) -> anyhow::Result<()> {
        for vm in self.at_rest().await? {
            let deleted = self.result(self.services.vm_delete(vm.id.as_str(), true).await).await?;
            match deleted {
                Ok(JobResult::VmDeleted { .. }) => {}
                // Its client is gone as well, and that was faster, or is at it.
                Err(error) if vm.ephemeral && error.code == ErrorCode::NotFound => {}
                Err(error) if vm.ephemeral && error.code == ErrorCode::WrongState => {}
                other => bail!("deleting a VM that was {}: {other:?}", vm.state),
            }
        }
        self.until("no VM is left", <[_]>::is_empty).await?;
        Ok(())
    }

    /// Waits for a state of the one VM.
    pub(crate) async fn state(&self, state: VmState) -> anyhow::Result<VmInfo> {
        let vms =
            self.until(&format!("the VM is {state}"), |vms| vms.iter().all(|vm| vm.state == state)).await?;
        vms.into_iter().next().context("there is no VM")
    }
}

/// What is said of a VM's port and is not so: it is open exactly while the VM runs.
fn untrue_port(vm: &VmInfo) -> Option<String> {
    let info = match vm.forwards.as_slice() {
        [info] => info,
        other => return Some(format!("VM {} has {} forwards", vm.name, other.len())),
    };
    let open = match vm.state {
        VmState::Running | VmState::Paused => true,
        VmState::Created | VmState::Stopped | VmState::Error => false,
        VmState::Starting | VmState::Stopping => return None,
    };
    let told = info.state == if open { ForwardState::Open } else { ForwardState::Closed };
    let is_open = TcpListener::bind(info.forward.listens_at()).is_err();
    (!told || is_open != open).then(|| format!("of a VM that is {}, {info:?} is {is_open}", vm.state))
}

/// A forward to port 80 from an address of its own, so that no other test has its port meanwhile.
fn forward() -> Forward {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let last = (NEXT.fetch_add(1, Ordering::Relaxed) % 250) as u8 + 1;
    let address = Ipv4Addr::new(127, high | 1, low, last).into();
    Forward { address, host: 0, guest: NonZeroU16::MIN.saturating_add(79) }
}

/// The request for the one VM.
pub(crate) fn spec(ephemeral: bool, larger: bool) -> anyhow::Result<VmSpec> {
    Ok(VmSpec {
        name: Some(NAME.parse()?),
        image: IMAGE.parse()?,
        kernel: KERNEL.parse()?,
        vcpus: 1,
        memory: VmSpec::MIN_MEMORY,
        disk: larger.then(|| ByteSize::bytes(IMAGE_SIZE.as_bytes() * 2)),
        nat: true,
        ephemeral,
        env: std::collections::BTreeMap::new(),
        forwards: vec![forward()],
    })
}

/// How it is started.
pub(crate) fn options(wait: Wait) -> StartOptions {
    StartOptions { wait, timeout_s: 30 }
}

/// Both ends of a lease: the client's, and what is sent with the call.
pub(crate) fn lease() -> anyhow::Result<(UnixStream, std::os::fd::OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    Ok((ours, theirs.into()))
}

/// An error with everything it knows.
pub(crate) fn whole(error: ErrorReport) -> anyhow::Error {
    anyhow::anyhow!("{}: {}", error.message, error.causes.join(": "))
}

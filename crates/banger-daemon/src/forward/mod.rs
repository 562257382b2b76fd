//! Ports of the host that lead into VMs: listeners of the daemon, whose connections the guest channel carries.
//!
//! ```text
//! store (which there are) --> one task per VM that has some --> listeners --> carry, one task per connection
//!                  the VM's view (whether it runs) --^
//! ```
//! A VM's ports are open from the beginning of its start until it is at rest, over its own reboots and a restart, and open
//! again when a daemon finds it running; the kernel closes them when the daemon is gone, so nothing of them is in the
//! journal. A start is refused before it begins where a port cannot be had ([`Forwarder::claim`]). Where that shows
//! later, because somebody took it while no daemon ran, the VM runs on, the forward is shown as failed, and the port is
//! tried for again.
//!
//! Which ports a VM has is written here alone; its driver does not know of them.

mod accept;
mod carry;
mod listen;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use banger_proto::ports::{ForwardInfo, ForwardState};
use banger_proto::{ErrorCode, ErrorReport, Forward, VmId, VmState};
use tokio::sync::{Notify, Semaphore};
use tracing::Instrument;

use self::accept::{ALL_CONNECTIONS, Accepting, Connections, MAX_CONNECTIONS, accept};
use self::listen::{Listener, overlap};
use crate::lifecycle::driver::Handle;
use crate::lifecycle::report::sentence;
use crate::store::{Durability, Store, forwards};

/// Forwards of one VM.
pub const MAX_FORWARDS: usize = 64;
/// Between two tries for a port that is taken.
const RETRY: Duration = Duration::from_secs(2);

/// The forwards of every VM.
#[derive(Debug)]
pub struct Forwards {
    store: Store,
    vms: Mutex<BTreeMap<VmId, Arc<Forwarder>>>,
    connections: Arc<Semaphore>,
}

/// Ports that are taken for a VM that is about to be made.
#[derive(Debug, Default)]
pub struct Taken(Vec<(Forward, Listener)>);

/// The forwards of one VM.
pub struct Forwarder {
    handle: Handle,
    rows: Mutex<Rows>,
    changed: Notify,
    /// Held while store and rows are changed together.
    changing: tokio::sync::Mutex<()>,
    connections: Connections,
}

#[derive(Default)]
struct Rows {
    rows: Vec<Row>,
    /// Starts that are under way.
    claims: usize,
}

struct Row {
    forward: Forward,
    open: Option<Accepting>,
    failure: Option<String>,
}

/// While this exists, a VM's ports stay open as if it ran.
#[derive(Debug)]
pub struct Claim(Arc<Forwarder>);

impl std::fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forwarder").field("vm", &self.handle).finish_non_exhaustive()
    }
}

impl Rows {
    /// Where the VM's ports are, open or not.
    fn listeners(&self) -> impl Iterator<Item = SocketAddr> {
        self.rows.iter().map(|row| row.forward.listens_at())
    }
}

impl Taken {
    /// The forwards, with their real ports.
    pub fn forwards(&self) -> Vec<Forward> {
        self.0.iter().map(|(forward, _)| *forward).collect()
    }
}

impl Forwards {
    pub(crate) fn new(store: Store) -> Self {
        Self { store, vms: Mutex::default(), connections: Arc::new(Semaphore::new(ALL_CONNECTIONS)) }
    }

    /// Takes the ports that a VM is to have, before it is made.
    pub fn take(&self, wanted: &[Forward]) -> Result<Taken, ErrorReport> {
        if wanted.len() > MAX_FORWARDS {
            return Err(too_many());
        }
        wanted.iter().map(|forward| self.bind(forward)).collect::<Result<_, _>>().map(Taken)
    }

    /// Begins to serve a VM that was just made and has its rows in the store. Its ports stay open while the claim lives.
    pub fn begin_new(&self, handle: &Handle, taken: Taken) -> Claim {
        let forwarder = self.of(handle);
        {
            let mut rows = forwarder.lock();
            rows.claims += 1;
            rows.rows =
                taken.0.into_iter().map(|(forward, listener)| forwarder.row(forward, listener)).collect();
        }
        Claim(forwarder)
    }

    /// Begins to serve a VM that an earlier daemon left.
    pub fn begin(&self, handle: &Handle, of_store: Vec<Forward>) {
        let row = |forward| Row { forward, open: None, failure: None };
        let forwarder = self.of(handle);
        forwarder.lock().rows = of_store.into_iter().map(row).collect();
        forwarder.changed.notify_one();
    }

    /// Opens a VM's ports for its start, or says why that cannot be. What runs has them already.
    pub fn claim(&self, handle: &Handle) -> Result<Option<Claim>, ErrorReport> {
        let forwarder = self.vms().get(&handle.view().record.id).cloned();
        forwarder.map(|forwarder| self.claim_of(forwarder)).transpose()
    }

    fn claim_of(&self, forwarder: Arc<Forwarder>) -> Result<Claim, ErrorReport> {
        let mut rows = forwarder.lock();
        if !forwarder.is_on() {
            let missing = rows.rows.iter().filter(|row| row.open.is_none());
            let bound = missing.map(|row| self.bind(&row.forward)).collect::<Result<Vec<_>, _>>();
            let bound = bound.map_err(|error| {
                let name = forwarder.handle.view().record.name;
                let mut refused = ErrorReport::new(error.code, format!("cannot start VM '{name}'"));
                refused.causes = [vec![error.message], error.causes].concat();
                refused.hints = vec![
                    format!("free the port, or end the forward: banger vm forward {name} --remove PORT"),
                    format!("all forwards of it: banger vm forward {name}"),
                ];
                refused
            })?;
            for (forward, listener) in bound {
                let row = forwarder.row(forward, listener);
                if let Some(place) = rows.rows.iter_mut().find(|place| place.forward == forward) {
                    *place = row;
                }
            }
        }
        rows.claims += 1;
        drop(rows);
        Ok(Claim(forwarder))
    }

    /// Adds a forward to a VM, and opens it where the VM runs. Returns it with its real port.
    pub async fn add(&self, handle: &Handle, wanted: Forward) -> Result<ForwardInfo, ErrorReport> {
        let forwarder = self.of(handle);
        let _changing = forwarder.changing.lock().await;
        if forwarder.lock().rows.len() >= MAX_FORWARDS {
            return Err(too_many());
        }
        let (forward, listener) = self.bind(&wanted)?;
        let record = handle.view().record;
        let at = forward.listens_at();
        let own = forwarder.lock().listeners().find(|own| overlap(*own, at));
        if let Some(at) = own {
            // It does not run, or the port could not have been had: its next start could not have both.
            let text = format!("VM '{}' has a forward at {at} already", record.name);
            return Err(ErrorReport::new(ErrorCode::AlreadyExists, text)
                .hint(format!("banger vm forward {} shows it", record.name)));
        }
        let durability = if record.ephemeral { Durability::Process } else { Durability::Host };
        let written = self.store.call(durability, move |conn| forwards::insert(conn, &record.id, &forward));
        written.await.map_err(|error| error.report(format!("cannot forward {forward}")))?;
        {
            let mut rows = forwarder.lock();
            if handle.view().gone {
                // Its task has closed its ports, or waits for these rows to do so: nobody would close this one.
                return Err(handle.gone());
            }
            let on = forwarder.is_on() || rows.claims > 0;
            rows.rows.push(if on {
                forwarder.row(forward, listener)
            } else {
                Row { forward, open: None, failure: None }
            });
        }
        forwarder.changed.notify_one();
        let listed = forwarder.list();
        let added = listed.into_iter().find(|info| info.forward == forward);
        Ok(added.unwrap_or(ForwardInfo { forward, state: ForwardState::Closed, cause: None }))
    }

    /// Ends a forward. Connections that it has go on.
    pub async fn remove(&self, handle: &Handle, listener: SocketAddr) -> Result<(), ErrorReport> {
        let record = handle.view().record;
        let missing = || {
            let text = format!("VM '{}' has no forward at {listener}", record.name);
            ErrorReport::new(ErrorCode::NotFound, text)
                .hint(format!("which it has: banger vm forward {}", record.name))
        };
        let forwarder = self.vms().get(&record.id).cloned().ok_or_else(missing)?;
        let _changing = forwarder.changing.lock().await;
        if !forwarder.lock().listeners().any(|own| own == listener) {
            return Err(missing());
        }
        let (id, durability) = (record.id.clone(), Durability::Host);
        let written = self.store.call(durability, move |conn| forwards::delete(conn, &id, listener)).await;
        written.map_err(|error| error.report(format!("cannot end the forward at {listener}")))?;
        forwarder.lock().rows.retain(|row| row.forward.listens_at() != listener);
        Ok(())
    }

    /// The forwards of a VM, by port.
    pub fn list(&self, vm: &VmId) -> Vec<ForwardInfo> {
        let forwarder = self.vms().get(vm).cloned();
        forwarder.map_or_else(Vec::new, |forwarder| forwarder.list())
    }

    /// The forwarder of a VM, made where there is none.
    fn of(&self, handle: &Handle) -> Arc<Forwarder> {
        let id = handle.view().record.id;
        let mut vms = self.vms();
        // Those of VMs that are gone have nothing open any more.
        vms.retain(|_, forwarder| !forwarder.handle.view().gone);
        let new = || {
            let connections = Connections {
                of_vm: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
                of_all: self.connections.clone(),
            };
            let forwarder = Arc::new(Forwarder {
                handle: handle.clone(),
                rows: Mutex::default(),
                changed: Notify::new(),
                changing: tokio::sync::Mutex::default(),
                connections,
            });
            let span = tracing::info_span!("forward", vm = %id);
            tokio::spawn(forwarder.clone().run().instrument(span));
            forwarder
        };
        vms.entry(id.clone()).or_insert_with(new).clone()
    }

    /// Takes a port, or says who has it.
    fn bind(&self, forward: &Forward) -> Result<(Forward, Listener), ErrorReport> {
        match Listener::bind(forward) {
            Ok(listener) => Ok((Forward { host: listener.port(), ..*forward }, listener)),
            Err(mut error) if error.code == ErrorCode::InUse => {
                let at = forward.listens_at();
                let ours =
                    self.vms().values().find(|other| other.has_open(at)).map(|other| other.handle.view());
                if let Some(ours) = ours {
                    let name = ours.record.name;
                    error.causes = vec![format!("VM '{name}' has it")];
                    error.hints.push(format!("end that forward: banger vm forward {name} --remove {at}"));
                }
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    fn vms(&self) -> MutexGuard<'_, BTreeMap<VmId, Arc<Forwarder>>> {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Forwarder {
    /// Opens and closes with the VM's state, until the VM is gone or the daemon lets go of it.
    async fn run(self: Arc<Self>) {
        let mut view = self.handle.watch();
        while !view.borrow_and_update().gone {
            let all_open = self.settle();
            tokio::select! {
                changed = view.changed() => if changed.is_err() { break },
                () = self.changed.notified() => {}
                () = tokio::time::sleep(RETRY), if !all_open => {}
            }
        }
        self.lock().rows.clear();
    }

    /// Makes the ports as the VM's state wants them; whether none is missing.
    fn settle(&self) -> bool {
        let mut rows = self.lock();
        let on = self.is_on() || rows.claims > 0;
        for row in &mut rows.rows {
            if !on {
                row.open = None;
                row.failure = None;
                continue;
            }
            if row.open.is_some() {
                continue;
            }
            match Listener::bind(&row.forward) {
                Ok(listener) => *row = self.row(row.forward, listener),
                Err(error) => {
                    let why = sentence(&error);
                    if row.failure.as_ref() != Some(&why) {
                        tracing::warn!(forward = %row.forward, why, "a forward cannot be opened");
                    }
                    row.failure = Some(why);
                }
            }
        }
        rows.rows.iter().all(|row| row.failure.is_none())
    }

    /// Whether the VM's ports are to be open.
    fn is_on(&self) -> bool {
        let view = self.handle.view();
        match view.record.state {
            VmState::Starting | VmState::Running | VmState::Paused | VmState::Stopping => !view.gone,
            VmState::Created | VmState::Stopped | VmState::Error => false,
        }
    }

    fn has_open(&self, at: SocketAddr) -> bool {
        // The caller may hold the rows of one VM, whose ports are not open.
        let Ok(rows) = self.rows.try_lock() else { return false };
        rows.rows.iter().any(|row| row.open.is_some() && overlap(row.forward.listens_at(), at))
    }

    /// An open port, or why it is not.
    fn row(&self, forward: Forward, listener: Listener) -> Row {
        match listener.acceptor() {
            Ok(acceptor) => {
                let (handle, connections) = (self.handle.clone(), self.connections.clone());
                let task = tokio::spawn(accept(acceptor, handle, forward, connections).in_current_span());
                Row { forward, open: Some(Accepting { _listener: listener, task }), failure: None }
            }
            Err(error) => Row { forward, open: None, failure: Some(error.to_string()) },
        }
    }

    fn list(&self) -> Vec<ForwardInfo> {
        let rows = self.lock();
        let info = |row: &Row| {
            let state = match (&row.open, &row.failure) {
                (Some(_), _) => ForwardState::Open,
                (None, Some(_)) => ForwardState::Failed,
                (None, None) => ForwardState::Closed,
            };
            ForwardInfo { forward: row.forward, state, cause: row.failure.clone() }
        };
        let mut list: Vec<ForwardInfo> = rows.rows.iter().map(info).collect();
        list.sort_by_key(|info| (info.forward.host, info.forward.address));
        list
    }

    fn lock(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.lock().claims -= 1;
        self.0.changed.notify_one();
    }
}

fn too_many() -> ErrorReport {
    ErrorReport::new(ErrorCode::InvalidInput, format!("a VM has at most {MAX_FORWARDS} forwards"))
        .hint("end one: banger vm forward NAME --remove PORT")
}

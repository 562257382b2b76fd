//! Documents of a VM's ports.

use banger_proto::daemon::VmInfo;
use banger_proto::guest;
use banger_proto::ports::{ForwardInfo, ForwardState};
use serde::Serialize;

/// `vm forward`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Forwards {
    /// The VM's id, 12 hexadecimal digits.
    id: String,
    /// Its name.
    name: String,
    /// By the host's port.
    forwards: Vec<ForwardDoc>,
}

/// A TCP port of the host that leads into a VM.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(rename = "Forward"))]
pub(crate) struct ForwardDoc {
    /// The host's address.
    address: String,
    /// The host's port.
    host: u16,
    /// The guest's port.
    guest: u16,
    /// open, closed (the VM does not run) or failed.
    state: String,
    /// Why it has failed.
    cause: Option<String>,
}

impl From<&ForwardInfo> for ForwardDoc {
    fn from(info: &ForwardInfo) -> Self {
        Self {
            address: info.forward.address.to_string(),
            host: info.forward.host,
            guest: info.forward.guest.get(),
            state: info.state.as_str().to_owned(),
            cause: info.cause.clone(),
        }
    }
}

/// `vm ports`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct PortsOfVms {
    /// In the order of the arguments.
    pub(crate) vms: Vec<PortsOfVm>,
}

/// What a VM listens on.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct PortsOfVm {
    /// Its id, 12 hexadecimal digits.
    id: String,
    /// Its name.
    name: String,
    /// By port.
    ports: Vec<Port>,
    /// Ports of the host that lead into it, whether something listens there or not.
    forwards: Vec<ForwardDoc>,
    /// Whether all of its processes were looked at; otherwise some may be missing.
    complete: bool,
}

/// A TCP port on which something listens.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Port {
    /// The guest's address.
    address: String,
    /// The guest's port.
    port: u16,
    /// Who listens, as far as it is known.
    processes: Vec<Process>,
    /// Where the host listens for it now, as ADDRESS:PORT. Forwards that are closed or failed are among `forwards` alone.
    host: Vec<String>,
}

/// A process of a guest.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Process {
    /// Its number in the guest.
    pid: u32,
    /// Its name, as it calls itself.
    name: String,
}

impl From<&VmInfo> for Forwards {
    fn from(vm: &VmInfo) -> Self {
        Self {
            id: vm.id.to_string(),
            name: vm.name.to_string(),
            forwards: vm.forwards.iter().map(Into::into).collect(),
        }
    }
}

impl PortsOfVm {
    /// What a guest listens on, with the ways to it.
    pub(crate) fn new(vm: &VmInfo, found: &guest::Ports) -> Self {
        let process =
            |process: &guest::GuestProcess| Process { pid: process.pid, name: process.name.clone() };
        let port = |socket: &guest::Listening| Port {
            address: socket.address.to_string(),
            port: socket.port,
            processes: socket.processes.iter().map(process).collect(),
            host: found
                .forwards_to(socket, &vm.forwards)
                .filter(|info| info.state == ForwardState::Open)
                .map(|info| info.forward.listens_at().to_string())
                .collect(),
        };
        Self {
            id: vm.id.to_string(),
            name: vm.name.to_string(),
            ports: found.listening.iter().map(port).collect(),
            forwards: vm.forwards.iter().map(Into::into).collect(),
            complete: found.complete,
        }
    }
}

//! Documents of a VM's ports.

use banger_proto::ports::ForwardInfo;
use serde::Serialize;

/// `vm forward`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Forwards {
    /// By the host's port.
    pub(crate) forwards: Vec<ForwardDoc>,
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

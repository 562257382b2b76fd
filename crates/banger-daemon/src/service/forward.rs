//! Ports of the host that lead into VMs.

use std::net::SocketAddr;

use banger_proto::ports::ForwardInfo;
use banger_proto::{ErrorReport, Forward};

use super::Services;

impl Services {
    /// `VmForward`.
    pub async fn vm_forward(&self, vm: &str, forward: Forward) -> Result<ForwardInfo, ErrorReport> {
        let handle = self.drivers.find(vm)?;
        self.drivers.world().forwards.add(&handle, forward).await
    }

    /// `VmUnforward`.
    pub async fn vm_unforward(&self, vm: &str, listener: SocketAddr) -> Result<(), ErrorReport> {
        let handle = self.drivers.find(vm)?;
        self.drivers.world().forwards.remove(&handle, listener).await
    }
}

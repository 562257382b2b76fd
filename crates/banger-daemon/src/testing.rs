//! Builders for this crate's own tests.

use banger_proto::{ByteSize, Digest, VmId, VmState};

use crate::model::VmRecord;

pub(crate) fn vm_record(name: &str, number: u8) -> VmRecord {
    VmRecord {
        id: VmId::from_random([number; 6]),
        name: name.parse().unwrap(),
        state: VmState::Created,
        cause: None,
        image: "debian".parse().unwrap(),
        image_digest: Digest::from_sha256([1; 32]),
        image_size: ByteSize::mib(1024),
        kernel: "debian-6.1".parse().unwrap(),
        kernel_digest: Digest::from_sha256([2; 32]),
        vcpus: 1,
        memory: ByteSize::mib(512),
        disk: ByteSize::mib(1024),
        disk_strategy: "fake".into(),
        nat: false,
        ephemeral: false,
        env: std::collections::BTreeMap::new(),
        machine_id: "0123456789abcdef0123456789abcdef".into(),
        created_at: 1,
        started_at: None,
        degraded: Vec::new(),
        pending: vec![banger_proto::spec::Changeable::Memory],
    }
}

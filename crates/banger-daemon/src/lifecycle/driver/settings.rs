//! What a VM is made of, changed: now where that is possible, else at its next start.
//!
//! The store has the new settings, and which of them wait for a start, from before anything is done about them. A disk
//! is never made smaller, so a growth that was cut off needs nothing but that start.

use banger_proto::spec::Changeable;
use banger_proto::{ByteSize, ErrorCode, ErrorReport, VmState};

use super::Driver;
use super::operations::Asked;
use crate::lifecycle::cancel;
use crate::lifecycle::effects::lock;
use crate::lifecycle::journal::Operation;
use crate::lifecycle::plan::{self, Kind};
use crate::lifecycle::report::{both, sentence};
use crate::model::VmRecord;

impl Driver {
    pub(super) async fn set(&mut self, asked: &Asked) -> Result<(), ErrorReport> {
        let before = self.record.clone();
        let change = asked.change;
        let disk = change.disk.unwrap_or(before.disk);
        if disk < before.disk {
            return Err(self.shrinks(disk));
        }
        let record = &mut self.record;
        record.vcpus = change.vcpus.unwrap_or(before.vcpus);
        record.memory = change.memory.unwrap_or(before.memory);
        record.disk = disk;
        record.nat = change.nat.unwrap_or(before.nat);
        // One that could not be made larger while it ran is tried again.
        let waits = before.pending.contains(&Changeable::Disk);
        let grows = disk > before.disk || (waits && change.disk.is_some());
        let changed = differences(&before, record, grows);
        if changed.is_empty() {
            asked.report().note(&format!("VM '{}' is made of that already", record.name));
            return Ok(());
        }
        // A machine that an error left still has what it was started with.
        let runs = lock(&self.live).machine.is_some();
        for what in &changed {
            let waits = runs || *what == Changeable::Disk;
            if waits && !record.pending.contains(what) {
                record.pending.push(*what);
            }
        }
        record.pending.sort_unstable();
        let plan = match (grows, runs) {
            (true, false) => Some(plan::grow()),
            (true, true) if self.record.state == VmState::Running => Some(plan::extend()),
            (true | false, _) => None,
        };
        let begun = match plan {
            Some(plan) => self.begin(plan, self.record.state).await.map(Some),
            None => self.save().await.map(|()| None),
        };
        match begun {
            Ok(Some(operation)) => self.grow(operation, before, asked).await?,
            Ok(None) => self.publish(false),
            Err(error) => {
                self.record = before;
                return Err(error);
            }
        }
        self.tell(&changed, asked);
        Ok(())
    }

    /// Makes the disk larger. Under a guest, what cannot be done now is left for the next start; at rest it is not wanted
    /// any more, and neither is what was asked for with it.
    async fn grow(
        &mut self,
        operation: Operation,
        before: VmRecord,
        asked: &Asked,
    ) -> Result<(), ErrorReport> {
        let state = before.state;
        let (canceller, off) = cancel::pair();
        let failed = match self.work(&operation, asked, &canceller, &off).await {
            Ok(()) => {
                self.record.pending.retain(|what| *what != Changeable::Disk);
                None
            }
            Err(undone) if operation.kind() == Kind::Extend => {
                let (name, why) = (&self.record.name, sentence(&undone.error));
                asked
                    .report()
                    .warning(&format!("the disk of VM '{name}' does not grow while it runs: {why}"));
                None
            }
            Err(undone) => {
                let now = self.disk_now().await.unwrap_or(before.disk);
                // What waited for the next start does so still.
                let waits = before.pending.contains(&Changeable::Disk);
                let disk = if waits { now.max(before.disk) } else { now };
                self.record = VmRecord { disk, ..before };
                Some(undone.error)
            }
        };
        // What called it off has said already where the VM goes; the store has that from when it begins.
        let closed = self.close_in(state, &operation, true).await;
        self.publish(false);
        match failed {
            Some(error) => Err(both(error, closed)),
            None => closed,
        }
    }

    /// How large it is, whatever was wanted.
    async fn disk_now(&self) -> Option<ByteSize> {
        let dirs = self.world.dirs(&self.record.id);
        self.world.ports.disks.open(&dirs).await.ok().map(|disk| disk.size)
    }

    fn shrinks(&self, to: ByteSize) -> ErrorReport {
        let VmRecord { name, disk, .. } = &self.record;
        ErrorReport::new(ErrorCode::InvalidInput, format!("cannot change VM '{name}'"))
            .cause(format!("its disk has {disk}, and a disk is never made smaller, as to {to}"))
            .hint("make a new VM with a smaller disk, and copy what you need")
    }

    fn tell(&self, changed: &[Changeable], asked: &Asked) {
        let VmRecord { name, vcpus, memory, disk, nat, pending, .. } = &self.record;
        for what in changed {
            let value = match what {
                Changeable::Vcpus if *vcpus == 1 => "1 vCPU".to_owned(),
                Changeable::Vcpus => format!("{vcpus} vCPUs"),
                Changeable::Memory => format!("{memory} of memory"),
                Changeable::Disk => format!("a disk of {disk}"),
                Changeable::Nat if *nat => "a network that reaches outside".to_owned(),
                Changeable::Nat => "no network".to_owned(),
            };
            let when = match pending.contains(what) {
                true => "gets, at its next start,",
                false => "has now",
            };
            asked.report().note(&format!("VM '{name}' {when} {value}"));
        }
    }
}

fn differences(before: &VmRecord, now: &VmRecord, grows: bool) -> Vec<Changeable> {
    let all = [
        (Changeable::Vcpus, before.vcpus != now.vcpus),
        (Changeable::Memory, before.memory != now.memory),
        (Changeable::Disk, grows),
        (Changeable::Nat, before.nat != now.nat),
    ];
    all.into_iter().filter(|(_, differs)| *differs).map(|(what, _)| what).collect()
}

//! What the host has against what the daemon's store and the daemon's clients are told.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::Context;
use banger_daemon::lifecycle::identity;
use banger_daemon::store::{Store, journal, vms};
use banger_proto::daemon::VmInfo;
use banger_proto::spec::Changeable;
use banger_proto::{VmId, VmState};

use super::FakeWorld;
use super::processes::Stage;

impl FakeWorld {
    /// What is there of VMs that the store does not know, processes that run and are not recorded, and whatever no
    /// daemon may ever do. The daemon may live, and has to be at rest.
    pub fn leaks(&self) -> anyhow::Result<Vec<String>> {
        let conn = Store::open_read_only(&self.paths().database())?;
        let mut known = BTreeMap::new();
        for vm in vms::all(&conn)? {
            let processes = vms::processes(&conn, &vm.id)?;
            known.insert(vm.id, processes);
        }
        let state = self.lock();
        let mut leaks = state.violations.clone();
        for process in state.processes.values() {
            let recorded = known.get(&process.vm).is_some_and(|processes| {
                processes.iter().any(|(role, record)| (*role, record) == (process.role, &process.record))
            });
            match process.stage {
                Stage::Runs if !recorded => {
                    leaks.push(format!("the {} of VM {} is not recorded", process.role.as_str(), process.vm));
                }
                Stage::Waits => {
                    leaks.push(format!("the {} of VM {} waits for ever", process.role.as_str(), process.vm));
                }
                Stage::Runs => {}
            }
        }
        let disks: Vec<_> = known.keys().map(|vm| self.dirs(vm).root_raw()).collect();
        leaks.extend(
            state
                .disks
                .keys()
                .filter(|path| !disks.contains(path))
                .map(|path| format!("the disk {}", path.display())),
        );
        for link in state.links.values().filter(|link| !known.contains_key(&link.vm)) {
            leaks.push(format!("a link to VM {}", link.vm));
        }
        drop(state);
        for dir in [&self.0.paths.runtime, &self.0.paths.state] {
            let of_vms = dir.join("vms");
            leaks.extend(
                names(&of_vms)?
                    .into_iter()
                    .filter(|name| !name.parse::<VmId>().is_ok_and(|vm| known.contains_key(&vm)))
                    .map(|name| format!("{}/{name}", of_vms.display())),
            );
        }
        if !self.has_contents() {
            leaks.push("the image or the kernel is gone that the store names".into());
        }
        Ok(leaks)
    }

    /// Where what the daemon says of its VMs is not so: a state without its machine, a machine without its state,
    /// something left of a VM that is at rest, an operation that nobody will end, or a host key that ssh is not told of.
    pub fn untruths(&self, vms: &[VmInfo]) -> anyhow::Result<Vec<String>> {
        let conn = Store::open_read_only(&self.paths().database())?;
        let open = journal::open_operations(&conn)?;
        let mut untruths = Vec::new();
        for vm in vms {
            let mut wrong =
                |what: String| untruths.push(format!("VM {} is {}, but {what}", vm.name, vm.state));
            let dirs = self.dirs(&vm.id);
            let state = self.lock();
            let machines: Vec<_> = state.machines.values().filter(|machine| machine.vm == vm.id).collect();
            let processes = state.processes.values().filter(|process| process.vm == vm.id).count();
            let links = state.links.values().filter(|link| link.vm == vm.id).count();
            match vm.state {
                VmState::Running | VmState::Paused => {
                    let paused = vm.state == VmState::Paused;
                    match machines[..] {
                        [machine] if machine.paused == paused => {}
                        [machine] => wrong(format!("paused is {} of its machine", machine.paused)),
                        _ => wrong(format!("it has {} machines", machines.len())),
                    }
                    if links != 1 {
                        wrong(format!("it has {links} links"));
                    }
                }
                VmState::Created | VmState::Stopped => {
                    if (machines.len(), processes, links) != (0, 0, 0) {
                        wrong(format!("it has {processes} processes and {links} links"));
                    }
                    if dirs.runtime.exists() {
                        wrong("it has a directory for sockets".into());
                    }
                }
                // Something could not be done: what is left is what the store has recorded.
                VmState::Error => {}
                VmState::Starting | VmState::Stopping => wrong("nothing is under way".into()),
            }
            if vm.state != VmState::Error {
                if !dirs.state.is_dir()
                    || !state.disks.get(&dirs.root_raw()).is_some_and(|disk| disk.complete)
                {
                    wrong("it has no disk".into());
                }
                let disk = state.disks.get(&dirs.root_raw()).map(|disk| disk.size);
                if disk != Some(vm.disk) && !vm.pending.contains(&Changeable::Disk) {
                    wrong(format!("its disk of {} has {disk:?}", vm.disk));
                }
                if let Some(open) = open.iter().find(|open| open.vm == vm.id) {
                    wrong(format!("its {} has not ended", open.kind));
                }
            }
        }
        for machine in self.lock().machines.values() {
            if !vms.iter().any(|vm| vm.id == machine.vm) {
                untruths.push(format!("nobody shows VM {}, which runs", machine.vm));
            }
        }
        self.unknown_hosts(vms, &mut untruths)?;
        Ok(untruths)
    }

    /// Whether ssh is told of the host keys that there are, and of no others.
    fn unknown_hosts(&self, vms: &[VmInfo], untruths: &mut Vec<String>) -> anyhow::Result<()> {
        let file = self.paths().ssh().join("known_hosts");
        // Without a daemon nobody has written it.
        let text = match std::fs::read_to_string(&file) {
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            read => read.with_context(|| format!("reading {}", file.display()))?,
        };
        let mut told: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        for vm in vms {
            let name = &vm.name;
            let Some(key) = identity::host_public(&self.dirs(&vm.id).state)
                .map_err(|error| anyhow::anyhow!("the host key of {name}: {error:?}"))?
            else {
                continue;
            };
            let line = format!("{name}.vm,[{name}.vm]:* {key}");
            match told.iter().position(|told| *told == line) {
                Some(at) => drop(told.swap_remove(at)),
                None => untruths.push(format!("ssh is not told that VM {name} has {key}")),
            }
        }
        untruths.extend(told.iter().map(|line| format!("ssh is told of {line}")));
        Ok(())
    }
}

fn names(dir: &Path) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    if dir.is_dir() {
        for entry in std::fs::read_dir(dir)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

//! Operations as lists of named steps. Pure.
//!
//! A plan is a row of stages; the steps of one stage do not depend on each other and run side by side. A step is safe
//! to repeat, and so is its undo: after a crash nobody knows how far the last one came.

use std::time::Duration;

use banger_proto::spec::Wait;

/// What is done to a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Makes its files.
    Create,
    /// Makes it run.
    Start,
    /// Ends it in order.
    Stop,
    /// Ends it at once.
    Kill,
    /// Cleans up after its machine ended.
    Settle,
    /// Removes it.
    Delete,
    /// Makes its disk larger while it does not run.
    Grow,
    /// Makes its disk larger while it runs.
    Extend,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::Create,
        Self::Start,
        Self::Stop,
        Self::Kill,
        Self::Settle,
        Self::Delete,
        Self::Grow,
        Self::Extend,
    ];

    /// The word in the journal and in sentences.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Kill => "kill",
            Self::Settle => "clean up after",
            Self::Delete => "delete",
            Self::Grow => "grow",
            Self::Extend => "extend",
        }
    }

    /// What becomes of one that a crash cut off.
    pub const fn after_crash(self) -> AfterCrash {
        match self {
            Self::Create | Self::Start => AfterCrash::Undo,
            Self::Stop | Self::Kill | Self::Settle | Self::Delete => AfterCrash::Finish,
            Self::Grow | Self::Extend => AfterCrash::NextStart,
        }
    }

    /// Whether it waits for the guest. Such a one can be called off, while it waits; the others are short.
    pub const fn waits_for_guest(self) -> bool {
        match self {
            Self::Start | Self::Stop | Self::Extend => true,
            Self::Create | Self::Kill | Self::Settle | Self::Delete | Self::Grow => false,
        }
    }

    /// The kind of this word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

/// How an operation that a crash cut off comes to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterCrash {
    /// What was begun is taken back, last step first.
    Undo,
    /// Its plan is run from the beginning: every step of it is safe to repeat, and no guest can hold it up for ever.
    Finish,
    /// Nothing is done: from its begin on the store has it as what the VM's next start makes so.
    NextStart,
}

/// One effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// The directory for disk and logs.
    StateDir,
    /// The root disk.
    RootDisk,
    /// The ssh host keys.
    HostKeys,
    /// The directory for sockets.
    RuntimeDir,
    /// Kernel, initrd and modules drive are looked up, or made.
    BootFiles,
    /// The root disk is as large as the store has it.
    GrowDisk,
    /// The VMM with its keeper and network.
    Vmm,
    /// The link to the agent.
    Link,
    /// The guest is given its identity.
    Configure,
    /// The guest grows its root file system.
    GrowRoot,
    /// The VMM makes the root disk larger under its guest.
    ExtendDisk,
    /// A guest that is up grows its root file system.
    ExtendRoot,
    /// The guest's init says that it is up.
    AwaitBoot,
    /// The guest is asked to end, and given time.
    AskGuest,
    /// The VMM is ended.
    EndVmm,
    /// The link to the agent is closed.
    Unlink,
    /// Processes and runtime files that are left are removed.
    CleanUp,
    /// The root disk is removed.
    RemoveDisk,
    /// The directory for disk and logs is removed.
    RemoveState,
}

impl Step {
    /// Every step.
    pub const ALL: [Self; 19] = [
        Self::StateDir,
        Self::RootDisk,
        Self::HostKeys,
        Self::RuntimeDir,
        Self::BootFiles,
        Self::GrowDisk,
        Self::Vmm,
        Self::Link,
        Self::Configure,
        Self::GrowRoot,
        Self::ExtendDisk,
        Self::ExtendRoot,
        Self::AwaitBoot,
        Self::AskGuest,
        Self::EndVmm,
        Self::Unlink,
        Self::CleanUp,
        Self::RemoveDisk,
        Self::RemoveState,
    ];

    /// The word in the journal.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::StateDir => "state-dir",
            Self::RootDisk => "root-disk",
            Self::HostKeys => "host-keys",
            Self::RuntimeDir => "runtime-dir",
            Self::BootFiles => "boot-files",
            Self::GrowDisk => "grow-disk",
            Self::Vmm => "vmm",
            Self::Link => "link",
            Self::Configure => "configure",
            Self::GrowRoot => "grow-root",
            Self::ExtendDisk => "extend-disk",
            Self::ExtendRoot => "extend-root",
            Self::AwaitBoot => "await-boot",
            Self::AskGuest => "ask-guest",
            Self::EndVmm => "end-vmm",
            Self::Unlink => "unlink",
            Self::CleanUp => "clean-up",
            Self::RemoveDisk => "remove-disk",
            Self::RemoveState => "remove-state",
        }
    }

    /// What it is, in a sentence that says that it failed: "cannot ...".
    pub const fn doing(self) -> &'static str {
        match self {
            Self::StateDir => "make its directory",
            Self::RootDisk => "make its root disk",
            Self::HostKeys => "make its ssh host keys",
            Self::RuntimeDir => "make its directory for sockets",
            Self::BootFiles => "prepare its kernel and initrd",
            Self::GrowDisk => "grow its root disk",
            Self::Vmm => "start its VMM",
            Self::Link => "reach for its agent",
            Self::Configure => "configure its guest",
            Self::GrowRoot => "grow its root file system",
            Self::ExtendDisk => "grow its root disk while it runs",
            Self::ExtendRoot => "grow its root file system while it runs",
            Self::AwaitBoot => "wait for its boot",
            Self::AskGuest => "ask its guest to end",
            Self::EndVmm => "end its VMM",
            Self::Unlink => "close the link to its agent",
            Self::CleanUp => "clean up what its VMM left",
            Self::RemoveDisk => "remove its root disk",
            Self::RemoveState => "remove its directory",
        }
    }

    /// Whether it may be dropped in the middle. Only what waits for the guest: the effects on the host are short, or end when
    /// they are told to, as the copy of a root disk.
    pub const fn may_be_called_off(self) -> bool {
        match self {
            Self::Configure | Self::GrowRoot | Self::ExtendRoot | Self::AwaitBoot | Self::AskGuest => true,
            Self::StateDir
            | Self::RootDisk
            | Self::HostKeys
            | Self::RuntimeDir
            | Self::BootFiles
            | Self::GrowDisk
            | Self::Vmm
            | Self::Link
            | Self::ExtendDisk
            | Self::EndVmm
            | Self::Unlink
            | Self::CleanUp
            | Self::RemoveDisk
            | Self::RemoveState => false,
        }
    }

    /// The step of this word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|step| step.as_str() == word)
    }
}

/// The steps of one operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Of what.
    pub kind: Kind,
    /// One after the other; the steps of each side by side.
    pub stages: Vec<Vec<Step>>,
    /// For a stop: how long the guest has to end by itself, also where the next daemon goes on with it.
    pub stop_within: Option<Duration>,
}

impl Plan {
    const fn new(kind: Kind, stages: Vec<Vec<Step>>) -> Self {
        Self { kind, stages, stop_within: None }
    }
}

/// Whether the file system in the guest is smaller than its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootSize {
    /// The image fills the disk.
    AsImage,
    /// The disk is larger.
    Larger,
}

/// The plan for making a VM's files.
pub fn create() -> Plan {
    Plan::new(Kind::Create, vec![vec![Step::StateDir], vec![Step::RootDisk, Step::HostKeys]])
}

/// The plan for a start.
pub fn start(wait: Wait, root: RootSize) -> Plan {
    let mut stages = vec![
        vec![Step::RuntimeDir, Step::BootFiles],
        vec![Step::Vmm],
        vec![Step::Link],
        vec![Step::Configure],
    ];
    match root {
        RootSize::AsImage => {}
        RootSize::Larger => {
            stages.insert(1, vec![Step::GrowDisk]);
            stages.push(vec![Step::GrowRoot]);
        }
    }
    match wait {
        Wait::Agent => {}
        Wait::Booted => stages.push(vec![Step::AwaitBoot]),
    }
    Plan::new(Kind::Start, stages)
}

/// The plan for an orderly stop, of a guest that has so long to end by itself.
pub fn stop(within: Duration) -> Plan {
    let stages = vec![vec![Step::AskGuest], vec![Step::EndVmm], vec![Step::Unlink], vec![Step::CleanUp]];
    Plan { stop_within: Some(within), ..Plan::new(Kind::Stop, stages) }
}

/// The plan for ending a machine at once.
pub fn kill() -> Plan {
    Plan::new(Kind::Kill, vec![vec![Step::EndVmm], vec![Step::Unlink], vec![Step::CleanUp]])
}

/// The plan for cleaning up after a machine that ended.
pub fn settle() -> Plan {
    Plan::new(Kind::Settle, vec![vec![Step::Unlink], vec![Step::CleanUp]])
}

/// The plan for a deletion: nobody is asked, because the disk goes as well.
pub fn delete() -> Plan {
    let stages = vec![
        vec![Step::EndVmm, Step::Unlink],
        vec![Step::CleanUp],
        vec![Step::RemoveDisk],
        vec![Step::RemoveState],
    ];
    Plan::new(Kind::Delete, stages)
}

/// The plan for making the disk of a VM larger that does not run; its next start grows the file system.
pub fn grow() -> Plan {
    Plan::new(Kind::Grow, vec![vec![Step::GrowDisk]])
}

/// The plan for making the disk of a VM larger that runs.
pub fn extend() -> Plan {
    Plan::new(Kind::Extend, vec![vec![Step::ExtendDisk], vec![Step::ExtendRoot]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> [Plan; 8] {
        let start = start(Wait::Booted, RootSize::Larger);
        [create(), start, stop(Duration::ZERO), kill(), settle(), delete(), grow(), extend()]
    }

    #[test]
    fn words_are_unique_and_come_back() {
        for step in Step::ALL {
            assert_eq!(Step::parse(step.as_str()), Some(step));
        }
        for kind in Kind::ALL {
            assert_eq!(Kind::parse(kind.as_str()), Some(kind));
        }
        assert_eq!(Step::parse("nonsense"), None);
    }

    #[test]
    fn a_plan_names_no_step_twice() {
        for plan in all() {
            let mut steps: Vec<_> = plan.stages.concat();
            let count = steps.len();
            steps.sort_unstable();
            steps.dedup();
            assert_eq!(steps.len(), count, "{plan:?}");
        }
    }

    #[test]
    fn exactly_those_wait_for_the_guest_that_can_be_called_off() {
        for plan in all() {
            let steps = plan.stages.concat();
            let waits = steps.into_iter().any(Step::may_be_called_off);
            assert_eq!(plan.kind.waits_for_guest(), waits, "{plan:?}");
        }
    }

    #[test]
    fn a_start_waits_only_for_what_was_asked() {
        let steps = |plan: Plan| plan.stages.concat();
        assert!(!steps(start(Wait::Agent, RootSize::AsImage)).contains(&Step::AwaitBoot));
        assert!(!steps(start(Wait::Agent, RootSize::AsImage)).contains(&Step::GrowRoot));
        assert!(steps(start(Wait::Booted, RootSize::Larger)).contains(&Step::GrowRoot));
    }
}

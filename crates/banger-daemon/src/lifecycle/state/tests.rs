use super::*;
use proptest::prelude::*;

/// What the driver does with the actions, without any effect: which operations wait, and whether a VMM runs.
#[derive(Debug, Clone)]
struct World {
    state: VmState,
    gone: bool,
    vmm: bool,
    work: std::collections::VecDeque<Action>,
    /// A request called the first operation off.
    taken_over: bool,
}

impl World {
    fn new() -> Self {
        let work = std::collections::VecDeque::new();
        Self { state: VmState::Created, gone: false, vmm: false, work, taken_over: false }
    }

    /// Whether the driver takes requests: between operations, and beside one that waits for the guest.
    fn listens(&self) -> bool {
        !self.taken_over
            && matches!(self.work.front(), None | Some(Action::Start | Action::Stop | Action::StopFirst))
    }

    fn request(&mut self, event: Event) {
        if self.listens() {
            self.event(event);
        }
    }

    fn event(&mut self, event: Event) {
        let Ok((next, actions)) = next(self.state, event) else { return };
        match next {
            Next::State(state) => self.state = state,
            Next::Gone => self.gone = true,
        }
        for action in actions {
            // Never beside a machine that is still there.
            assert!(action != Action::Start || !self.vmm || !self.work.is_empty(), "{self:?}");
            match action {
                Action::CallOff => {
                    self.taken_over = true;
                    // What was to follow does not.
                    self.work.truncate(1);
                }
                Action::Set => {}
                Action::Pause | Action::Resume => assert!(self.vmm, "no vCPUs to {action:?}"),
                Action::Start
                | Action::Stop
                | Action::StopFirst
                | Action::Kill
                | Action::Settle(_)
                | Action::CleanUp
                | Action::Delete => self.work.push_back(action),
            }
        }
    }

    /// The end of an operation, which is none where a request took over.
    fn ended(&mut self, event: Event) {
        if !std::mem::take(&mut self.taken_over) {
            self.event(event);
        }
    }

    /// The first operation ends by itself.
    fn finish(&mut self, success: bool) {
        let Some(action) = self.work.pop_front() else { return };
        self.vmm = match action {
            Action::Start => success,
            // What fails may leave it.
            _ => self.vmm && !success,
        };
        self.ended(match action {
            Action::CleanUp if success => return,
            _ if !success => Event::Failed,
            Action::Start => Event::Started,
            Action::Stop | Action::Kill => Event::Settled(Rest::Stopped),
            Action::StopFirst => Event::Halfway,
            Action::Settle(rest) => Event::Settled(rest),
            Action::Delete => Event::Deleted,
            Action::CleanUp | Action::CallOff | Action::Set | Action::Pause | Action::Resume => {
                unreachable!()
            }
        });
        if !success && self.state == VmState::Error {
            // What was to follow does not.
            self.work.clear();
        }
    }

    /// Its caller, or the daemon's end, calls the first operation off.
    fn call_off(&mut self) {
        if !self.listens() {
            return;
        }
        match self.work.pop_front() {
            None => {}
            Some(Action::Start) => {
                self.vmm = false;
                self.event(Event::CalledOff);
            }
            // A stop of what does not run is not called off but fails.
            Some(_) => {
                self.work.clear();
                self.event(if self.vmm { Event::CalledOff } else { Event::Failed });
            }
        }
    }

    fn check(&self) {
        if self.gone {
            assert!(!self.vmm && self.work.is_empty(), "{self:?}");
            return;
        }
        match self.state {
            VmState::Running | VmState::Paused => assert!(self.vmm && self.work.is_empty(), "{self:?}"),
            VmState::Created | VmState::Stopped => {
                assert!(!self.vmm && self.work.is_empty(), "{self:?}");
            }
            VmState::Error => assert!(self.work.is_empty(), "{self:?}"),
            VmState::Starting | VmState::Stopping => assert!(!self.work.is_empty(), "{self:?}"),
        }
    }
}

#[derive(Debug, Clone)]
enum Happening {
    Event(Event),
    Exit(Exit),
    Finish(bool),
    CallOff,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        Just(Happening::Event(Event::Start)),
        Just(Happening::Event(Event::Stop)),
        Just(Happening::Event(Event::Restart)),
        Just(Happening::Event(Event::Kill)),
        Just(Happening::Event(Event::Delete(Force::No))),
        Just(Happening::Event(Event::Delete(Force::Yes))),
        Just(Happening::Event(Event::Pause)),
        Just(Happening::Event(Event::Resume)),
        Just(Happening::Exit(Exit::PoweredOff)),
        Just(Happening::Exit(Exit::Rebooted)),
        Just(Happening::Exit(Exit::Died)),
        any::<bool>().prop_map(Happening::Finish),
        any::<bool>().prop_map(Happening::Finish),
        Just(Happening::CallOff),
    ]
}

proptest! {
    #[test]
    fn any_sequence_keeps_state_and_machine_in_step(happenings in prop::collection::vec(happening(), 0..60)) {
        let mut world = World::new();
        for happening in happenings {
            match happening {
                Happening::Event(event) => world.request(event),
                Happening::Exit(exit) if world.vmm => world.event(Event::Exited(exit)),
                Happening::Exit(_) => {}
                Happening::Finish(success) => world.finish(success),
                Happening::CallOff => world.call_off(),
            }
            world.check();
            if world.gone {
                return Ok(());
            }
        }
        // Whatever happened: what runs comes to its end, and then the VM can be deleted.
        while !world.work.is_empty() {
            world.finish(true);
        }
        world.event(Event::Delete(Force::Yes));
        while !world.work.is_empty() {
            world.finish(true);
        }
        prop_assert!(world.gone, "{world:?}");
    }
}

#[test]
fn the_usual_life() {
    let mut state = VmState::Created;
    for (event, expected) in [
        (Event::Start, VmState::Starting),
        (Event::Started, VmState::Running),
        (Event::Pause, VmState::Paused),
        (Event::Resume, VmState::Running),
        (Event::Exited(Exit::Rebooted), VmState::Starting),
        (Event::Started, VmState::Running),
        (Event::Restart, VmState::Stopping),
        (Event::Halfway, VmState::Starting),
        (Event::Started, VmState::Running),
        (Event::Kill, VmState::Stopping),
        (Event::Settled(Rest::Stopped), VmState::Stopped),
        (Event::Restart, VmState::Starting),
        (Event::Started, VmState::Running),
        (Event::Stop, VmState::Stopping),
        (Event::Settled(Rest::Stopped), VmState::Stopped),
    ] {
        let (next, _) = next(state, event).unwrap();
        assert_eq!(next, Next::State(expected), "{event:?}");
        state = expected;
    }
    assert_eq!(next(state, Event::Delete(Force::No)).unwrap().0, Next::State(VmState::Stopping));
    assert_eq!(next(VmState::Stopping, Event::Deleted).unwrap().0, Next::Gone);
}

#[test]
fn one_that_is_paused_can_be_ended_in_every_way() {
    for (event, expected) in [
        (Event::Stop, &[Action::Resume, Action::Stop][..]),
        (Event::Restart, &[Action::Resume, Action::StopFirst, Action::Start]),
        (Event::Kill, &[Action::Kill]),
        (Event::Delete(Force::Yes), &[Action::Delete]),
    ] {
        let (next, actions) = next(VmState::Paused, event).unwrap();
        assert_eq!((next, &actions[..]), (Next::State(VmState::Stopping), expected), "{event:?}");
    }
}

#[test]
fn what_waits_for_the_guest_gives_way_to_a_forced_deletion() {
    for state in [VmState::Starting, VmState::Stopping] {
        let (next, actions) = next(state, Event::Delete(Force::Yes)).unwrap();
        assert_eq!(next, Next::State(VmState::Stopping), "{state}");
        assert_eq!(actions, [Action::CallOff, Action::Delete], "{state}");
    }
    assert_eq!(next(VmState::Stopping, Event::CalledOff).unwrap().0, Next::State(VmState::Running));
}

#[test]
fn what_is_refused_says_why_and_what_next() {
    let name: VmName = "box".parse().unwrap();
    for (state, event, doing, part) in [
        (VmState::Running, Event::Delete(Force::No), "delete", "delete -f box"),
        (VmState::Stopping, Event::Delete(Force::No), "delete", "delete -f box"),
        (VmState::Stopped, Event::Stop, "stop", "vm start box"),
        (VmState::Running, Event::Start, "start", "vm show box"),
        (VmState::Paused, Event::Start, "start", "vm resume box"),
        (VmState::Paused, Event::Pause, "pause", "vm resume box"),
        (VmState::Running, Event::Resume, "resume", "vm show box"),
        (VmState::Stopped, Event::Resume, "resume", "vm start box"),
        (VmState::Created, Event::Pause, "pause", "vm start box"),
        (VmState::Stopped, Event::Kill, "kill", "vm start box"),
        (VmState::Stopping, Event::Restart, "restart", "vm show box"),
    ] {
        let report = next(state, event).unwrap_err().report(doing, &name, state);
        assert_eq!(report.code, ErrorCode::WrongState);
        assert!(report.hints.iter().any(|hint| hint.contains(part)), "{report:?}");
        assert_eq!(report.causes.len(), 1);
    }
}

use super::*;
use crate::lifecycle::cancel;
use crate::lifecycle::faults::NoFaults;
use crate::lifecycle::plan;
use crate::store::vms;
use crate::testing;
use banger_proto::ErrorCode;
use banger_proto::spec::Wait;
use std::sync::Mutex;
use std::time::Duration;

/// Steps that only say what they do, and that check that the journal knew of them before.
struct Script {
    store: Store,
    log: Mutex<Vec<String>>,
    fails: Option<Step>,
    undo_fails: Option<Step>,
}

impl Script {
    async fn journalled(&self, step: Step) -> bool {
        let open = self.store.call(Durability::Process, journal::open_operations).await.unwrap();
        open.iter().any(|operation| operation.begun.iter().any(|word| word == step.as_str()))
    }
}

#[async_trait]
impl Effects for Script {
    async fn perform(&self, step: Step) -> Result<(), ErrorReport> {
        assert!(self.journalled(step).await, "{step:?} came before its entry");
        self.log.lock().unwrap().push(format!("do {}", step.as_str()));
        if self.fails == Some(step) {
            return Err(ErrorReport::new(ErrorCode::VmmFailed, "it broke"));
        }
        if step == Step::AwaitBoot {
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    async fn undo(&self, step: Step) -> Result<(), ErrorReport> {
        assert!(self.journalled(step).await);
        self.log.lock().unwrap().push(format!("undo {}", step.as_str()));
        if self.undo_fails == Some(step) {
            return Err(ErrorReport::new(ErrorCode::Internal, "it stays"));
        }
        Ok(())
    }
}

struct Bench {
    _dir: tempfile::TempDir,
    store: Store,
    journal: Journal,
    vm: crate::model::VmRecord,
}

async fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("banger.db")).unwrap();
    let vm = testing::vm_record("box", 1);
    let record = vm.clone();
    store.call(Durability::Process, move |conn| vms::insert(conn, &record)).await.unwrap();
    let journal = Journal::new(store.clone(), Arc::new(NoFaults));
    Bench { _dir: dir, store, journal, vm }
}

impl Bench {
    fn script(&self, fails: Option<Step>, undo_fails: Option<Step>) -> Script {
        Script { store: self.store.clone(), log: Mutex::new(Vec::new()), fails, undo_fails }
    }

    async fn begin(&self, wait: Wait) -> Operation {
        let plan = plan::start(wait, plan::RootSize::AsImage);
        self.journal.begin(&self.vm.id, plan, Durability::Process, |_| Ok(())).await.unwrap()
    }

    async fn open(&self) -> usize {
        self.store.call(Durability::Process, journal::open_operations).await.unwrap().len()
    }
}

#[tokio::test]
async fn steps_run_in_order_each_after_its_entry() {
    let bench = bench().await;
    let script = bench.script(None, None);
    let operation = bench.begin(Wait::Agent).await;
    bench.journal.go(&operation, &script, &Cancel::never()).await.unwrap();
    assert_eq!(bench.open().await, 1);
    bench.journal.close(&operation, true, |_| Ok(())).await.unwrap();
    assert_eq!(bench.open().await, 0);
    let log = script.log.lock().unwrap().join(", ");
    assert_eq!(log, "do runtime-dir, do boot-files, do vmm, do link, do configure");
}

#[tokio::test]
async fn a_failure_is_undone_in_reverse_and_every_undo_error_is_told() {
    let bench = bench().await;
    let script = bench.script(Some(Step::Vmm), Some(Step::BootFiles));
    let operation = bench.begin(Wait::Agent).await;
    let undone = bench.journal.go(&operation, &script, &Cancel::never()).await.unwrap_err();
    assert!(!undone.clean);
    assert_eq!(undone.error.message, "it broke");
    assert!(undone.error.causes[0].contains("it stays"), "{:?}", undone.error);
    assert_eq!(undone.error.operation.as_ref(), Some(operation.id()));
    let log = script.log.lock().unwrap().join(", ");
    assert_eq!(log, "do runtime-dir, do boot-files, do vmm, undo vmm, undo boot-files, undo runtime-dir");
    bench.journal.close(&operation, undone.clean, |_| Ok(())).await.unwrap();
    assert_eq!(bench.open().await, 1, "what is left stays in the journal");
    // The next operation of the VM replaces it.
    let operation = bench.begin(Wait::Agent).await;
    assert_eq!(bench.open().await, 1);
    bench.journal.go(&operation, &bench.script(None, None), &Cancel::never()).await.unwrap();
    bench.journal.close(&operation, true, |_| Ok(())).await.unwrap();
    assert_eq!(bench.open().await, 0);
}

#[tokio::test]
async fn what_waits_for_the_guest_can_be_called_off() {
    let bench = bench().await;
    let script = bench.script(None, None);
    let operation = bench.begin(Wait::Booted).await;
    let (canceller, cancel) = cancel::pair();
    let waits = async {
        while !script.log.lock().unwrap().iter().any(|line| line == "do await-boot") {
            tokio::task::yield_now().await;
        }
        canceller.cancel(ErrorReport::new(ErrorCode::Cancelled, "called off"));
    };
    let (undone, ()) = tokio::join!(bench.journal.go(&operation, &script, &cancel), waits);
    let undone = undone.unwrap_err();
    assert_eq!(undone.error.code, ErrorCode::Cancelled);
    assert!(undone.clean);
    let log = script.log.lock().unwrap();
    assert_eq!(log.last().unwrap(), "undo runtime-dir");
}

#[tokio::test]
async fn a_deletion_takes_nothing_back() {
    let bench = bench().await;
    let script = bench.script(Some(Step::RemoveDisk), None);
    let operation =
        bench.journal.begin(&bench.vm.id, plan::delete(), Durability::Process, |_| Ok(())).await.unwrap();
    let undone = bench.journal.go(&operation, &script, &Cancel::never()).await.unwrap_err();
    assert!(!undone.clean);
    assert!(!script.log.lock().unwrap().iter().any(|line| line.starts_with("undo")));
}

/// Calls an operation off when it comes to a point.
struct CallOffAt(Point, cancel::Canceller);

#[async_trait]
impl Faults for CallOffAt {
    async fn reach(&self, point: Point) -> Result<(), ErrorReport> {
        if point == self.0 {
            self.1.cancel(ErrorReport::new(ErrorCode::Cancelled, "called off"));
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_stop_that_no_longer_waits_is_finished_whoever_calls_it_off() {
    let bench = bench().await;
    let (canceller, cancel) = cancel::pair();
    let asked = Point { kind: Kind::Stop, step: Step::AskGuest, side: Side::After };
    let journal = Journal::new(bench.store.clone(), Arc::new(CallOffAt(asked, canceller)));
    let script = bench.script(None, None);
    let begin =
        || journal.begin(&bench.vm.id, plan::stop(Duration::from_secs(7)), Durability::Process, |_| Ok(()));
    let operation = begin().await.unwrap();
    let open = bench.store.call(Durability::Process, journal::open_operations).await.unwrap();
    assert_eq!(open[0].stop_within, Some(Duration::from_secs(7)), "the next daemon gives it as long");
    journal.go(&operation, &script, &cancel).await.unwrap();
    assert_eq!(script.log.lock().unwrap().join(", "), "do ask-guest, do end-vmm, do unlink, do clean-up");
    // It is called off by now: the next one does not even begin.
    let script = bench.script(None, None);
    let undone = journal.go(&begin().await.unwrap(), &script, &cancel).await.unwrap_err();
    assert_eq!(undone.error.code, ErrorCode::Cancelled);
    assert!(script.log.lock().unwrap().is_empty());
}

//! The steps that a VM's guest is asked for, by its agent: each waits for the guest, and may be called off.

use std::sync::Arc;
use std::time::Duration;

use banger_proto::guest::{Open, Outcome, Progress};
use banger_proto::{ErrorCode, ErrorReport};

use super::VmEffects;
use crate::console;
use crate::lifecycle::boot::Boot;
use crate::lifecycle::plan::Step;
use crate::lifecycle::report::sentence;
use crate::lifecycle::{guest_config, power_off};
use crate::ports::{Guest, LinkState};

/// A guest that is up has so long to grow its file system.
const EXTENDS: Duration = Duration::from_secs(20);

impl VmEffects {
    fn boot(&self, step: Step) -> Result<(Arc<Boot>, Arc<dyn Guest>), ErrorReport> {
        let live = self.live();
        match (live.boot.clone(), live.guest.clone()) {
            (Some(boot), Some(guest)) => Ok((boot, guest)),
            _ => Err(self.out_of_order(step)),
        }
    }

    pub(super) async fn configure(&self) -> Result<(), ErrorReport> {
        let (boot, guest) = self.boot(Step::Configure)?;
        let release = self.live().boot_files.as_ref().map(|files| files.release.clone());
        self.report.stage("wait for the guest's agent");
        // The clock in the configuration is that of the moment when somebody is there to take it.
        let mut link = guest.state();
        let answers = async {
            // A link that is gone shows again, and better, in the request.
            let _ = link.wait_for(|state| *state == LinkState::Up).await;
            Ok(())
        };
        boot.wait(answers).await?;
        let config = guest_config::build(&self.world, &self.record, release, &*self.report).await?;
        let open = Open::Configure(Box::new(config));
        match self.ask(&boot, &*guest, open).await? {
            Outcome::Configured(configured) => {
                for warning in configured.warnings {
                    self.report.warning(&console::printable(&warning));
                }
                Ok(())
            }
            other => Err(self.refused(Step::Configure, &other)),
        }
    }

    pub(super) async fn grow_root(&self) -> Result<(), ErrorReport> {
        let (boot, guest) = self.boot(Step::GrowRoot)?;
        self.report.stage("grow the root file system");
        match self.ask(&boot, &*guest, Open::GrowRoot).await? {
            Outcome::Grown { .. } => Ok(()),
            other => Err(self.refused(Step::GrowRoot, &other)),
        }
    }

    pub(super) async fn extend_root(&self) -> Result<(), ErrorReport> {
        let step = Step::ExtendRoot;
        let (machine, guest) = {
            let live = self.live();
            let both = live.machine.clone().zip(live.guest.clone());
            both.ok_or_else(|| self.out_of_order(step))?
        };
        let failed = |code, why: String| ErrorReport::new(code, self.message(step)).cause(why);
        let mut exit = machine.exit();
        tokio::select! {
            outcome = guest.request(Open::GrowRoot, &|_| {}) => match outcome? {
                Outcome::Grown { .. } => Ok(()),
                other => Err(self.refused(step, &other)),
            },
            _ = exit.wait_for(Option::is_some) => Err(failed(ErrorCode::WrongState, "it has ended".into())),
            () = tokio::time::sleep(EXTENDS) => {
                Err(failed(ErrorCode::TimedOut, format!("its agent did not answer within {} s", EXTENDS.as_secs())))
            }
        }
    }

    pub(super) async fn await_boot(&self) -> Result<(), ErrorReport> {
        let (boot, guest) = self.boot(Step::AwaitBoot)?;
        self.report.stage("wait for the guest's boot");
        match self.ask(&boot, &*guest, Open::AwaitBoot).await? {
            Outcome::Booted(booted) => {
                let units: Vec<String> =
                    booted.failed_units.iter().take(64).map(|unit| console::printable(unit)).collect();
                if let Some(first) = units.first() {
                    let name = &self.record.name;
                    self.report.warning(&format!(
                        "VM '{name}' is up but degraded: {} failed; banger vm exec {name} -- systemctl status {first}",
                        units.join(", ")
                    ));
                }
                self.live().degraded = units;
                Ok(())
            }
            other => Err(self.refused(Step::AwaitBoot, &other)),
        }
    }

    async fn ask(&self, boot: &Boot, guest: &dyn Guest, open: Open) -> Result<Outcome, ErrorReport> {
        let progress = |line: &str| {
            boot.progress();
            let text =
                serde_json::from_str::<Progress>(line).map_or_else(|_| line.to_owned(), |line| line.text);
            self.report.stage(&console::printable(&text));
        };
        boot.wait(guest.request(open, &progress)).await
    }

    /// An outcome that is a failure, or no answer to what was asked.
    fn refused(&self, step: Step, outcome: &Outcome) -> ErrorReport {
        ErrorReport::new(ErrorCode::GuestFailed, self.message(step)).cause(power_off::words(outcome))
    }

    /// Asks the guest to end and gives it time. What does not work out here is mended by the next step.
    pub(super) async fn ask_guest(&self) {
        let (machine, guest) = {
            let live = self.live();
            (live.machine.clone(), live.guest.clone())
        };
        let (Some(machine), Some(guest)) = (machine, guest) else { return };
        self.report.stage("ask the guest to shut down");
        let asked = async {
            power_off::ask(&*machine, &guest, |other| self.refused(Step::AskGuest, &other)).await?;
            // An error means that the machine is gone, which is as good.
            let _ = machine.exit().wait_for(Option::is_some).await;
            Ok(())
        };
        let name = &self.record.name;
        match tokio::time::timeout(self.stop_within, asked).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let why = sentence(&error);
                self.report.warning(&format!("VM '{name}' could not be asked to end and is forced: {why}"));
            }
            Err(_) => self.report.warning(&format!(
                "VM '{name}' did not end within {} s and is forced",
                self.stop_within.as_secs()
            )),
        }
    }
}

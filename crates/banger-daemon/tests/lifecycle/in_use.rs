//! What a VM was made of stays as long as the VM does, and what is asked of a VM waits for its beginning.

use anyhow::{Context, ensure};
use banger_proto::spec::Wait;
use banger_proto::{ErrorCode, ErrorReport, VmState};
use testkit::fake::{FakeWorld, IMAGE, KERNEL};

use super::daemon::{Client, Daemon, NAME, options, spec, whole};

/// Both deletions are refused, and name the VM.
async fn kept(client: &Client<'_>) -> anyhow::Result<()> {
    let services = client.services;
    let image = services.image_delete(&IMAGE.parse()?).await;
    let kernel = services.kernel_delete(&KERNEL.parse()?).await;
    for refused in [image, kernel] {
        let error: ErrorReport = refused.err().context("what a VM was made of was deleted")?;
        let says = error.causes.iter().any(|cause| cause == "these VMs use it: box");
        let hints = error.hints.iter().any(|hint| hint == "banger vm delete box");
        ensure!(error.code == ErrorCode::InUse && says && hints, "{error:?}");
    }
    Ok(())
}

#[test]
fn what_a_vm_was_made_of_is_kept_in_every_state_of_it() -> anyhow::Result<()> {
    let world = FakeWorld::new()?;
    let daemon = Daemon::open(&world)?;
    daemon.run(async |client| {
        let services = client.services;
        // From the moment at which it is there.
        let begun = services.vm_create(spec(false, false)?, Some(options(Wait::Booted)), None).await;
        kept(client).await?;
        client.done(begun).await?;
        client.state(VmState::Running).await?;
        kept(client).await?;
        client.done(services.vm_pause(NAME).await).await?;
        kept(client).await?;
        client.done(services.vm_stop(NAME, 5).await).await?;
        client.state(VmState::Stopped).await?;
        kept(client).await
    })?;
    // And for the daemon after it.
    daemon.die()?;
    let daemon = Daemon::open(&world)?;
    daemon.run(async |client| {
        kept(client).await?;
        client.delete_all().await?;
        let services = client.services;
        services.image_delete(&IMAGE.parse()?).await.map_err(whole)?;
        services.kernel_delete(&KERNEL.parse()?).await.map_err(whole)?;
        let gone = services.image_delete(&IMAGE.parse()?).await.err().context("it was deleted twice")?;
        ensure!(gone.code == ErrorCode::ImageMissing, "{gone:?}");
        anyhow::Ok(())
    })?;
    daemon.close()
}

#[test]
fn a_deletion_comes_after_the_start_that_a_creation_asked_for() -> anyhow::Result<()> {
    let world = FakeWorld::new()?;
    let daemon = Daemon::open(&world)?;
    daemon.run(async |client| {
        let services = client.services;
        let created = services.vm_create(spec(false, false)?, Some(options(Wait::Booted)), None).await;
        // As 'vm prune' does with what it finds created.
        let deleted = services.vm_delete(NAME, false).await;
        client.done(created).await?;
        let refused = client.result(deleted).await?.err().context("it was deleted before it started")?;
        ensure!(refused.code == ErrorCode::WrongState, "{refused:?}");
        client.state(VmState::Running).await?;
        client.delete_all().await
    })?;
    daemon.close()
}

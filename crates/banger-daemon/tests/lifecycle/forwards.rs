//! Forwards, as a client of the daemon sees them. That a VM's port is open exactly while it runs, whatever breaks, is
//! checked wherever these tests wait (`Client::until`).

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::{Context, ensure};
use banger_proto::ports::{ForwardInfo, ForwardState};
use banger_proto::spec::Wait;
use banger_proto::{ErrorCode, ErrorReport, Forward, VmState};
use testkit::fake::FakeWorld;

use super::daemon::{Client, Daemon, NAME, options, spec, whole};

fn with_a_daemon(test: impl AsyncFnOnce(&Client<'_>) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let daemon = Daemon::open(&FakeWorld::new()?)?;
    daemon.run(test)?;
    daemon.close()
}

async fn create(client: &Client<'_>, forwards: Vec<Forward>, start: bool) -> Result<(), ErrorReport> {
    let internal = |error: anyhow::Error| ErrorReport::new(ErrorCode::Internal, format!("{error:#}"));
    let mut spec = spec(false, false).map_err(internal)?;
    spec.forwards = forwards;
    let begun = client.services.vm_create(spec, start.then(|| options(Wait::Booted)), None).await;
    client.result(begun).await.map_err(internal)?.map(drop)
}

/// The forward that a test's VM has.
async fn only(client: &Client<'_>) -> anyhow::Result<ForwardInfo> {
    let forwards = client.vm().await?.forwards;
    ensure!(forwards.len() == 1, "{forwards:?}");
    forwards.into_iter().next().context("none")
}

fn own_forward() -> anyhow::Result<Forward> {
    spec(false, false)?.forwards.first().copied().context("a test's VM has a forward")
}

/// Where nobody listens now, at an address of this test's own.
fn free() -> anyhow::Result<Forward> {
    let forward = own_forward()?;
    let host = TcpListener::bind(forward.listens_at())?.local_addr()?.port();
    Ok(Forward { host, ..forward })
}

#[test]
fn a_chosen_port_stays_the_same_for_the_vms_life() -> anyhow::Result<()> {
    let world = FakeWorld::new()?;
    let daemon = Daemon::open(&world)?;
    let first = daemon.run(async |client| {
        create(client, vec![own_forward()?], false).await.map_err(whole)?;
        client.state(VmState::Created).await?;
        let first = only(client).await?.forward;
        ensure!(first.host > 0, "no port was chosen");
        for _ in 0..2 {
            client.done(client.services.vm_start(NAME, options(Wait::Agent)).await).await?;
            client.state(VmState::Running).await?;
            client.done(client.services.vm_stop(NAME, 5).await).await?;
            client.state(VmState::Stopped).await?;
            ensure!(only(client).await?.forward == first);
        }
        client.done(client.services.vm_start(NAME, options(Wait::Agent)).await).await?;
        anyhow::Ok(first)
    })?;
    daemon.die()?;
    let daemon = Daemon::open(&world)?;
    daemon.run(async |client| {
        client.state(VmState::Running).await?;
        ensure!(only(client).await?.forward == first);
        client.delete_all().await?;
        TcpListener::bind(first.listens_at()).map(drop).context("it is gone and its port is not free")
    })?;
    daemon.close()
}

#[test]
fn a_taken_port_is_refused_before_a_vm_is_made() -> anyhow::Result<()> {
    with_a_daemon(async |client| {
        let wanted = free()?;
        let _other = TcpListener::bind(wanted.listens_at())?;
        for start in [false, true] {
            let fine = Forward { host: 0, ..wanted };
            let error = create(client, vec![fine, wanted], start).await.err().context("it was made")?;
            ensure!(error.code == ErrorCode::InUse && error.causes == ["the port is taken"], "{error:?}");
            ensure!(client.vms().await?.is_empty(), "a VM was made");
        }
        Ok(())
    })
}

#[test]
fn a_port_of_another_vm_is_named_with_it() -> anyhow::Result<()> {
    with_a_daemon(async |client| {
        create(client, vec![own_forward()?], true).await.map_err(whole)?;
        client.state(VmState::Running).await?;
        let theirs = only(client).await?.forward;
        let refused = client.services.vm_forward(NAME, theirs).await.err().context("it was added twice")?;
        ensure!(refused.causes == [format!("VM '{NAME}' has it")], "{refused:?}");
        client.delete_all().await
    })
}

#[test]
fn a_start_without_its_port_is_refused_and_changes_nothing() -> anyhow::Result<()> {
    with_a_daemon(async |client| {
        create(client, vec![own_forward()?], true).await.map_err(whole)?;
        client.done(client.services.vm_stop(NAME, 5).await).await?;
        client.state(VmState::Stopped).await?;
        let taken = only(client).await?.forward;
        let other = TcpListener::bind(taken.listens_at())?;
        let refused = client.services.vm_start(NAME, options(Wait::Agent)).await;
        let error = refused.err().context("it was started")?;
        ensure!(error.code == ErrorCode::InUse, "{error:?}");
        ensure!(error.message == format!("cannot start VM '{NAME}'"), "{error:?}");
        let vm = client.vm().await?;
        ensure!(vm.state == VmState::Stopped && vm.cause.is_none(), "{vm:?}");
        drop(other);
        client.done(client.services.vm_start(NAME, options(Wait::Agent)).await).await?;
        client.state(VmState::Running).await?;
        client.delete_all().await
    })
}

#[test]
fn a_port_that_was_taken_while_no_daemon_ran_is_told_and_tried_again() -> anyhow::Result<()> {
    let world = FakeWorld::new()?;
    let daemon = Daemon::open(&world)?;
    let forward = daemon.run(async |client| {
        create(client, vec![own_forward()?], true).await.map_err(whole)?;
        client.state(VmState::Running).await?;
        only(client).await
    })?;
    daemon.die()?;
    let other = TcpListener::bind(forward.forward.listens_at())?;
    let daemon = Daemon::open(&world)?;
    daemon.run(async |client| {
        let mut told = only(client).await?;
        while told.state != ForwardState::Failed {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            told = only(client).await?;
        }
        ensure!(told.cause.is_some_and(|cause| cause.ends_with("the port is taken")));
        ensure!(client.vm().await?.state == VmState::Running, "the VM ended for its port");
        drop(other);
        client.state(VmState::Running).await?;
        ensure!(only(client).await?.state == ForwardState::Open);
        client.delete_all().await
    })?;
    daemon.close()
}

#[test]
fn forwards_come_and_go_while_it_runs_and_while_it_does_not() -> anyhow::Result<()> {
    with_a_daemon(async |client| {
        let services = client.services;
        let closed = |at: SocketAddr| TcpListener::bind(at).is_ok();
        create(client, Vec::new(), true).await.map_err(whole)?;
        let (one, two) = (free()?, free()?);
        let added = services.vm_forward(NAME, one).await.map_err(whole)?;
        ensure!(added.state == ForwardState::Open && !closed(one.listens_at()), "{added:?}");
        client.state(VmState::Running).await?;
        client.done(services.vm_stop(NAME, 5).await).await?;
        client.state(VmState::Stopped).await?;
        let added = services.vm_forward(NAME, two).await.map_err(whole)?;
        ensure!(added.state == ForwardState::Closed && closed(two.listens_at()), "{added:?}");
        let again = services.vm_forward(NAME, two).await.err().context("it was added twice")?;
        ensure!(again.code == ErrorCode::AlreadyExists, "{again:?}");
        // Both could not be had at its next start.
        let everywhere = Forward { address: Ipv4Addr::UNSPECIFIED.into(), ..two };
        let both = services.vm_forward(NAME, everywhere).await.err().context("a start would fail for it")?;
        ensure!([ErrorCode::AlreadyExists, ErrorCode::InUse].contains(&both.code), "{both:?}");
        client.done(services.vm_start(NAME, options(Wait::Agent)).await).await?;
        ensure!(!closed(one.listens_at()) && !closed(two.listens_at()));
        services.vm_unforward(NAME, one.listens_at()).await.map_err(whole)?;
        ensure!(closed(one.listens_at()), "a port that was ended is open");
        let missing = services.vm_unforward(NAME, one.listens_at()).await.err().context("it was there")?;
        ensure!(
            missing.code == ErrorCode::NotFound
                && missing.hints == [format!("which it has: banger vm forward {NAME}")]
        );
        client.state(VmState::Running).await?;
        client.delete_all().await?;
        ensure!(closed(two.listens_at()));
        Ok(())
    })
}

#[test]
fn there_are_so_many_and_no_more() -> anyhow::Result<()> {
    with_a_daemon(async |client| {
        let many = |count| (0..count).map(|_| own_forward()).collect::<anyhow::Result<Vec<_>>>();
        let error = create(client, many(65)?, false).await.err().context("65 were taken")?;
        ensure!(error.message.contains("at most 64"), "{error:?}");
        ensure!(client.vms().await?.is_empty());
        create(client, many(64)?, false).await.map_err(whole)?;
        let error = client.services.vm_forward(NAME, own_forward()?).await.err().context("one more")?;
        ensure!(error.message.contains("at most 64"), "{error:?}");
        let deleted = client.services.vm_delete(NAME, true).await;
        client.done(deleted).await.map(drop)
    })
}

//! The connection cut at every byte, and often.

use banger_proto::channel::{MAX_DATA, PAD_LEN};

use crate::ends::Rng;
use crate::world::{Budget, Flight, World};

const FLIGHTS: [Flight; 3] = [Flight::Lost, Flight::Stale, Flight::Holed];

/// A short session: everything that it says fits into some hundred bytes.
fn short() -> World {
    let mut world = World::new();
    let id = world.open(5);
    world.write(id, b"hello, world\0\0\0\0\0\0\0\0\0\0\0\0");
    world.write_control(id, b"{}\n");
    world.finish(id);
    world
}

/// How much the short session moves without a cut.
fn whole() -> Budget {
    let mut world = short();
    world.run(Budget::ALL);
    world.check();
    world.moved
}

/// Cuts at `at`, goes on, and looks whether all is there.
fn cut_at(at: Budget, down: Flight, up: Flight, hangup: bool) {
    let mut world = short();
    world.run(at);
    world.cut(down, up, hangup);
    world.run(Budget::ALL);
    // A cut may leave the host with a link that the agent's padding ended: it connects again.
    if world.is_lost() {
        world.cut(Flight::Lost, Flight::Lost, false);
        world.run(Budget::ALL);
    }
    world.check();
    world.check_control();
}

/// Every byte that matters: padding is cut in a few places only.
fn cuts(len: usize) -> impl Iterator<Item = usize> {
    (0..3).chain([1000, PAD_LEN - 1]).chain(PAD_LEN..=len)
}

#[test]
fn cut_towards_the_guest_at_every_byte() {
    for to_guest in cuts(whole().to_guest) {
        for flight in FLIGHTS {
            for hangup in [false, true] {
                cut_at(Budget { to_guest, to_host: usize::MAX }, flight, Flight::Lost, hangup);
            }
        }
    }
}

#[test]
fn cut_towards_the_host_at_every_byte() {
    for to_host in 0..=whole().to_host {
        for flight in FLIGHTS {
            for hangup in [false, true] {
                cut_at(Budget { to_guest: usize::MAX, to_host }, Flight::Lost, flight, hangup);
                cut_at(Budget { to_guest: usize::MAX, to_host }, Flight::Stale, flight, hangup);
            }
        }
    }
}

#[test]
fn a_frame_full_of_zeros_is_cut_at_every_byte_of_its_ends() {
    let len = 20_000;
    for cut in (0..200).chain(len - 100..len + 200) {
        let mut world = World::new();
        let id = world.open(5);
        world.run(Budget::ALL);
        world.write(id, &vec![0; len]);
        world.finish(id);
        world.run(Budget { to_guest: cut, to_host: cut });
        world.cut(FLIGHTS[cut % 3], FLIGHTS[cut / 3 % 3], cut % 2 == 0);
        world.run(Budget::ALL);
        world.check();
    }
}

#[test]
fn a_mebibyte_crosses_two_hundred_cuts() {
    const LEN: usize = 1024 * 1024;
    const CUTS: usize = 200;
    let mut rng = Rng(0x1234_5678);
    let bytes = rng.bytes(LEN);
    let mut world = World::new();
    let id = world.open(9);
    let mut written = 0;
    for cut in 1..=CUTS {
        let until = LEN * cut / CUTS;
        world.write(id, &bytes[written..until]);
        written = until;
        world.chunk = 1 + rng.below(100_000);
        let stale = world.stale();
        let to_guest = stale.to_guest + PAD_LEN + rng.below(3 * MAX_DATA);
        let to_host = stale.to_host + rng.below(3 * MAX_DATA);
        world.run(Budget { to_guest, to_host });
        world.check_prefix();
        world.cut(FLIGHTS[rng.below(3)], FLIGHTS[rng.below(3)], rng.below(2) == 0);
    }
    world.finish(id);
    world.chunk = 100_000;
    world.run(Budget::ALL);
    world.check();
    assert!(world.connections > CUTS / 2, "{} connections", world.connections);
}

#[test]
fn a_restarted_agent_makes_the_host_begin_again() {
    let mut world = World::new();
    let id = world.open(5);
    world.write(id, b"before");
    world.run(Budget::ALL);
    world.restart_agent();
    world.run(Budget::ALL);
    assert!(world.is_lost());
    world.cut(Flight::Lost, Flight::Lost, false);
    world.run(Budget::ALL);
    // The command is not begun a second time.
    assert!(world.reset_failure(id));
}

#[test]
fn a_reader_that_stops_holds_the_command_back() {
    let mut rng = Rng(77);
    let mut world = World::new();
    let id = world.open(5);
    world.hold(id, true);
    let bytes = rng.bytes(4 * 1024 * 1024);
    world.write(id, &bytes);
    world.finish(id);
    world.run(Budget::ALL);
    assert_eq!(world.received(id), banger_proto::channel::WINDOW);
    world.cut(Flight::Holed, Flight::Stale, false);
    world.run(Budget::ALL);
    assert!(!world.is_done(id));
    world.hold(id, false);
    world.run(Budget::ALL);
    world.check();
}

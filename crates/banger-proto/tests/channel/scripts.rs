//! Random scripts over several sessions: whatever happens, what arrived is a prefix, and in the end it is all.

use proptest::prelude::*;

use crate::ends::Rng;
use crate::world::{Budget, Flight, World};

#[derive(Debug, Clone)]
enum Step {
    Open,
    Write { session: usize, len: usize },
    Control { session: usize },
    Finish { session: usize },
    Hold { session: usize, holding: bool },
    Run { to_guest: usize, to_host: usize, chunk: usize },
    Cut { down: Flight, up: Flight, hangup: bool },
}

fn flight() -> impl Strategy<Value = Flight> {
    prop_oneof![Just(Flight::Lost), Just(Flight::Stale), Just(Flight::Holed)]
}

fn step() -> impl Strategy<Value = Step> {
    let len = prop_oneof![4 => 0usize..100, 2 => 0usize..100_000, 1 => 500_000usize..900_000];
    let bytes = prop_oneof![2 => 0usize..2_000, 1 => 200_000usize..300_000, 3 => 260_000usize..1_000_000];
    let chunk = prop_oneof![100usize..5_000, 5_000usize..300_000];
    prop_oneof![
        1 => Just(Step::Open),
        4 => (0usize..4, len).prop_map(|(session, len)| Step::Write { session, len }),
        1 => (0usize..4).prop_map(|session| Step::Control { session }),
        1 => (0usize..4).prop_map(|session| Step::Finish { session }),
        1 => (0usize..4, any::<bool>()).prop_map(|(session, holding)| Step::Hold { session, holding }),
        4 => (bytes.clone(), bytes, chunk)
            .prop_map(|(to_guest, to_host, chunk)| Step::Run { to_guest, to_host, chunk }),
        3 => (flight(), flight(), any::<bool>())
            .prop_map(|(down, up, hangup)| Step::Cut { down, up, hangup }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_doubled_or_reordered(seed in 1u64.., steps in prop::collection::vec(step(), 1..40)) {
        let mut rng = Rng(seed);
        let mut world = World::new();
        let mut sessions = vec![world.open(1)];
        for step in steps {
            match step {
                Step::Open if sessions.len() < 4 => sessions.push(world.open(1 + sessions.len() as u64)),
                Step::Open => {}
                Step::Write { session, len } => {
                    let bytes = if len % 2 == 0 { vec![0; len] } else { rng.bytes(len) };
                    world.write(sessions[session % sessions.len()], &bytes);
                }
                Step::Control { session } => {
                    world.write_control(sessions[session % sessions.len()], b"{\"kind\":\"x\"}\n");
                }
                Step::Finish { session } => world.finish(sessions[session % sessions.len()]),
                Step::Hold { session, holding } => world.hold(sessions[session % sessions.len()], holding),
                Step::Run { to_guest, to_host, chunk } => {
                    world.chunk = chunk;
                    world.run(Budget { to_guest, to_host });
                }
                Step::Cut { down, up, hangup } => world.cut(down, up, hangup),
            }
            world.check_prefix();
        }
        world.chunk = 100_000;
        world.cut(Flight::Holed, Flight::Holed, false);
        for session in sessions {
            world.hold(session, false);
            world.finish(session);
        }
        world.run(Budget::ALL);
        world.check();
    }
}

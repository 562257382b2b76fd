//! The rules of the repository, held by the repository.

#![expect(clippy::unwrap_used, reason = "a test")]

use xtask::check::{self, Verdict};

fn hold(check: check::Check) {
    match check(&check::repository()).unwrap() {
        Verdict::Broken(rules) => assert!(rules.is_empty(), "{}", rules.join("\n")),
        Verdict::NotRun(why) => testkit::not_run("xtask rules", &why),
    }
}

#[test]
fn crates_depend_in_their_directions() {
    hold(check::dependencies::directions);
}

#[test]
fn the_agent_is_made_of_reviewed_crates() {
    hold(check::dependencies::agent_tree);
}

#[test]
fn unsafe_code_lives_in_one_crate() {
    hold(check::sources::unsafe_code);
}

#[test]
fn files_stay_readable() {
    hold(check::sources::length);
}

#[test]
fn documents_name_make_targets_and_files_that_exist() {
    hold(check::docs::targets_and_files);
}

#[test]
fn documents_name_commands_that_exist() {
    hold(check::docs::commands);
}

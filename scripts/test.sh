#!/usr/bin/env bash
# Builds everything and runs every test that this machine can run, real VMs included. What could not run is listed as
# *not run* with its reason and never counted as passed. Arguments go to the test runner (a filter, say).
#
# Kernel and images for the tests are made once, by content, in ~/.cache/banger-test (BANGER_TEST_CACHE).
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/need-cargo.sh
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
export BANGER_TEST_BIN=$target/debug
export BANGER_TEST_CACHE=${BANGER_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/banger-test}
BANGER_TEST_NOT_RUN=$(mktemp)
export BANGER_TEST_NOT_RUN
log=$(mktemp)
picture=$(mktemp)
trap 'rm -f "$BANGER_TEST_NOT_RUN" "$log" "$picture"' EXIT

cargo build --locked --workspace --bins
scripts/build-agent.sh
export BANGER_AGENT=$target/x86_64-unknown-linux-gnu/agent/banger-agent

echo "== making what the VM tests boot"
"$target/debug/prepare"

"$target/debug/picture" save "$picture"
status=0
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --locked --workspace --no-fail-fast --color never "$@" 2>&1 | tee "$log" || status=$?
    summary=$(grep -E '^ *Summary ' "$log" | tail -n 1 || true)
else
    echo "cargo-nextest is not installed (cargo install --locked cargo-nextest): using cargo test"
    cargo test --locked --workspace --no-fail-fast "$@" 2>&1 | tee "$log" || status=$?
    summary=$(awk '/^test result:/ { passed += $4; failed += $6; ignored += $8 }
        END { printf "Summary %d tests run: %d passed, %d failed, %d skipped", passed + failed, passed, failed, ignored }' "$log")
fi
echo "== fuzz targets: their corpus, and ten seconds each"
fuzzed=$(mktemp)
scripts/fuzz.sh 10 >"$fuzzed" 2>&1 || { status=1; tail -n 40 "$fuzzed"; }
sed -n 's/^\(fuzz: \)\*not run\*, /\1/p' "$fuzzed" >>"$BANGER_TEST_NOT_RUN"
rm -f "$fuzzed"
"$target/debug/picture" compare "$picture" || status=1
if [ -s "$BANGER_TEST_NOT_RUN" ]; then
    echo
    sort -u "$BANGER_TEST_NOT_RUN" | sed 's/^/*not run*: /'
    echo "$(sort -u "$BANGER_TEST_NOT_RUN" | wc -l) not run on this machine"
fi
echo "$summary"
exit "$status"

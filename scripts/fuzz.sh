#!/usr/bin/env bash
# Runs every fuzz target on its committed corpus and then for some seconds on what it finds itself. New inputs stay
# below fuzz/target; one that fails is in fuzz/artifacts and belongs into the corpus with its fix.
#
# usage: scripts/fuzz.sh [SECONDS] [TARGET...]     (10 seconds, every target)
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
seconds=${1:-10}
shift || true
[[ $seconds =~ ^[0-9]+$ ]] || { echo "fuzz: '$seconds' is not a number of seconds" >&2; exit 2; }

if ! cargo fuzz --version >/dev/null 2>&1; then
    echo "fuzz: *not run*, cargo-fuzz is not installed (cargo install --locked cargo-fuzz)"
    exit 0
fi
if ! command -v c++ >/dev/null; then
    echo "fuzz: *not run*, libFuzzer needs a C++ compiler (apt-get install g++)"
    exit 0
fi

# The sanitizer's flags are unstable; this lets the pinned toolchain take them.
export RUSTC_BOOTSTRAP=1
targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(cargo fuzz list)
status=0
for target in "${targets[@]}"; do
    found=fuzz/target/found/$target
    mkdir -p "$found"
    echo "== $target: corpus"
    if ! cargo fuzz run "$target" "fuzz/corpus/$target" -- -runs=0 -timeout=10 -rss_limit_mb=1024; then
        status=1
        continue
    fi
    if [ "$seconds" -gt 0 ]; then
        echo "== $target: $seconds seconds"
        # The first directory takes what is found, the committed corpus is only read.
        cargo fuzz run "$target" "$found" "fuzz/corpus/$target" -- \
            -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -max_len=4096 -print_final_stats=0 || status=1
    fi
done
exit "$status"

#!/usr/bin/env bash
# From a fresh Debian machine to a command inside a VM, saying how long each part took. Safe to run again: what is there
# is not made twice.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
banger=${CARGO_TARGET_DIR:-target}/release/banger

seconds() { date +%s.%N; }
took() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.1f s", b - a }'; }
say() { printf '\n==> %s\n' "$*"; }

t0=$(seconds)
say "host packages"
scripts/host-packages.sh run build
scripts/need-cargo.sh
t1=$(seconds)

say "release binaries"
make --no-print-directory build
t2=$(seconds)

say "kernel debian-6.1, from Debian's archive"
if "$banger" kernel show debian-6.1 >/dev/null 2>&1; then
    echo "already there"
else
    "$banger" kernel pull debian-6.1
fi
t3=$(seconds)

say "image debian-bookworm, from Debian's archive"
if "$banger" image show debian-bookworm >/dev/null 2>&1; then
    echo "already there"
else
    "$banger" image build debian-bookworm
fi
t4=$(seconds)

say "banger vm run --rm -- uname -a"
guest=$("$banger" vm run --rm -- uname -a)
t5=$(seconds)

say "done"
cat <<END
host packages      $(took "$t0" "$t1")
build              $(took "$t1" "$t2")
kernel             $(took "$t2" "$t3")
image              $(took "$t3" "$t4")
boot, run, delete  $(took "$t4" "$t5")

This host runs:    $(uname -sr)
The VM said:
$guest
END

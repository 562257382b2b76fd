#!/usr/bin/env bash
# Builds the guest agent as a static executable: it runs from an initrd that has no libraries.
#
# usage: scripts/build-agent.sh [COPY]
# leaves it at target/x86_64-unknown-linux-gnu/agent/banger-agent, and a copy where COPY says
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=x86_64-unknown-linux-gnu
# A target of its own name keeps these flags from build scripts and procedural macros.
RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static" \
    cargo build --locked --profile agent --target $target -p banger-agent
built=${CARGO_TARGET_DIR:-target}/$target/agent/banger-agent
if [ $# -gt 0 ]; then
    mkdir -p "$(dirname "$1")"
    install -m 755 "$built" "$1.new"
    mv -f "$1.new" "$1"
fi

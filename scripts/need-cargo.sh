#!/usr/bin/env bash
# Says in one line how to get Rust where it is missing. rustup then obeys rust-toolchain.toml by itself.
set -euo pipefail

if command -v cargo >/dev/null; then
    exit 0
fi
if [ -x "$HOME/.cargo/bin/cargo" ]; then
    echo "cargo is in ~/.cargo/bin, which is not in PATH: run '. ~/.cargo/env' and try again" >&2
    exit 1
fi
echo "Rust is needed to build banger and is not installed. Get it with:" >&2
if apt-cache policy rustup 2>/dev/null | grep -q 'Candidate: [^(]'; then
    echo "    sudo apt-get install rustup" >&2
else
    echo "    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y && . ~/.cargo/env" >&2
fi
exit 1

#!/usr/bin/env bash
# Removes what `make install` put below a prefix, and stops the daemon of whoever asks (with sudo: of the user behind it).
# VMs, images and kernels of users are theirs: they stay, and it says where. Can be run again.
#
# usage: scripts/uninstall.sh PREFIX
set -euo pipefail

prefix=${1:?usage: scripts/uninstall.sh PREFIX}
banger=$prefix/bin/banger
user=$(id -un)
as_user=()
if [ "$(id -u)" -eq 0 ] && [ -n "${SUDO_USER:-}" ]; then
    user=$SUDO_USER
    # Nothing of root's environment says where that user's files are.
    as_user=(runuser -u "$user" -- env -i "PATH=$PATH" "HOME=$(getent passwd "$user" | cut -d: -f6)")
    unset BANGER_STATE_DIR BANGER_CACHE_DIR BANGER_CONFIG XDG_STATE_HOME XDG_CACHE_HOME XDG_CONFIG_HOME
fi
home=$(getent passwd "$user" | cut -d: -f6)

if [ -x "$banger" ]; then
    status=$("${as_user[@]}" "$banger" daemon status --json 2>/dev/null || true)
    if [[ $status =~ \"running_vms\":\ [1-9] ]]; then
        echo "VMs of $user run on, and nothing is left to end them with; 'banger vm stop NAME' before, or install again:"
        "${as_user[@]}" "$banger" ps | sed 's/^/  /'
    fi
    if grep -qs '^# banger: ' "$home/.ssh/config"; then
        "${as_user[@]}" "$banger" ssh-config --uninstall || echo "uninstall: see $home/.ssh/config" >&2
    fi
    # Where it cannot be asked the removal goes on, and says so.
    "${as_user[@]}" "$banger" daemon stop || echo "uninstall: the daemon of $user was not stopped; see above" >&2
fi

removed=no
for file in "$banger" "$prefix/lib/banger/banger" "$prefix/lib/banger/bangerd" "$prefix/lib/banger/banger-agent"; do
    if [ -e "$file" ] || [ -L "$file" ]; then
        rm -f "$file"
        removed=yes
    fi
done
[ ! -d "$prefix/lib/banger" ] || rmdir --ignore-fail-on-non-empty "$prefix/lib/banger"
if [ "$removed" = yes ]; then
    echo "removed banger from $prefix"
else
    echo "banger is not installed in $prefix"
fi

config=${BANGER_CONFIG:-${XDG_CONFIG_HOME:-$home/.config}/banger/config.toml}
kept=()
for path in "${BANGER_STATE_DIR:-${XDG_STATE_HOME:-$home/.local/state}/banger}" \
    "${BANGER_CACHE_DIR:-${XDG_CACHE_HOME:-$home/.cache}/banger}" "$config"; do
    [ ! -e "$path" ] || kept+=("$path")
done
if [ ${#kept[@]} -gt 0 ]; then
    echo "kept, with the VMs, images and settings of $user (delete them yourself if you want them gone):"
    du -sh -- "${kept[@]}" | sed 's/^/  /'
fi

#!/usr/bin/env bash
# Removes what `make install` put below a prefix. VMs, images and kernels of users are theirs: they stay, and it says where.
#
# usage: scripts/uninstall.sh PREFIX
set -euo pipefail

prefix=${1:?usage: scripts/uninstall.sh PREFIX}
user=${SUDO_USER:-$(id -un)}
home=$(getent passwd "$user" | cut -d: -f6)

if [ -x "$prefix/bin/banger" ]; then
    # The daemon of the user who asks. Nothing runs, or it cannot be asked: the removal goes on, and says so.
    if [ -n "${SUDO_USER:-}" ]; then
        stop=(sudo -u "$user" -H -- env "XDG_RUNTIME_DIR=/run/user/$(id -u "$user")" "$prefix/bin/banger" daemon stop)
    else
        stop=("$prefix/bin/banger" daemon stop)
    fi
    "${stop[@]}" || echo "uninstall: the daemon of $user was not stopped; see above" >&2
fi
rm -f "$prefix/bin/banger" "$prefix/lib/banger/banger" "$prefix/lib/banger/bangerd" "$prefix/lib/banger/banger-agent"
rmdir --ignore-fail-on-non-empty "$prefix/lib/banger" 2>/dev/null || true
echo "removed banger from $prefix"

kept=()
for dir in "${BANGER_STATE_DIR:-${XDG_STATE_HOME:-$home/.local/state}/banger}" \
    "${BANGER_CACHE_DIR:-${XDG_CACHE_HOME:-$home/.cache}/banger}" "${XDG_CONFIG_HOME:-$home/.config}/banger"; do
    [ ! -d "$dir" ] || kept+=("$dir")
done
if [ ${#kept[@]} -gt 0 ]; then
    echo "kept, with your VMs, images and settings (delete them yourself if you want them gone):"
    du -sh -- "${kept[@]}" | sed 's/^/  /'
fi

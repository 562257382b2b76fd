#!/usr/bin/env bash
# Installs what banger needs from Debian's archive, and nothing that is there already: with everything in place no
# package manager is started at all.
#
# usage: scripts/host-packages.sh [run] [build] [test] [lint]      (all of them when none is named)
set -euo pipefail

PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH

# program : package that has it
packages_of() {
    case $1 in
    run) echo qemu-system-x86_64:qemu-system-x86 qemu-img:qemu-utils passt:passt mmdebstrap:mmdebstrap \
        newuidmap:uidmap mke2fs:e2fsprogs depmod:kmod git:git zstd:zstd xz:xz-utils ip:iproute2 ;;
    build) echo cc:build-essential make:make git:git ;;
    test) echo unshare:util-linux ip:iproute2 nft:nftables e2fsck:e2fsprogs dpkg-deb:dpkg mkfs.xfs:xfsprogs \
        mkfs.btrfs:btrfs-progs ssh:openssh-client rsync:rsync git:git debugfs:e2fsprogs bash:bash zsh:zsh \
        fish:fish ;;
    lint) echo shellcheck:shellcheck ;;
    *)
        echo "host-packages: unknown group '$1' (run, build, test, lint)" >&2
        return 2
        ;;
    esac
}

[ $# -gt 0 ] || set -- run build test lint
missing=()
for group in "$@"; do
    entries=$(packages_of "$group")
    for entry in $entries; do
        command -v "${entry%%:*}" >/dev/null || missing+=("${entry##*:}")
    done
done
# mmdebstrap and the kernel's download verify Debian's archive with these.
case " $* " in
*" run "*)
    [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing+=(debian-archive-keyring)
    [ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
    ;;
esac
[ ${#missing[@]} -gt 0 ] || exit 0
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)

if ! command -v apt-get >/dev/null; then
    echo "host-packages: missing: ${missing[*]} (Debian's names); install them with your package manager" >&2
    exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "host-packages: missing: ${missing[*]}; become root and run: apt-get install ${missing[*]}" >&2
        exit 1
    fi
    as_root=(sudo)
fi

apt() { # apt ARGUMENTS: quiet unless it fails
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300 \
        -o Dpkg::Use-Pty=0 -o APT::Color=0 "$@"
}

echo "host-packages: installing ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# A mirror that is briefly away is no reason to stop: the lists on the machine may do.
apt update >"$log" 2>&1 || tail -n 5 "$log" >&2
# Nothing that is there may go: to make room for one half of QEMU, apt would remove the other.
if apt install --no-install-recommends --no-remove "${missing[@]}" >"$log" 2>&1; then
    exit 0
fi

# qemu-utils from backports conflicts with the qemu-system-x86 of the release (and the other way round): take the two
# of one version, the candidate of the one that is missing.
version=$(apt-cache policy qemu-system-x86 | sed -n 's/^ *Candidate: //p')
if [ -n "$version" ] && [ "$version" != "(none)" ] && [[ " ${missing[*]} " == *" qemu-"* ]]; then
    echo "host-packages: apt refused; trying again with all of QEMU at $version"
    pinned=()
    for package in qemu-system-x86 qemu-utils qemu-system-common qemu-system-data qemu-block-extra; do
        case $package in
        qemu-system-x86 | qemu-utils) pinned+=("$package=$version") ;;
        *) # those that are installed move along
            if [ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null)" = "ii " ]; then
                candidate=$(apt-cache madison "$package" | awk '{print $3}' | grep -Fx -m1 "$version" || true)
                [ -z "$candidate" ] || pinned+=("$package=$candidate")
            fi
            ;;
        esac
    done
    others=()
    for package in "${missing[@]}"; do
        [[ $package == qemu-* ]] || others+=("$package")
    done
    if apt install --no-install-recommends --no-remove --allow-downgrades "${pinned[@]}" "${others[@]}" >"$log" 2>&1; then
        exit 0
    fi
fi
echo "host-packages: apt-get could not install ${missing[*]}:" >&2
tail -n 20 "$log" >&2
exit 1

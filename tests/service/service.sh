#!/bin/sh
# The service in a Debian with a systemd of its own: set up by docs/operating.md, word for word, then upgraded, reloaded, killed,
# stalled, attacked and purged (inside.sh). As root; target/debian/*.deb has to be there.
#
# service.sh [SUITE]: bookworm, unless another one is named
set -eu
cd "$(dirname "$0")/../.."

suite=${1:-bookworm}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
deb=$(ls target/debian/hsm-authd_"$version"-1_*.deb)
tests/service/rootfs "$suite"

scratch=$(mktemp -d)
root=$scratch/root
trap 'rm -rf --one-file-system "$scratch"' EXIT
trap 'exit 1' HUP INT TERM
mkdir "$root"
tar -C "$root" -xf "target/service/$suite.tar"
# Nobody is there to be asked.
echo 'APT::Get::Assume-Yes "true";' >"$root/etc/apt/apt.conf.d/yes"

# What is installed first: the same files under a lower version.
dpkg-deb --raw-extract "$deb" "$scratch/earlier"
sed -i 's/^Version: .*/Version: 0.0.1-1/' "$scratch/earlier/DEBIAN/control"
dpkg-deb --root-owner-group --build "$scratch/earlier" "$root/root/hsm-authd_0.0.1-1_all.deb" >/dev/null
mkdir "$root/root/upgrade"
cp "$deb" "$root/root/upgrade/hsm-authd.deb"

# Every command between the two headings; the last one answers to the bank.
awk '/^## From the package/ { inside = 1 } /^### Before it is the bank/ { inside = 0 }
    /^```$/ { code = 0 } inside && code { print } /^```sh$/ { code = 1 }' docs/operating.md |
    sed '$s/$/ | tee \/root\/answer/' >"$root/root/guide"
cp tests/service/attacker.pl tests/service/watcher.pl "$root/root/"

tests/service/boot "$root" tests/service/inside.sh
echo "$(basename "$deb") on $suite: all as told"

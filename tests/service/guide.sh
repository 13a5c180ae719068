#!/bin/sh
# Does what docs/operating.md says, word for word, in a Debian with a systemd of its own: from the package to the first verified
# code. Then an upgrade under load, and a purge of the running service. As root; target/debian/*.deb has to be there.
#
# guide.sh [SUITE]: bookworm, unless another one is named
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
cp "$deb" "$root/root/"
# Nobody is there to be asked.
echo 'APT::Get::Assume-Yes "true";' >"$root/etc/apt/apt.conf.d/yes"
mkdir "$root/root/later"
dpkg-deb --raw-extract "$deb" "$scratch/later"
sed -i 's/^Version: .*/Version: 999.0.0-1/' "$scratch/later/DEBIAN/control"
dpkg-deb --root-owner-group --build "$scratch/later" "$root/root/later/hsm-authd.deb" >/dev/null

{
    cat <<'END'
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive SYSTEMD_PAGER=cat
cd /root
fail() { echo "FAILED: $1"; journalctl -u 'hsm-authd*' --no-pager | tail -n 30; exit 1; }
trap 'fail "line $LINENO: $BASH_COMMAND"' ERR
END
    # Every command between the two headings; the last one answers to the bank.
    awk '/^## From the package/ { inside = 1 } /^### Before it is the bank/ { inside = 0 }
        /^```$/ { code = 0 } inside && code { print } /^```sh$/ { code = 1 }' docs/operating.md |
        sed '$s/$/ | tee \/root\/answer/'
    cat <<'END'

grep -q '"verified":true' /root/answer || fail "the guide ended without a verified code"
echo
echo "== the guide is done"

echo "== an upgrade, while a client asks"
property() { systemctl show --property "$1" --value "$2"; }
before=$(property MainPID hsm-authd.service)
socket=$(property ActiveEnterTimestampMonotonic hsm-authd.socket)
touch /root/asking
while [ -e /root/asking ]; do
    bank -o /dev/null -w '%{http_code}\n' https://localhost:8443/v1/credentials || true
done >/root/asked 2>&1 &
dpkg --install /root/later/hsm-authd.deb >/dev/null
asked=$(wc -l </root/asked)
# What comes after the restart counts as well.
until [ "$(wc -l </root/asked)" -ge $((asked + 20)) ]; do read -rt 0.05 _ <> <(:) || true; done
rm /root/asking
wait
[ "$(property MainPID hsm-authd.service)" != "$before" ] || fail "the upgrade did not restart the service"
[ "$(property ActiveState hsm-authd.service)" = active ] || fail "the service is not up after the upgrade"
[ "$(property ActiveEnterTimestampMonotonic hsm-authd.socket)" = "$socket" ] || fail "the upgrade restarted the socket"
[ "$(sort -u /root/asked)" = 200 ] || fail "requests failed: $(sort /root/asked | uniq -c)"
echo "$(wc -l </root/asked) requests answered, none failed"

echo "== a reload, and an upgrade of what is stopped"
systemctl reload hsm-authd
systemctl stop hsm-authd.socket hsm-authd-ops.socket hsm-authd.service
dpkg --install /root/hsm-authd_*.deb >/dev/null 2>&1
[ "$(property ActiveState hsm-authd.service)" = inactive ] || fail "an upgrade started a service that was stopped"
systemctl start hsm-authd
[ "$(property ActiveState hsm-authd.socket)" = active ] || fail "the service is up without its socket"

echo "== a purge of the running service"
mkdir -p /etc/systemd/system/hsm-authd.service.d
cp /usr/share/doc/hsm-authd/examples/usb-hsm.conf /etc/systemd/system/hsm-authd.service.d/hsm.conf
dpkg --purge hsm-authd >/dev/null
left=$(find / -xdev -not -path '/proc/*' -not -path '/root/*' \( -name '*hsm-authd*' -o -nouser -o -nogroup \))
[ -z "$left" ] || fail "the purge left $left"
units=$(systemctl list-units --all --no-legend 'hsm-authd*')
[ -z "$units" ] || fail "the purge left $units"
if pgrep -f hsm-authd >/dev/null; then fail "the purge left a process"; fi
if getent passwd hsm-authd; then fail "the purge left the user"; fi
echo "nothing is left"
END
} >"$scratch/script"

tests/service/boot "$root" "$scratch/script"
echo "$(basename "$deb") on $suite: the guide, an upgrade, a purge: all as told"

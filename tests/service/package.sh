#!/bin/sh
# Installs, upgrades, removes and purges the package in a Debian of its own, without a running systemd, and looks at what is
# there after each and what is left at the end. As root, on Debian; target/debian/*.deb has to be there (`make deb`).
#
# package.sh [SUITE]: bookworm, unless another one is named
set -eu

# What is mounted here, and every process that is started, ends with this script.
if [ "${1:-}" != --unshared ]; then
    exec unshare --mount --pid --fork --kill-child --propagation private "$0" --unshared "$@"
fi
shift
cd "$(dirname "$0")/../.."

suite=${1:-bookworm}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
deb=$(ls target/debian/hsm-authd_"$version"-1_*.deb)
tests/service/rootfs "$suite"

scratch=$(mktemp -d)
root=$scratch/root
trap 'umount "$root/proc" "$root/var/lib/hsm-authd/store" 2>/dev/null || true; rm -rf --one-file-system "$scratch"' EXIT
trap 'exit 1' HUP INT TERM
mkdir "$root"
tar -C "$root" -xf "target/service/$suite.tar"
mount -t proc proc "$root/proc"

step() { echo "== $1"; }
fail() {
    echo "FAILED: $1" >&2
    exit 1
}
inside() { DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot "$root" "$@"; }

# Every file and folder but those that the package manager keeps of its own: its lists, logs and caches.
state() {
    (cd "$root" && find . -xdev \( -path ./proc -o -path ./sys -o -path ./dev -o -path ./run -o -path ./tmp -o -path ./var/log \
        -o -path ./var/cache -o -path ./var/lib/dpkg -o -path ./var/lib/apt \) -prune -o -printf '%p %y %m %U %G\n') | sort
}
# Users and groups; the files' backups (passwd-) are one change behind.
users() { sort "$root/etc/passwd" "$root/etc/group" "$root/etc/shadow" "$root/etc/gshadow"; }
# has PATH TYPE MODE OWNER GROUP
has() {
    found=$(inside stat -c '%F %a %U %G' "$1" 2>&1) || fail "$1: $found"
    [ "$found" = "$2 $3 $4 $5" ] || fail "$1 is $found, and not $2 $3 $4 $5"
}
gone() { if [ -e "$root$1" ] || [ -L "$root$1" ]; then fail "$1 is there"; fi; }
link() { [ -L "$root$1" ] || fail "$1 is not there"; }
nothing_enabled() {
    links=$(find "$root/etc/systemd" -name 'hsm-authd*')
    [ -z "$links" ] || fail "$1: $links"
}

# A second package, as a later release is: the same files under a higher version.
step "a package of a later release"
dpkg-deb --raw-extract "$deb" "$scratch/later"
sed -i 's/^Version: .*/Version: 999.0.0-1/' "$scratch/later/DEBIAN/control"
dpkg-deb --root-owner-group --build "$scratch/later" "$root/later.deb" >/dev/null
cp "$deb" "$root/hsm-authd.deb"
# Packages that ours needs are installed before, so that what is left at the end is ours. User lists get their backup files.
inside groupadd --system for-a-backup-file && inside groupdel for-a-backup-file
inside useradd --system for-a-backup-file && inside userdel for-a-backup-file
state >"$scratch/before"
users >"$scratch/users.before"

step "install"
inside apt-get -o APT::Sandbox::User=root install -qq --no-install-recommends -y /hsm-authd.deb >"$scratch/install.log" 2>&1 ||
    { cat "$scratch/install.log" >&2; fail "apt-get install"; }
[ "$(inside hsm-authd --version)" = "hsm-authd $version" ] || fail "hsm-authd --version"
has /usr/bin/hsm-authd "regular file" 711 root root
for file in systemd/system/hsm-authd.service systemd/system/hsm-authd.socket systemd/system/hsm-authd-ops.socket \
    sysusers.d/hsm-authd.conf tmpfiles.d/hsm-authd.conf; do
    has "/usr/lib/$file" "regular file" 644 root root
done
doc=/usr/share/doc/hsm-authd
for file in $doc/copyright $doc/third-party.txt $doc/operating.md $doc/examples/hsm-authd.toml /usr/share/man/man8/hsm-authd.8.gz \
    /usr/share/man/man8/hsm-authd-keys-rotate.8.gz /usr/share/bash-completion/completions/hsm-authd \
    /usr/share/zsh/vendor-completions/_hsm-authd /usr/share/fish/vendor_completions.d/hsm-authd.fish; do
    has "$file" "regular file" 644 root root
done
has /etc/hsm-authd directory 750 root hsm-authd
has /var/lib/hsm-authd directory 700 hsm-authd hsm-authd
user=$(inside getent passwd hsm-authd) || fail "no user hsm-authd"
case $user in
*:/var/lib/hsm-authd:/usr/sbin/nologin) ;;
*) fail "the user is $user" ;;
esac
gone /etc/hsm-authd/hsm-authd.toml
nothing_enabled "enabled by the installation"

step "the service is made and enabled, as an operator does"
units='hsm-authd.service hsm-authd.socket hsm-authd-ops.socket'
# shellcheck disable=SC2086 # one word a unit
inside systemctl --quiet enable $units
link /etc/systemd/system/sockets.target.wants/hsm-authd.socket
mkdir "$root/etc/systemd/system/hsm-authd.service.d"
cp "$root$doc"/examples/*.conf "$root/etc/systemd/system/hsm-authd.service.d/"
inside install -m 0640 -o root -g hsm-authd $doc/examples/hsm-authd.toml /etc/hsm-authd/hsm-authd.toml
inside install -m 0600 -o hsm-authd -g hsm-authd /dev/null /var/lib/hsm-authd/store/hsm-authd.db
echo "kept" >"$root/var/lib/hsm-authd/store/hsm-authd.db"
id=$(inside id -u hsm-authd)
kept() {
    [ "$(cat "$root/var/lib/hsm-authd/store/hsm-authd.db")" = kept ] || fail "$1: the database is not what it was"
    cmp -s "$root/etc/hsm-authd/hsm-authd.toml" softhsm-setup/hsm-authd.toml ||
        fail "$1: the configuration is not what it was"
    has /etc/hsm-authd/hsm-authd.toml "regular file" 640 root hsm-authd
    has /var/lib/hsm-authd/store/hsm-authd.db "regular file" 600 hsm-authd hsm-authd
    [ "$(inside id -u hsm-authd)" = "$id" ] || fail "$1: the user has another number"
}

step "upgrade"
inside dpkg --install /later.deb >/dev/null
# shellcheck disable=SC2016 # dpkg's own variable
[ "$(inside dpkg-query -W -f '${Version}' hsm-authd)" = 999.0.0-1 ] || fail "the later version is not there"
kept upgrade
link /etc/systemd/system/sockets.target.wants/hsm-authd.socket
link /etc/systemd/system/multi-user.target.wants/hsm-authd.service

step "remove: configuration, state and user stay, and nothing is enabled"
inside dpkg --remove hsm-authd >/dev/null
gone /usr/bin/hsm-authd
gone /usr/lib/systemd/system/hsm-authd.service
kept remove
for target in sockets multi-user; do
    links=$(find "$root/etc/systemd/system/$target.target.wants" -name 'hsm-authd*' 2>/dev/null || true)
    [ -z "$links" ] || fail "remove: still enabled: $links"
done

step "installed again, and purged at once"
inside dpkg --install /hsm-authd.deb >/dev/null
kept "installed again"
inside dpkg --purge hsm-authd >"$scratch/purge.log" 2>&1 || { cat "$scratch/purge.log" >&2; fail "purge"; }
if grep -v '^(Reading\|^Removing\|^Purging' "$scratch/purge.log"; then fail "purge warned"; fi
nothing_left() {
    state >"$scratch/after"
    users >"$scratch/users.after"
    diff "$scratch/before" "$scratch/after" >&2 || fail "the purge left or took something"
    diff "$scratch/users.before" "$scratch/users.after" >&2 || fail "the purge left or took a user or a group"
    [ -z "$(find "$root/var/lib/dpkg/info" -name 'hsm-authd.*')" ] || fail "dpkg still knows it"
}
nothing_left

step "purged while a file cannot be removed: whose it is stays"
inside dpkg --install /hsm-authd.deb >/dev/null
inside install -m 0600 -o hsm-authd -g hsm-authd /dev/null /var/lib/hsm-authd/store/hsm-authd.db
id=$(inside id -u hsm-authd)
store=$root/var/lib/hsm-authd/store
mount --bind "$store" "$store"
mount -o remount,bind,ro "$store"
inside dpkg --purge hsm-authd >"$scratch/purge.log" 2>&1 || { cat "$scratch/purge.log" >&2; fail "purge"; }
grep -q 'the user and the group hsm-authd stay, for /var/lib/hsm-authd/' "$scratch/purge.log" || fail "nobody is told of it"
[ "$(inside id -u hsm-authd)" = "$id" ] || fail "the user is gone"
umount "$store"
inside dpkg --install /hsm-authd.deb >/dev/null
inside dpkg --purge hsm-authd >/dev/null 2>&1
nothing_left

echo "$(basename "$deb") on $suite: installed, upgraded, removed, purged; nothing is left"

#!/bin/bash
# What service.sh has done in the booted Debian. /root/guide has the commands of docs/operating.md: they set the service up, and
# leave `bank`, which asks as the client bank-a, and ID, the credential whose first code they verified.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive SYSTEMD_PAGER=cat
cd /root

fail() {
    echo "FAILED: $1"
    journalctl -u 'hsm-authd*' --no-pager | grep -v '"message":"request"' | tail -n 30
    exit 1
}
trap 'fail "line $LINENO: $BASH_COMMAND"' ERR

began=${EPOCHREALTIME/./}
phase() {
    local now=${EPOCHREALTIME/./}
    [ -z "${phase:-}" ] || echo "   took $(((now - began) / 1000)) ms"
    began=$now
    phase=$1
    [ -z "$phase" ] || echo "== $phase"
    # Each phase may restart the service; that limit is not what is tried.
    systemctl reset-failed hsm-authd.service 2>/dev/null || true
}
pause() { read -rt 0.05 _ <> <(:) || true; }
# eventually SECONDS COMMAND...: it succeeds by then.
eventually() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || fail "not in time: $*"
        pause
    done
}
property() { systemctl show --property "$1" --value "${2:-hsm-authd.service}"; }
# Of the journal, as lines: what was said so far, by the service and of it.
said() { journalctl -u hsm-authd.service -o cat --no-pager; }
times_said() { said | grep -cF "$1" || true; }
said_again() { [ "$(times_said "$1")" -gt "$2" ]; }
main() { property MainPID; }
front() { pgrep -P "$(main)" -f '^/proc/self/exe front '; }
custodian() { pgrep -P "$(main)" -f '^/proc/self/exe custodian ' | head -n 1; }
serves_as_another_than() { [ "$(main)" != "$1" ] && [ "$(property ActiveState)" = active ]; }

credential() { bank "https://localhost:8443/v1/credentials/$ID"; }
verify() { bank "https://localhost:8443/v1/credentials/$ID/verify" --json "{\"otp\":\"$1\"}"; }
# RFC 4226, appendix D, and ten more. The guide used the first.
codes=(755224 287082 359152 969429 338314 254676 287922 162583 399871 520489 403154 481090 868912 736127 229903 436521 186581 447589 903435 578337)
used=0
next_is_taken() {
    used=$((used + 1))
    local answer
    answer=$(verify "${codes[$used]}")
    [[ $answer == *'"verified":true'* ]] || fail "the next code: $answer"
}
# What was is still so: a counter where it was, a used code refused, and the next one taken.
before=
remember() { before=$(credential); }
kept() {
    local now answer
    now=$(credential)
    [ "$now" = "$before" ] || fail "$before became $now"
    answer=$(verify "${codes[$used]}")
    [[ $answer == *:verification-failed* ]] || fail "a used code: $answer"
    next_is_taken
}

# Clients that ask without end, two who read and two whose seeds go to the HSM; each request has a connection of its own.
ask() {
    touch asking
    for worker in 1 2 3 4; do
        while [ -e asking ]; do
            if [ "$worker" -le 2 ]; then
                bank -o /dev/null -w '%{http_code}\n' https://localhost:8443/v1/credentials || true
            else
                bank -o /dev/null -w '%{http_code}\n' https://localhost:8443/v1/credentials --json \
                    "{\"type\":\"hotp\",\"account\":\"load-$worker\",\"seed_hex\":\"3132333435363738393031323334353637383930\"}" ||
                    true
            fi
        done >"asked.$worker" 2>&1 &
    done
}
asked() { cat asked.[1-4] | wc -l; }
asked_more_than() { [ "$(asked)" -gt "$1" ]; }
# What comes after is asked as well.
all_answered() {
    eventually 60 asked_more_than $(($(asked) + 40))
    rm asking
    wait
    failed=$(cat asked.[1-4] | grep -vx '20[01]' | sort | uniq -c) || true
    [ -z "$failed" ] || fail "requests failed: $failed"
    echo "   $(asked) requests answered, none failed"
}

phase "from the package to the first verified code, by the guide"
# shellcheck disable=SC1091 # made of docs/operating.md
. ./guide
cd /root
grep -q '"verified":true' answer || fail "the guide ended without a verified code"
echo

phase "an upgrade, while clients ask"
socket=$(property ActiveEnterTimestampMonotonic hsm-authd.socket)
process=$(main)
remember
ask
eventually 60 asked_more_than 20
dpkg --install upgrade/hsm-authd.deb >/dev/null
eventually 60 serves_as_another_than "$process"
all_answered
[ "$(property ActiveEnterTimestampMonotonic hsm-authd.socket)" = "$socket" ] || fail "the upgrade restarted the socket"
kept

phase "an upgrade of what is stopped"
remember
systemctl stop hsm-authd.socket hsm-authd-ops.socket hsm-authd.service
dpkg --install upgrade/hsm-authd.deb >/dev/null
[ "$(property ActiveState)" = inactive ] || fail "an upgrade started a service that was stopped"
systemctl start hsm-authd
[ "$(property ActiveState hsm-authd.socket)" = active ] || fail "the service is up without its socket"
kept

phase "what systemd takes from it, and what it takes from itself"
score=$(systemd-analyze security hsm-authd.service | sed -n 's/.*exposure level for [^ ]*: \([0-9.]*\) .*/\1/p')
echo "   systemd-analyze security: $score"
awk -v score="$score" 'BEGIN { exit !(score != "" && score <= 0.2) }' || fail "an exposure of $score"
# As `check` finds outside of the unit what this kernel can, nothing of that may be missing inside.
echo "   check: $(hsm-authd check --config /etc/hsm-authd/hsm-authd.toml 2>&1 | grep -F 'ok  sandbox: ')"
! hsm-authd check 2>&1 | grep -F 'before its first line' || fail "a process is open at first"
gaps=$(said | grep -F 'the sandbox has a gap') || true
locked='[1-9]'
if ! grep -q '^Max locked memory *unlimited *unlimited' /proc/1/limits; then
    # A machine that may not raise its own limit cannot show it: nobody in it has more.
    echo "   passed over: memory is not locked, for this machine has a limit itself"
    gaps=$(grep -vF 'memory may be swapped out' <<<"$gaps") || true
    locked='[0-9]'
fi
[ -z "$gaps" ] || fail "in the unit: $gaps"
filters() { sed -n 's/^Seccomp_filters:[^0-9]*//p' "/proc/$1/status"; }
for role in front custodian; do
    status=$(cat "/proc/$($role)/status")
    for line in 'NoNewPrivs:.1' 'Seccomp:.2' "VmLck:.*${locked}[0-9]* kB"; do
        grep -q "^$line" <<<"$status" || fail "$role: not $line"
    done
    own=$(($(filters "$($role)") - $(filters "$(main)")))
    [ "$own" -gt 0 ] || fail "$role: no filter of its own"
    echo "   $role: $own filters besides those of the unit, $(sed -n 's/^VmLck:[^0-9]*//p' <<<"$status") locked"
done

phase "reloads, while clients ask"
ask
eventually 60 asked_more_than 20
for reload in 1 2 3 4 5; do
    many=$(asked)
    systemctl reload hsm-authd || fail "reload $reload"
    eventually 60 asked_more_than $((many + 20))
done
all_answered
next_is_taken

for role in front main; do
    case $role in
    front) phase "the front is killed" ;;
    main) phase "the supervisor is killed" ;;
    esac
    remember
    process=$(main)
    restarts=$(property NRestarts)
    kill -KILL "$($role)"
    eventually 60 serves_as_another_than "$process"
    [ "$(property NRestarts)" -gt "$restarts" ] || fail "it was not systemd that started it again"
    kept
done

mkdir -p /etc/systemd/system/hsm-authd.service.d
printf '[Service]\nWatchdogSec=3\n' >/etc/systemd/system/hsm-authd.service.d/watchdog.conf
systemctl daemon-reload
systemctl restart hsm-authd
for role in front main; do
    case $role in
    front) phase "the front is stopped, as if it hung" ;;
    main) phase "the supervisor is stopped, as if it hung" ;;
    esac
    remember
    process=$(main)
    timeouts=$(times_said 'Watchdog timeout')
    kill -STOP "$($role)"
    eventually 60 said_again 'Watchdog timeout' "$timeouts"
    eventually 60 serves_as_another_than "$process"
    said | grep -qF "Failed with result 'watchdog'" || fail "it was not the watchdog"
    kept
done
rm /etc/systemd/system/hsm-authd.service.d/watchdog.conf
systemctl daemon-reload
systemctl restart hsm-authd

phase "an attacker with the service's uid, without its sandbox"
runuser -u hsm-authd -- sleep infinity &
bystander=$!
eventually 10 pgrep -u hsm-authd -x sleep >/dev/null
victim=$(pgrep -u hsm-authd -x sleep)
# came FILE ACT WORD: what came of an act; WORD is ok, or "not".
came() {
    local end
    end=$(sed -n "s|^$2\t||p" "$1")
    case $3:$end in
    ok:ok | not:"Permission denied" | not:"Operation not permitted" | not:"No such file or directory") ;;
    not:"Network is unreachable") ;;
    *) fail "$2: ${end:-not tried}, expected $3" ;;
    esac
}
looks='mem environ maps ptrace process_vm_readv'
look_at() { for look in $looks; do echo "$look:$1"; done; }
refusals=0
for place in - "$(main)"; do
    acts=()
    for process in bystander "$(front)" "$(custodian)" "$(main)"; do
        mapfile -t -O "${#acts[@]}" acts < <(look_at "$process")
    done
    perl attacker.pl "$place" "${acts[@]}" read:/etc/hsm-authd/pin read:/var/lib/hsm-authd/store/hsm-authd.db exec:/usr/bin/true \
        udp:192.0.2.1:9 >came
    for act in "${acts[@]}"; do
        case $act in
        *:bystander) came came "$act" ok ;;
        *) came came "$act" not && refusals=$((refusals + 1)) ;;
        esac
    done
    # That a file can be read at all.
    came came read:/var/lib/hsm-authd/store/hsm-authd.db ok
    case $place in
    -) came came exec:/usr/bin/true ok ;;
    *)
        for act in read:/etc/hsm-authd/pin exec:/usr/bin/true udp:192.0.2.1:9; do
            came came "$act" not && refusals=$((refusals + 1))
        done
        ;;
    esac
done
for tool in strace gdb; do
    for process in "$victim" "$(front)" "$(custodian)" "$(main)"; do
        case $tool in
        strace) runuser -u hsm-authd -- timeout -s INT 1 strace -o /dev/null -p "$process" >came 2>&1 || true ;;
        gdb) runuser -u hsm-authd -- gdb -nx -batch -p "$process" -ex 'info registers' >came 2>&1 || true ;;
        esac
        if [ "$process" = "$victim" ]; then
            grep -q 'attached$\|^pc \|^rip ' came || fail "$tool finds nothing at all: $(cat came)"
        else
            grep -qi 'operation not permitted' came || fail "$tool -p $process: $(cat came)"
            refusals=$((refusals + 1))
        fi
    done
done
kill "$bystander"
wait "$bystander" || true
# What root starts runs outside of the unit: nobody of the service's user may open its memory, not even between `exec` and the
# first line. A copy that may be read, and is open for that moment alone, shows that the watcher is quick enough.
open=/usr/local/bin/open-authd
install -m 0755 /usr/bin/hsm-authd "$open"
# watched PROGRAM TIMES: what the watcher catches while root runs it.
watched() {
    : >caught
    perl watcher.pl >>caught &
    local watcher=$!
    eventually 10 grep -qx watching caught
    for _ in $(seq "$2"); do
        "$1" keys list >/dev/null
        "$1" check >/dev/null
    done
    kill "$watcher"
    wait "$watcher"
}
times=0
caught_open=0
until [ "$caught_open" -gt 0 ]; do
    times=$((times + 5))
    [ "$times" -le 50 ] || fail "the watcher catches nothing at all"
    watched "$open" "$times"
    caught_open=$(grep -cx "$open" caught) || true
done
watched hsm-authd "$times"
! grep 'authd\|unknown' caught || fail "a command of root's was open to the service's user"
echo "   a watcher catches $caught_open processes of $((2 * times)) commands that may be read, and none of the package's"
rm "$open"
refusals=$((refusals + 1))
echo "   $refusals acts refused; each succeeds on a process that is not guarded"

phase "an attacker in the place of the front, and of a custodian"
# in_place_of PID ACT...: has a process of the service itself do it, by root's debugger: all that it took from itself holds.
in_place_of() {
    local process=$1
    shift
    {
        echo 'set confirm off'
        for act in "$@"; do
            case $act in
            open:*) call="((int (*)(const char *, int)) open64)(\"${act#*:}\", 0)" ;;
            socket:*) call="((int (*)(int, int, int)) socket)(${act#*:}, 1, 0)" ;;
            ptrace:*) call="((long (*)(int, int, long, long)) ptrace)(16, ${act#*:}, 0, 0)" ;;
            process_vm_readv:*) call="((long (*)(int, long, long, long, long, long)) process_vm_readv)(${act#*:}, 0, 0, 0, 0, 0)" ;;
            esac
            # shellcheck disable=SC2016 # the debugger's own variables
            printf 'set $r = %s\nif $r < 0\nset $r = *((int *(*)(void)) __errno_location)()\nelse\n' "$call"
            # shellcheck disable=SC2016
            case $act in
            open:* | socket:*) echo 'call (void) ((int (*)(int)) close)($r)' ;;
            esac
            # shellcheck disable=SC2016
            printf 'set $r = 0\nend\nprintf "came: %s\\t%%d\\n", $r\n' "$act"
        done
    } >acts
    gdb -nx -batch -p "$process" -x acts >debugger 2>&1 || true
    sed -n 's/^came: //p' debugger >came
}
# 1 is EPERM, 2 ENOENT, 3 ESRCH, 13 EACCES.
ends() {
    local end
    end=$(sed -n "s|^$1\t||p" came)
    [[ " $2 " == *" ${end:-none} "* ]] || fail "$role: $1: ${end:-$(tail -n 5 debugger)}, expected $2"
}
credentials=/run/credentials/hsm-authd.service
token=$(find /var/lib/hsm-authd/tokens -name '*.object' | head -n 1)
store=/var/lib/hsm-authd/store/hsm-authd.db
acts=("open:$credentials/pin" open:/etc/hsm-authd/pin "open:$token" open:/usr/lib/softhsm/libsofthsm2.so "open:$store"
    open:/etc/hsm-authd/hsm-authd.toml socket:1 socket:2 process_vm_readv:"$(custodian)" process_vm_readv:"$(front)"
    ptrace:4000000 "open:/proc/$(custodian)/mem" "open:/proc/$(front)/mem" "open:/proc/$(main)/mem")
if [ -e /etc/hsm-authd/server.key ]; then acts+=(open:/etc/hsm-authd/server.key); fi
for role in main front custodian; do
    process=$($role)
    in_place_of "$process" "${acts[@]}"
    for act in "${acts[@]}"; do
        case $role:$act in
        *:open:/etc/hsm-authd/pin) ends "$act" "1 2 13" ;;
        *:open:/proc/"$process"/mem) ;;
        # What the supervisor may shows that the others could, were it not for what they took from themselves.
        main:open:/proc/*) ends "$act" "1 2 13" ;;
        main:socket:2) ends "$act" "1 97" ;;
        # The unit refuses it to all three.
        main:ptrace:*) ends "$act" 1 ;;
        main:* | front:open:"$store" | custodian:open:"$token" | custodian:open:/usr/lib/*) ends "$act" 0 ;;
        # The configuration is in /etc, which a module may read, and has no secret in it.
        custodian:open:*.toml) ;;
        *) ends "$act" "1 2 13" ;;
        esac
    done
    echo "   $role: $(grep -vc '[^0-9]0$' came) of $(grep -c . came) acts refused"
done
next_is_taken

phase "a PIN that is refused, and strangers who connect"
remember
cp -p /etc/hsm-authd/pin pin.right
echo 0000000000 >/etc/hsm-authd/pin
refused=$(times_said CKR_PIN_INCORRECT)
if systemctl restart hsm-authd; then fail "it started with a wrong PIN"; fi
closed() { [ "$(property ActiveState hsm-authd.socket)$(property ActiveState hsm-authd-ops.socket)" = inactiveinactive ]; }
eventually 60 closed
said_again CKR_PIN_INCORRECT "$refused" || fail "it was not the PIN"
refused=$(times_said CKR_PIN_INCORRECT)
for _ in 1 2 3 4 5; do
    if curl -sk https://localhost:8443/ -o /dev/null; then fail "somebody is served"; fi
done
[ "$(property ActiveState)" = failed ] || fail "it is $(property ActiveState)"
[ "$(times_said CKR_PIN_INCORRECT)" = "$refused" ] || fail "the PIN was tried again"
cp -p pin.right /etc/hsm-authd/pin
hsm-authd check >/dev/null || fail "the right PIN"
systemctl start hsm-authd
kept

phase "a restart is no reboot"
# Five wrong codes lock for 15 minutes; the first refusal after that tells how much of it is left.
LOCKED=$(bank https://localhost:8443/v1/credentials --json \
    '{"type":"hotp","account":"locked","seed_hex":"3132333435363738393031323334353637383930"}' | sed 's/.*"id":"\([^"]*\)".*/\1/')
left() {
    bank "https://localhost:8443/v1/credentials/$LOCKED/verify" --json '{"otp":"000000"}' |
        sed -n 's/.*"retry_after":\([0-9]*\).*/\1/p'
}
until [ -n "$(left)" ]; do :; done
since=$SECONDS
before_s=$(left)
until [ "$((SECONDS - since))" -ge 3 ]; do pause; done
systemctl restart hsm-authd
after_s=$(left)
[ "$after_s" -le "$((before_s - 2))" ] || fail "of $before_s s there are $after_s s left: the lock began anew"
echo "   of $before_s s $after_s s were left"

phase "the PIN encrypted for this machine"
remember
systemd-creds setup 2>/dev/null || true
systemd-creds encrypt --name=pin /etc/hsm-authd/pin /etc/hsm-authd/pin.cred
mkdir -p /etc/systemd/system/hsm-authd.service.d
printf '[Service]\nLoadCredential=\nLoadCredentialEncrypted=pin:/etc/hsm-authd/pin.cred\n' \
    >/etc/systemd/system/hsm-authd.service.d/override.conf
mv /etc/hsm-authd/pin pin
systemctl daemon-reload
systemctl restart hsm-authd
kept
if grep -qF "$(cat pin)" /etc/hsm-authd/pin.cred; then fail "the PIN is in the file"; fi

phase "a purge of the running service"
cp /usr/share/doc/hsm-authd/examples/usb-hsm.conf /etc/systemd/system/hsm-authd.service.d/hsm.conf
dpkg --purge hsm-authd >/dev/null
left=$(find / -xdev -not -path '/proc/*' -not -path '/root/*' \( -name '*hsm-authd*' -o -nouser -o -nogroup \))
[ -z "$left" ] || fail "the purge left $left"
units=$(systemctl list-units --all --no-legend 'hsm-authd*')
[ -z "$units" ] || fail "the purge left $units"
if pgrep -f hsm-authd >/dev/null; then fail "the purge left a process"; fi
if getent passwd hsm-authd; then fail "the purge left the user"; fi
echo "   nothing is left"
phase ""

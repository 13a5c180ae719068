#!/bin/sh
# What testssl.sh (Debian: testssl.sh) says of the API's listener: nothing below TLS 1.3, and nothing of any severity but what
# is expected below, with the reason. A minute, over loopback, on an `hsm-authd dev` of its own.
#
# testssl.sh [BINARY]: target/debug/hsm-authd, unless another one is named
set -eu
cd "$(dirname "$0")/../.."

binary=${1:-target/debug/hsm-authd}
scratch=$(mktemp -d)
service=
end() {
    if [ -n "$service" ]; then
        kill "$service"
        wait "$service" || true
    fi
    rm -rf "$scratch"
}
trap end EXIT
trap 'exit 1' HUP INT TERM

mkfifo "$scratch/said"
"$binary" dev --dir "$scratch/dev" --listen 127.0.0.1:0 >"$scratch/said" 2>"$scratch/log" &
service=$!
exec 3<"$scratch/said"
read -r ready <&3 || {
    tail -n 5 "$scratch/log" >&2
    exit 1
}
echo "$ready"

# Without a client's certificate openssl does not get far enough to be told anything; 3.0 has no option for one.
pki=$scratch/dev/pki
cat >"$scratch/openssl" <<END
#!/bin/sh
case \$1 in
s_client)
    shift
    exec openssl s_client -cert "$pki/bank-a.pem" -key "$pki/bank-a.key" "\$@"
    ;;
esac
exec openssl "\$@"
END
chmod +x "$scratch/openssl"

found=$scratch/findings.json
url=$(jq -r .url "$scratch/dev/dev.json")
# It ends with the number of what it found.
testssl --quiet --color 0 --warnings off --openssl "$scratch/openssl" --add-ca "$pki/ca.pem" --jsonfile "$found" \
    "${url#https://}" >"$scratch/report" 2>&1 || true

fail() {
    echo "FAILED: $1" >&2
    exit 1
}
finding() { jq -r --arg id "$1" '.[] | select(.id == $id) | .finding' "$found"; }

[ "$(jq length "$found")" -gt 80 ] || fail "it looked at little: $(tail -n 20 "$scratch/report")"
for protocol in SSLv2 SSLv3 TLS1 TLS1_1 TLS1_2; do
    [ "$(finding $protocol)" = "not offered" ] || fail "$protocol: $(finding $protocol)"
done
[ "$(finding TLS1_3)" = "offered with final" ] || fail "TLS 1.3: $(finding TLS1_3)"
# It came through to HTTP, so it was let in.
[ -n "$(finding HSTS)" ] || fail "there was no answer to a request"

# ID SEVERITY REASON
cat >"$scratch/expected" <<'END'
cert_revocation HIGH the development certificate names no revocation list; a bank's own authority decides that
DNS_CAArecord LOW a loopback address has no name in the DNS
HSTS LOW for browsers that could come by http first (RFC 6797): no browser is a client, and nothing listens without TLS
engine_problem WARN this machine's openssl has no GOST, of which nothing is asked
END
jq -r '.[] | select(.severity | IN("OK", "INFO", "DEBUG") | not) | "\(.id) \(.severity) \(.finding)"' "$found" \
    >"$scratch/severe"
failed=
while read -r id severity finding; do
    if reason=$(grep "^$id $severity " "$scratch/expected"); then
        echo "expected: $id $severity ($finding): ${reason#"$id $severity "}"
    else
        echo "FAILED: $id $severity: $finding" >&2
        failed=yes
    fi
done <"$scratch/severe"
[ -z "$failed" ] || exit 1
echo "$(jq length "$found") findings; nothing below TLS 1.3, and nothing of any severity besides those"

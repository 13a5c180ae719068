#!/bin/sh
# Wraps a seed so that nobody but the HSM of an hsm-authd can read it.
#
#   wrap-seed.sh KEY < SEED
#
# KEY is a file with what `GET /v1/import-key` answered; SEED is the seed in hexadecimal, 16 to 64 bytes. Standard output
# is one line: the value of `seed_wrapped_base64`. Where the key comes from is what matters: whoever gives you another
# one reads your seeds. Fetch it over the mutual TLS of the API, and compare `key_id` with what the operator tells.
#
# The seed goes through pipes and through this shell's memory; it is in no file and on no command line. It needs openssl,
# jq and coreutils. It is an example to read: whoever makes tokens by the thousand does the same in one program.
set -eu

fail() {
    echo "wrap-seed.sh: $1" >&2
    exit 1
}

[ $# -eq 1 ] || fail "usage: wrap-seed.sh KEY < SEED"
said() { jq --exit-status --raw-output "$1" "$2" 2>/dev/null; }
[ "$(said '"\(.algorithm) \(.hash) \(.mgf) \(.plaintext_bytes)"' "$1")" = "RSA-OAEP SHA-1 MGF1 with SHA-1 64" ] ||
    fail "$1 is no answer of GET /v1/import-key, or of one that wants another encryption"

IFS= read -r seed || [ -n "$seed" ] || fail "there is no seed"
case $seed in
    *[!0-9A-Fa-f]*) fail "the seed is not in hexadecimal" ;;
esac
digits=${#seed}
[ $((digits % 2)) -eq 0 ] && [ "$digits" -ge 32 ] && [ "$digits" -le 128 ] || fail "the seed must be 16 to 64 bytes"

key=$(mktemp)
trap 'rm -f "$key"' EXIT
said .public_key_pem "$1" > "$key"

# Zeros up to 64 bytes: they change no HMAC (RFC 2104, section 2), and hide how long the seed is.
{
    printf %s "$seed" | tr a-f A-F | basenc --base16 --decode
    head -c $((64 - digits / 2)) /dev/zero
} | openssl pkeyutl -encrypt -pubin -inkey "$key" \
    -pkeyopt rsa_padding_mode:oaep -pkeyopt rsa_oaep_md:sha1 -pkeyopt rsa_mgf1_md:sha1 | base64 -w 0
echo

#!/usr/bin/env python3
"""What a user's terminal computes about a transaction of hsm-authd: Python 3.9 or later, standard library only.

    terminal.py digest|decode|question|code|attestation < request.json > answer.json
    terminal.py lines    one request a line ({"do": "code", ...}), one answer a line

The README beside this file has the fields. Secrets come in the request, never as an argument.
"""
import base64
import hashlib
import hmac
import json
import re
import sys

TRANSACTION = "hsm-authd/transaction/v1"

# What is signed, by the text that it begins with: its fields in their order.
KINDS = {
    TRANSACTION: "tenant id method payer payee amount currency order platform remark parent_hash expires_at nonce",
    "hsm-authd/presentation/v1": "tenant account credential issued_at",
    "hsm-authd/decline/v1": "digest",
    "hsm-authd/authorization/v1": "tenant account credential terminal nonce expires_at",
}

SUITE = re.compile(
    r"OCRA-1:HOTP-(?P<hash>SHA1|SHA256|SHA512)-(?P<digits>[6-9]|10):(?P<counter>C-)?"
    r"Q(?P<kind>[ANH])(?P<length>0[89]|[1-5][0-9]|6[0-4])(-P(?P<pin>SHA1|SHA256|SHA512))?"
    r"(-S(?P<session>[0-9]{3}))?(-T(?P<step>[1-9][0-9]?)(?P<unit>[SMH]))?"
)
CHARACTERS = {"N": "[0-9]", "A": "[0-9A-Za-z]", "H": "[0-9A-Fa-f]"}
UNIT_S = {"S": 1, "M": 60, "H": 3600}
QUESTION_BYTES = 128


class Refused(Exception):
    """The request cannot be answered; the text says why, and never repeats a secret."""


# Encodings

def b64u(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def from_b64u(text):
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        data = b""
    if b64u(data) != text:
        raise Refused("not base64url without padding")
    return data


def from_hex(text, name):
    if not re.fullmatch("([0-9a-fA-F]{2})*", text):
        raise Refused(f"{name} is not hexadecimal")
    return bytes.fromhex(text)


def enc(*parts):
    """Each part's length in four bytes, then the part. Text is its UTF-8."""
    parts = [part.encode() if isinstance(part, str) else part for part in parts]
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def split(data):
    """The parts again."""
    parts = []
    while data:
        length = int.from_bytes(data[:4], "big")
        if len(data) < 4 + length:
            raise Refused("the encoding is cut off")
        parts.append(data[4:4 + length])
        data = data[4 + length:]
    return parts


# What is signed

def signing_input(fields, kind=TRANSACTION):
    """The bytes that a device signs. A field that is absent is empty."""
    if kind not in KINDS:
        raise Refused("an unknown kind")
    names = KINDS[kind].split()
    for name, value in fields.items():
        if name not in names:
            raise Refused(f"an unknown field: {name}")
        if not isinstance(value, str) or not value:
            raise Refused(f"{name} is not a text")
    return enc(kind, *[fields.get(name, "") for name in names])


def decode(data):
    """What the device is about to sign, as (kind, fields). Anything but the one encoding of them is refused."""
    try:
        kind, *values = [part.decode() for part in split(data)] or [""]
    except UnicodeDecodeError:
        raise Refused("not UTF-8") from None
    names = KINDS.get(kind, "").split()
    if not names or len(names) != len(values):
        raise Refused("not one of the kinds that devices sign")
    return kind, {name: value for name, value in zip(names, values) if value}


def digest_of(data):
    return hashlib.sha256(data).digest()


def parent_hash(jws):
    return hashlib.sha256(jws.encode()).hexdigest()


# OCRA (RFC 6287)

def parsed(suite):
    found = SUITE.fullmatch(suite)
    step = found and int(found["step"] or 1)
    if not found or step > (48 if found["unit"] == "H" else 59) or not 1 <= int(found["session"] or 1) <= 512:
        raise Refused("not a suite")
    return found


def question(suite, digest):
    """The question about the transaction with this digest, in 32 bytes."""
    suite = parsed(suite)
    length = int(suite["length"])
    if suite["kind"] == "H":
        return digest.hex()[:length]
    if suite["kind"] == "A":
        return base64.b32encode(digest + hashlib.sha256(digest).digest()).decode("ascii")[:length]
    least = 10 ** (length - 1)
    return str(least + int.from_bytes(digest, "big") % (9 * least))


def session_of(suite, digest):
    """The session that goes with it, where the suite has one."""
    bytes_max = parsed(suite)["session"]
    if bytes_max and int(bytes_max) < len(digest):
        raise Refused("the suite's session is shorter than a digest")
    return digest.rjust(int(bytes_max), b"\0") if bytes_max else None


def padded(kind, text):
    """A question in the 128 bytes in which it enters the HMAC: padded on the right, numbers in hexadecimal."""
    if kind == "A":
        return text.encode().ljust(QUESTION_BYTES, b"\0")
    digits = text if kind == "H" else format(int(text), "x")
    return bytes.fromhex(digits.ljust(2 * QUESTION_BYTES, "0"))


def code(suite, key, asked, counter=None, pin=None, session=None, time_steps=None):
    """The code that answers a question. `session` in bytes, `time_steps` since 1970, `pin` as text."""
    has = parsed(suite)
    for name, there, value in (("counter", has["counter"], counter), ("pin", has["pin"], pin),
                               ("session", has["session"], session), ("time_steps", has["step"], time_steps)):
        if bool(there) != (value is not None):
            raise Refused(f"the suite has {'a' if there else 'no'} {name}")
    if not re.fullmatch(f"{CHARACTERS[has['kind']]}{{1,{2 * int(has['length'])}}}", asked):
        raise Refused("the question is not of this suite")
    message = suite.encode() + b"\0"
    if counter is not None:
        message += counter.to_bytes(8, "big")
    message += padded(has["kind"], asked)
    if pin is not None:
        message += hashlib.new(has["pin"].lower(), pin.encode()).digest()
    if session is not None:
        if not 1 <= len(session) <= int(has["session"]):
            raise Refused("the session is not as long as the suite says")
        message += session.rjust(int(has["session"]), b"\0")
    if time_steps is not None:
        message += time_steps.to_bytes(8, "big")
    mac = hmac.new(key, message, has["hash"].lower()).digest()
    offset = mac[-1] & 15
    number = int.from_bytes(mac[offset:offset + 4], "big") & 0x7FFF_FFFF
    digits = int(has["digits"])
    return str(number % 10 ** digits).zfill(digits)


# Requests

class Request(dict):
    """Reads fields by what they must be, and knows which nobody read."""

    def take(self, name, kind=str, required=True):
        value = self.pop(name, None)
        if value is None and not required:
            return None
        if type(value) is not kind:
            raise Refused(f"{name} is missing or no {kind.__name__}")
        if kind is int and not 0 <= value < 1 << 64:
            raise Refused(f"{name} is out of range")
        return value

    def digest(self):
        digest = from_hex(self.take("digest"), "digest")
        if len(digest) != 32:
            raise Refused("digest is not 32 bytes")
        return digest


def signed(data):
    """What is the same for everything that is signed; a WebAuthn authenticator signs the digest as its challenge."""
    digest = digest_of(data)
    return {"signing_input": b64u(data), "digest": digest.hex(), "webauthn_challenge": b64u(digest)}


def do_digest(request):
    fields = request.take("fields", dict)
    parent = request.take("parent", required=False)
    if parent is not None:
        fields = {**fields, "parent_hash": parent_hash(parent)}
    return signed(signing_input(fields, request.take("kind", required=False) or TRANSACTION))


def do_decode(request):
    data = from_b64u(request.take("signing_input"))
    kind, fields = decode(data)
    return {"kind": kind, "fields": fields, **signed(data)}


def do_question(request):
    suite, digest = request.take("suite"), request.digest()
    session = session_of(suite, digest)
    return {"question": question(suite, digest), "session_hex": session.hex() if session else None}


def do_code(request):
    suite, key = request.take("suite"), from_hex(request.take("key_hex"), "key_hex")
    if "digest" in request:
        digest = request.digest()
        asked, session = question(suite, digest), session_of(suite, digest)
    else:
        asked, session = request.take("question"), request.take("session_hex", required=False)
        session = None if session is None else from_hex(session, "session_hex")
    counter, steps = (request.take(name, int, required=False) for name in ("counter", "time_steps"))
    pin = request.take("pin", required=False)
    return {"question": asked, "code": code(suite, key, asked, counter, pin, session, steps)}


def do_attestation(request):
    """The transaction that an attestation tells of. Who signed it is another question: see the README."""
    jws = request.take("attestation")
    parts = jws.split(".")
    if len(parts) != 3:
        raise Refused("not a compact JWS")
    header, claims = (loads(from_b64u(part)) for part in parts[:2])
    if header.get("alg") != "ES256" or header.get("typ") != "attestation+jwt":
        raise Refused("not an attestation")
    fields = {name: value for name, value in Request(claims).take("transaction", dict).items() if value is not None}
    fields.update(id=claims.get("jti"), tenant=claims.get("tenant"), method=claims.get("method"))
    if claims.get("parent") is not None:
        fields["parent_hash"] = Request(Request(claims).take("parent", dict)).take("hash")
    answer = signed(signing_input(fields))
    if answer["digest"] != claims.get("digest"):
        raise Refused("the digest is not that of the transaction")
    return {"kid": header.get("kid"), "fields": fields, "parent_hash": parent_hash(jws), **answer}


COMMANDS = {"digest": do_digest, "decode": do_decode, "question": do_question, "code": do_code,
            "attestation": do_attestation}


def loads(text):
    """A JSON object in which no name stands twice."""
    def unique(pairs):
        if len(dict(pairs)) != len(pairs):
            raise Refused("a field stands twice")
        return dict(pairs)
    try:
        value = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise Refused("not JSON") from None
    if not isinstance(value, dict):
        raise Refused("not a JSON object")
    return value


def answer(command, request):
    if not isinstance(command, str) or command not in COMMANDS:
        raise Refused("what to do is one of " + ", ".join(COMMANDS))
    request = Request(request)
    try:
        said = COMMANDS[command](request)
    except UnicodeEncodeError:
        raise Refused("half a surrogate pair") from None
    if request:
        raise Refused("an unknown field: " + sorted(request)[0])
    return said


def main(arguments):
    if arguments == ["lines"]:
        for line in sys.stdin.buffer:
            try:
                request = loads(line)
                said = answer(request.pop("do", None), request)
            except Refused as refused:
                said = {"error": str(refused)}
            print(json.dumps(said), flush=True)
        return None
    if len(arguments) != 1 or arguments[0] not in COMMANDS:
        return __doc__.strip()
    try:
        print(json.dumps(answer(arguments[0], loads(sys.stdin.buffer.read()))))
    except Refused as refused:
        return f"terminal.py: {refused}"
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

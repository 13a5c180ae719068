"""What a terminal of hsm-authd computes: encodings, what is signed, OCRA, and the methods' own derivations.

terminal.py answers requests with it.
"""
import base64
import hashlib
import hmac
import re

TRANSACTION = "hsm-authd/transaction/v1"
PRESENTATION = "hsm-authd/presentation/v1"
DECLINE = "hsm-authd/decline/v1"
AUTHORIZATION = "hsm-authd/authorization/v1"

# What is signed, by the text that it begins with: its fields in their order.
KINDS = {
    TRANSACTION: "tenant id method payer payee amount currency order platform remark parent_hash expires_at nonce",
    PRESENTATION: "tenant account credential issued_at",
    DECLINE: "digest",
    AUTHORIZATION: "tenant account credential terminal nonce expires_at",
}

WEIGHTS = (1, 3, 7, 9)
IDENTITY_KEY_ROUNDS = 600_000
AUTHORIZATION_DIGITS = 6

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
    tag = hmac.new(key, message, has["hash"].lower()).digest()
    offset = tag[-1] & 15
    number = int.from_bytes(tag[offset:offset + 4], "big") & 0x7FFF_FFFF
    digits = int(has["digits"])
    return str(number % 10 ** digits).zfill(digits)


def mac(key, *parts):
    return hmac.new(key, enc(*parts), "sha256").digest()


def digits_of(tag, digits):
    """A code of so many digits: the first 8 bytes of an HMAC as a number, highest first."""
    return str(int.from_bytes(tag[:8], "big") % 10 ** digits).zfill(digits)


# Several terminals: the appliance's side. A terminal shows the code that it was sent.

def terminal_code(key, digest, credential, generation, digits):
    return digits_of(mac(key, "hsm-authd/terminal/v1", digest.hex(), credential, str(generation)), digits)


def target(codes, digits):
    """The value that is entered instead of the codes, and what each is multiplied with."""
    weights = [WEIGHTS[place % len(WEIGHTS)] for place in range(len(codes))]
    total = sum(int(one) * weight for one, weight in zip(codes, weights))
    return str(total % 10 ** digits).zfill(digits), weights


def order(rule, codes):
    """The codes, given in the rule's order of the terminals, in the order in which they are entered."""
    if rule not in ("preset_order", "ascending", "descending"):
        raise Refused("the rule is preset_order, ascending or descending")
    return codes if rule == "preset_order" else sorted(codes, key=int, reverse=rule == "descending")


# Rolling passwords. The terminal keeps the salt and the temporary code T(n), and neither identity code nor key

def identity_key(identity_code, salt):
    return hashlib.pbkdf2_hmac("sha256", identity_code.encode(), salt, IDENTITY_KEY_ROUNDS, 32)


def temporary_code(secret, credential, epoch):
    """T(n), as the appliance makes it."""
    return mac(secret, "hsm-authd/rolling/code/v1", credential, str(epoch))[:16]


def lookup(code_bytes):
    """Whose password it is: no more than the temporary code is needed for that."""
    return mac(code_bytes, "hsm-authd/rolling/lookup/v1")[:12]


def proof(code_bytes, key, digest):
    """The transaction, by one who has the temporary code and the identity code."""
    inner = mac(code_bytes, "hsm-authd/rolling/proof/v1", digest.hex())
    return hmac.new(key, inner, "sha256").digest()[:16]


def rotation(code_bytes):
    return mac(code_bytes, "hsm-authd/rolling/rotate/v1")


# Presented codes: the two codes by which a terminal authorizes a device, the appliance's side

def authorization_codes(key, *fields):
    down, up = (digits_of(mac(key, way, *fields), AUTHORIZATION_DIGITS)
                for way in ("hsm-authd/authorization/downlink/v1", "hsm-authd/authorization/uplink/v1"))
    if down == up:
        raise Refused("the two codes are alike: the appliance takes another nonce")
    return down, up

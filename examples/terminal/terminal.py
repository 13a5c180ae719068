#!/usr/bin/env python3
"""What a user's terminal computes about a transaction of hsm-authd: Python 3.9 or later, standard library only.

    terminal.py COMMAND < request.json > answer.json
    terminal.py lines    one request a line ({"do": "code", ...}), one answer a line

The README beside this file has the commands and their fields. Secrets come in the request, never as an argument.
"""
import datetime
import json
import re
import sys

sys.dont_write_bytecode = True  # reading this folder does not change it

import derivations as derive
from derivations import Refused, b64u, from_b64u, from_hex

# Texts that have one form. The ids are 128 bits in Crockford's base32.
FORMS = {
    "digest": re.compile("[0-9a-f]{64}"),
    "credential": re.compile("cred_[0-7][0-9a-hjkmnp-tv-z]{25}"),
    "terminal": re.compile("cred_[0-7][0-9a-hjkmnp-tv-z]{25}"),
    "nonce": re.compile("[0-9a-f]{64}"),
    "issued_at": re.compile("[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}Z"),
    "expires_at": re.compile("[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}Z"),
}


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

    def hex(self, name, length):
        data = from_hex(self.take(name), name)
        if len(data) != length:
            raise Refused(f"{name} is not {length} bytes")
        return data

    def digest(self):
        return self.hex("digest", 32)

    def between(self, name, least, most):
        value = self.take(name, int)
        if not least <= value <= most:
            raise Refused(f"{name} is not {least} to {most}")
        return value

    def text(self, name, or_empty=False):
        """A text that is not empty, in the form that its name has."""
        value = self.take(name)
        if or_empty and not value:
            return value
        if not value or (name in FORMS and not FORMS[name].fullmatch(value)):
            raise Refused(f"{name} is empty or of another form")
        if name.endswith("_at"):
            try:
                datetime.datetime.fromisoformat(value[:-1])
            except ValueError:
                raise Refused(f"{name} is no time") from None
        return value

    def codes(self, least, most):
        """2 to 8 codes of as many digits each, in the rule's order. No two are alike."""
        codes = self.take("codes", list)
        if not 2 <= len(codes) <= 8:
            raise Refused("there are 2 to 8 codes")
        digits = f"[0-9]{{{least},{most}}}"
        if not all(type(one) is str and re.fullmatch(digits, one) and len(one) == len(codes[0]) for one in codes):
            raise Refused(f"a code is {least} to {most} digits, as many as the others")
        if len(set(codes)) != len(codes):
            raise Refused("two codes are alike: the appliance takes another generation")
        return codes


def signed(data):
    """What is the same for everything that is signed; a WebAuthn authenticator signs the digest as its challenge."""
    digest = derive.digest_of(data)
    return {"signing_input": b64u(data), "digest": digest.hex(), "webauthn_challenge": b64u(digest)}


def do_digest(request):
    fields = request.take("fields", dict)
    parent = request.take("parent", required=False)
    if parent is not None:
        fields = {**fields, "parent_hash": derive.parent_hash(parent)}
    return signed(derive.signing_input(fields, request.take("kind", required=False) or derive.TRANSACTION))


def do_decode(request):
    data = from_b64u(request.take("signing_input"))
    kind, fields = derive.decode(data)
    return {"kind": kind, "fields": fields, **signed(data)}


def do_question(request):
    suite, digest = request.take("suite"), request.digest()
    session = derive.session_of(suite, digest)
    return {"question": derive.question(suite, digest), "session_hex": session.hex() if session else None}


def do_code(request):
    suite, key = request.take("suite"), from_hex(request.take("key_hex"), "key_hex")
    if "digest" in request:
        digest = request.digest()
        asked, session = derive.question(suite, digest), derive.session_of(suite, digest)
    else:
        asked, session = request.take("question"), request.take("session_hex", required=False)
        session = None if session is None else from_hex(session, "session_hex")
    counter, steps = (request.take(name, int, required=False) for name in ("counter", "time_steps"))
    pin = request.take("pin", required=False)
    return {"question": asked, "code": derive.code(suite, key, asked, counter, pin, session, steps)}


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
    answer = signed(derive.signing_input(fields))
    if answer["digest"] != claims.get("digest"):
        raise Refused("the digest is not that of the transaction")
    return {"kid": header.get("kid"), "fields": fields, "parent_hash": derive.parent_hash(jws), **answer}


def do_terminal_code(request):
    key, digest, credential = request.hex("key_hex", 32), request.digest(), request.text("credential")
    generation = request.between("generation", 1, (1 << 64) - 1)
    return {"code": derive.terminal_code(key, digest, credential, generation, request.between("digits", 6, 10))}


def do_target(request):
    digits = request.between("digits", 8, 10)
    value, weights = derive.target(request.codes(digits, digits), digits)
    return {"target": value, "weights": weights}


def do_order(request):
    return {"codes": derive.order(request.take("rule"), request.codes(6, 10))}


def do_identity_key(request):
    return {"identity_key_hex": derive.identity_key(request.text("identity_code"), request.hex("salt_hex", 16)).hex()}


def do_temporary_code(request):
    secret, credential = request.hex("secret_hex", 32), request.text("credential")
    epoch = request.between("epoch", 1, (1 << 64) - 1)
    return {"temporary_code": derive.temporary_code(secret, credential, epoch).hex()}


def do_password(request):
    code_bytes, key = request.hex("temporary_code", 16), request.hex("identity_key_hex", 32)
    whose, what = derive.lookup(code_bytes), derive.proof(code_bytes, key, request.digest())
    return {"lookup_hex": whose.hex(), "proof_hex": what.hex(), "password": b64u(whose + what)}


def do_rotation(request):
    return {"proof_hex": derive.rotation(request.hex("temporary_code", 16)).hex()}


def signed_fields(kind, request):
    """A terminal alone may be empty: of an authorization by password."""
    fields = {name: request.text(name, or_empty=name == "terminal") for name in derive.KINDS[kind].split()}
    data = derive.signing_input({name: value for name, value in fields.items() if value}, kind)
    return {"signing_input": b64u(data), "digest": derive.digest_of(data).hex()}


def do_presentation(request):
    return signed_fields(derive.PRESENTATION, request)


def do_decline(request):
    return signed_fields(derive.DECLINE, request)


def do_authorization(request):
    return signed_fields(derive.AUTHORIZATION, request)


def do_authorization_codes(request):
    key = request.hex("key_hex", 32)
    fields = [request.text(name) for name in ("tenant", "account", "credential", "nonce", "expires_at")]
    down, up = derive.authorization_codes(key, *fields)
    return {"downlink_code": down, "uplink_code": up}


COMMANDS = {
    "digest": do_digest, "decode": do_decode, "question": do_question, "code": do_code,
    "attestation": do_attestation,
    "terminal-code": do_terminal_code, "target": do_target, "order": do_order,
    "identity-key": do_identity_key, "temporary-code": do_temporary_code, "password": do_password,
    "rotation": do_rotation,
    "presentation": do_presentation, "decline": do_decline, "authorization": do_authorization,
    "authorization-codes": do_authorization_codes,
}


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

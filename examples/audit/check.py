#!/usr/bin/env python3
"""Checks entries, proofs and checkpoints of hsm-authd's audit log, with nothing of the appliance.

    check.py leaf        ENTRY
    check.py inclusion   ENTRY PROOF CHECKPOINT KEY...
    check.py consistency PROOF CHECKPOINT CHECKPOINT KEY...
    check.py checkpoint  CHECKPOINT KEY...

ENTRY is an item of GET /v1/audit, or a line of `hsm-authd audit export`; PROOF is what GET /v1/audit/proof answers;
CHECKPOINT what GET /v1/audit/checkpoint answers; KEY a PEM of GET /v1/audit/keys. All are files; docs/audit.md has the
formats. Says what holds, with exit code 0; or what does not, in one line, with exit code 1.

Standard library only; openssl checks signatures.
"""

import base64
import hashlib
import json
import os
import subprocess
import sys
import tempfile

TEXTS = ("tenant", "client", "request_id", "credential", "transaction", "detail")


class Refused(Exception):
    """What does not hold."""


def enc(parts):
    """Of each part its length, four bytes with the highest first, and the part."""
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def leaf_hash(entry):
    """SHA-256(0x00 || leaf) of an entry, from what it says."""
    texts = ["hsm-authd/audit/v1", str(entry["seq"]), str(entry["unix_ms"]), entry["event"]]
    texts += [entry.get(name) or "" for name in TEXTS]
    texts.append(",".join(entry["rows"]))
    return hashlib.sha256(b"\0" + enc([text.encode() for text in texts])).digest()


def node_hash(left, right):
    return hashlib.sha256(b"\1" + left + right).digest()


def b64url(text):
    if not isinstance(text, str):
        raise Refused("a hash is no text")
    raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if len(raw) != 32:
        raise Refused("a hash has not 32 bytes")
    return raw


def climb(place, last, proof):
    """Of each hash of a proof: whether it stands on the left (RFC 9162, sections 2.1.3.2 and 2.1.4.2)."""
    for sibling in proof:
        if last == 0:
            raise Refused("the proof is too long")
        left = place & 1 == 1 or place == last
        if left:
            while place & 1 == 0 and place != 0:
                place, last = place >> 1, last >> 1
        place, last = place >> 1, last >> 1
        yield left, sibling
    if last != 0:
        raise Refused("the proof is too short")


def check_entry(entry):
    leaf = leaf_hash(entry)
    if leaf != b64url(entry["leaf_hash"]):
        raise Refused("the entry does not say what its leaf is the hash of")
    return leaf


def check_inclusion(leaf, number, size, proof, root):
    if not 1 <= number <= size:
        raise Refused("the entry is not one of so many")
    for left, sibling in climb(number - 1, size - 1, proof):
        leaf = node_hash(sibling, leaf) if left else node_hash(leaf, sibling)
    if leaf != root:
        raise Refused("the proof does not lead to the root of the checkpoint")


def check_consistency(old_size, old_root, size, root, proof):
    if not 1 <= old_size <= size:
        raise Refused("the older log is the longer one")
    if old_size == size:
        if proof or old_root != root:
            raise Refused("the two checkpoints are of different logs")
        return
    if old_size & (old_size - 1) == 0:
        proof = [old_root] + proof
    if not proof:
        raise Refused("the proof is too short")
    place, last = old_size - 1, size - 1
    while place & 1 == 1:
        place, last = place >> 1, last >> 1
    old = new = proof[0]
    for left, sibling in climb(place, last, proof[1:]):
        if left:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
        else:
            new = node_hash(new, sibling)
    if old != old_root or new != root:
        raise Refused("the proof does not lead to the roots of the checkpoints")


def signed_by(text, signature, pem):
    """Whether openssl finds that this DER signature is of the text, by the key in the file."""
    with tempfile.TemporaryDirectory() as folder:
        files = [os.path.join(folder, name) for name in ("text", "signature")]
        for path, content in zip(files, (text, signature)):
            with open(path, "wb") as file:
                file.write(content)
        command = ["openssl", "dgst", "-sha256", "-verify", pem, "-signature", files[1], files[0]]
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def key_id(pem):
    with open(pem, encoding="ascii") as file:
        lines = [line.strip() for line in file if not line.startswith("-")]
    return hashlib.sha256(base64.b64decode("".join(lines), validate=True)).digest()[:4]


def check_note(path, pems):
    """Size and root of a checkpoint that one of the keys signed."""
    with open(path, encoding="utf-8", newline="") as file:
        note = file.read()
    text, gap, signatures = note.rpartition("\n\n")
    lines = text.split("\n")
    if not gap or not signatures.endswith("\n") or len(lines) < 3:
        raise Refused(f"{path} is no checkpoint")
    text += "\n"
    for line in signatures[:-1].split("\n"):
        dash, name, signature = line.split(" ")
        raw = base64.b64decode(signature, validate=True)
        if dash != "\u2014" or name != lines[0]:
            continue
        for pem in pems:
            if raw[:4] == key_id(pem) and signed_by(text.encode(), raw[4:], pem):
                root = base64.b64decode(lines[2], validate=True)
                return lines[0], int(lines[1]), root
    raise Refused(f"{path} is signed by none of these keys")


def read_json(path):
    with open(path, encoding="utf-8") as file:
        document = json.load(file)
    if not isinstance(document, dict):
        raise Refused(f"{path} is no JSON object")
    return document


def run(arguments):
    match arguments:
        case ["leaf", entry]:
            entry = read_json(entry)
            check_entry(entry)
            return f"entry {entry['seq']} says what its leaf is the hash of"
        case ["inclusion", entry, proof, checkpoint, *pems] if pems:
            entry, proof = read_json(entry), read_json(proof)
            origin, size, root = check_note(checkpoint, pems)
            if (proof["entry"], proof["size"]) != (entry["seq"], size):
                raise Refused("the proof is of another entry, or of another size than the checkpoint's")
            hashes = [b64url(hash) for hash in proof["hashes"]]
            check_inclusion(check_entry(entry), entry["seq"], size, hashes, root)
            return f"entry {entry['seq']} is one of the {size} of {origin}"
        case ["consistency", proof, old, new, *pems] if pems:
            proof = read_json(proof)
            (old_origin, old_size, old_root), (origin, size, root) = check_note(old, pems), check_note(new, pems)
            if old_origin != origin:
                raise Refused("the checkpoints are of two logs")
            if (proof["from"], proof["to"]) != (old_size, size):
                raise Refused("the proof is of other sizes than the checkpoints'")
            hashes = [b64url(hash) for hash in proof["hashes"]]
            check_consistency(old_size, old_root, size, root, hashes)
            return f"the {size} entries of {origin} go on from the first {old_size}"
        case ["checkpoint", checkpoint, *pems] if pems:
            origin, size, _ = check_note(checkpoint, pems)
            return f"{origin} had {size} entries"
    raise Refused("what is to be checked: leaf, inclusion, consistency or checkpoint, and the files for it")


def main():
    try:
        print(run(sys.argv[1:]))
    except Refused as reason:
        sys.exit(f"check.py: {reason}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"check.py: cannot be read: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Writes a sealed ticket to standard output, as docs/ticket.md says: what the crate's tests open.

Nothing here comes from the crate. HPKE (RFC 9180) is spelled out, on X25519, ChaCha20-Poly1305 and Ed25519 of the
package `cryptography`. All keys are fixed.
"""

import hashlib
import hmac
import struct
import sys

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

PIECE = 4096
PAGE = 4096


def extract(salt, key):
    return hmac.digest(salt or bytes(32), key, "sha256")


def expand(key, info, length):
    output, block = b"", b""
    for number in range(1, -(-length // 32) + 1):
        block = hmac.digest(key, block + info + bytes([number]), "sha256")
        output += block
    return output[:length]


def labeled_extract(suite, salt, label, key):
    return extract(salt, b"HPKE-v1" + suite + label + key)


def labeled_expand(suite, key, label, info, length):
    return expand(key, struct.pack(">H", length) + b"HPKE-v1" + suite + label + info, length)


KEM = b"KEM" + struct.pack(">H", 0x20)
HPKE = b"HPKE" + struct.pack(">HHH", 0x20, 1, 3)


def derived(key):
    """The private key that is derived from `key` (RFC 9180, 7.1.3)."""
    pseudorandom = labeled_extract(KEM, b"", b"dkp_prk", key)
    return X25519PrivateKey.from_private_bytes(labeled_expand(KEM, pseudorandom, b"sk", b"", 32))


def visor_keys(processor, tpm):
    """A visor's private keys, from random bytes of its processor's and its TPM's."""
    seeds = expand(extract(b"visor keys 1", processor + tpm), b"", 64)
    return derived(seeds[:32]), Ed25519PrivateKey.from_private_bytes(seeds[32:])


def sender(ephemeral, recipient, info):
    """A function that seals one message after the other, in base mode (RFC 9180, 4.1 and 5.1)."""
    encapsulated = ephemeral.public_key().public_bytes_raw()
    shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(recipient))
    shared = labeled_extract(KEM, b"", b"eae_prk", shared)
    shared = labeled_expand(KEM, shared, b"shared_secret", encapsulated + recipient, 32)
    context = b"\0" + labeled_extract(HPKE, b"", b"psk_id_hash", b"")
    context += labeled_extract(HPKE, b"", b"info_hash", info)
    secret = labeled_extract(HPKE, shared, b"secret", b"")
    key = ChaCha20Poly1305(labeled_expand(HPKE, secret, b"key", context, 32))
    base = labeled_expand(HPKE, secret, b"base_nonce", context, 12)
    number = 0

    def seal(message, bound):
        nonlocal number
        nonce = bytes(a ^ b for a, b in zip(base, number.to_bytes(12, "big")))
        number += 1
        return key.encrypt(nonce, message, bound)

    return seal


def ticket_in_clear(pages):
    """1 GiB of private memory, and `pages` pages of 0x44 from the second on."""
    length = 128 + 24 + 40 * pages + 32
    header = struct.pack("<8sII16s32sII32sIIIIQ", b"VISRTKT1", length, 1, b"\x11" * 16, b"\x22" * 32,
                         0, 0, bytes(32), 1, pages, 0, 0, 0)
    body = header + struct.pack("<QQII", 0, 1 << 30, 1, 0)
    digest = hashlib.sha256(b"\x44" * PAGE).digest()
    for page in range(1, pages + 1):
        body += struct.pack("<Q", page * PAGE) + digest
    return body + hashlib.sha256(body).digest()


def sealed_ticket():
    tickets, statements = visor_keys(bytes(range(64)), bytes(range(64, 96)))
    recipient = tickets.public_key().public_bytes_raw()
    public = recipient + statements.public_key().public_bytes_raw()
    tenant = Ed25519PrivateKey.from_private_bytes(b"\x08" * 32)
    # For a visor that TXT has not launched, serial 3, until the age of 6.
    policy = struct.pack("<8sIIQQ32s", b"VISRPOL1", 1, 0, 3, 6, tenant.public_key().public_bytes_raw())
    content = policy + ticket_in_clear(110)
    length = len(content) + 64
    whole = 88 + length + -(-length // PIECE) * 16
    info = struct.pack("<8sIIII", b"VISRTKS1", whole, 1, 1, 0) + hashlib.sha256(public).digest()
    ephemeral = derived(b"\x09" * 32)
    header = info + ephemeral.public_key().public_bytes_raw()
    content += tenant.sign(b"visor ticket 1\0\0" + hashlib.sha256(header + content).digest())
    seal = sender(ephemeral, recipient, info)
    sealed = header
    for start in range(0, length, PIECE):
        is_last = start + PIECE >= length
        sealed += seal(content[start:start + PIECE], b"\x01" if is_last else b"\0")
    assert len(sealed) == whole
    return sealed


sys.stdout.buffer.write(sealed_ticket())

"""AEGIS-128L (RFC 10032, section 3), decryption only, in plain Python: slow, and its time depends on secrets.

A state is eight blocks of the AES, each a number with the first byte in the lowest place.
"""

import hmac
import struct


def doubled(byte):
    """Times x in the field of the AES (FIPS 197, section 4.2)."""
    return byte << 1 & 0xFF ^ (0x1B if byte & 0x80 else 0)


def s_box():
    """The S-box (FIPS 197, section 5.1.1), by powers of the generator x + 1: the inverse of the n-th is the (255 - n)-th."""
    powers = [1]
    for _ in range(254):
        powers.append(powers[-1] ^ doubled(powers[-1]))
    box = []
    for byte in range(256):
        inverse = powers[-powers.index(byte) % 255] if byte else 0
        twice = inverse << 8 | inverse
        rotated = [twice >> 8 - turn & 0xFF for turn in range(5)]
        box.append(rotated[0] ^ rotated[1] ^ rotated[2] ^ rotated[3] ^ rotated[4] ^ 0x63)
    return box


def tables():
    """For each place in a block, what each byte there adds to a round's result: SubBytes, ShiftRows, MixColumns."""
    box, result = s_box(), []
    for place in range(16):
        row = place % 4
        column = (place // 4 - row) % 4
        contributions = []
        for byte in range(256):
            once = box[byte]
            twice = doubled(once)
            factors = [twice, once, once, twice ^ once]
            bits = sum(factors[(target - row) % 4] << 8 * target for target in range(4))
            contributions.append(bits << 32 * column)
        result.append(contributions)
    return result


TABLES = tables()
C0 = int.from_bytes(bytes.fromhex("000101020305080d1522375990e97962"), "little")
C1 = int.from_bytes(bytes.fromhex("db3d18556dc22ff12011314273b528dd"), "little")


def aes_round(block, key):
    for table, byte in zip(TABLES, block.to_bytes(16, "little")):
        key ^= table[byte]
    return key


def updated(s, m0, m1):
    return (
        aes_round(s[7], s[0] ^ m0), aes_round(s[0], s[1]), aes_round(s[1], s[2]), aes_round(s[2], s[3]),
        aes_round(s[3], s[4] ^ m1), aes_round(s[4], s[5]), aes_round(s[5], s[6]), aes_round(s[6], s[7]),
    )


def pairs(data):
    """Pieces of 32 bytes, the last one filled up with zeros, as two numbers each, and how long each is."""
    for at in range(0, len(data), 32):
        piece = data[at:at + 32]
        padded = piece.ljust(32, b"\0")
        yield int.from_bytes(padded[:16], "little"), int.from_bytes(padded[16:], "little"), len(piece)


def opened(key, nonce, bound, sealed, tag):
    """The plaintext of `sealed`, or None if it, or `bound`, is not what `tag` was made for."""
    k, n = int.from_bytes(key, "little"), int.from_bytes(nonce, "little")
    s = (k ^ n, C1, C0, C1, k ^ n, k ^ C0, k ^ C1, k ^ C0)
    for _ in range(10):
        s = updated(s, n, k)
    for m0, m1, _ in pairs(bound):
        s = updated(s, m0, m1)
    clear = b""
    for m0, m1, length in pairs(sealed):
        m0 ^= s[6] ^ s[1] ^ s[2] & s[3]
        m1 ^= s[2] ^ s[5] ^ s[6] & s[7]
        piece = ((m1 << 128) | m0).to_bytes(32, "little")[:length]
        clear += piece
        padded = int.from_bytes(piece, "little")
        s = updated(s, padded & (1 << 128) - 1, padded >> 128)
    lengths = struct.pack("<QQ", 8 * len(bound), 8 * len(sealed))
    last = s[2] ^ int.from_bytes(lengths, "little")
    for _ in range(7):
        s = updated(s, last, last)
    expected = (s[0] ^ s[1] ^ s[2] ^ s[3] ^ s[4] ^ s[5] ^ s[6]).to_bytes(16, "little")
    return clear if hmac.compare_digest(expected, tag) else None


# RFC 10032, appendix A.2: vectors 1 to 4, of one key and one nonce: associated data, ciphertext, tag, plaintext.
VECTORS = [
    ("", "c1c0e58bd913006feba00f4b3cc3594e", "abe0ece80c24868a226a35d16bdae37a", bytes(16)),
    ("", "", "c2b879a67def9d74e6c14f708bbcc9b4", b""),
    ("0001020304050607", "79d94593d8c2119d7e8fd9b8fc77845c5c077a05b2528b6ac54b563aed8efe84",
     "cc6f3372f6aa1bb82388d695c3962d9a", bytes(range(32))),
    ("0001020304050607", "79d94593d8c2119d7e8fd9b8fc77", "5c04b3dba849b2701effbe32c7f0fab7", bytes(range(14))),
]


def self_test():
    """Fails if this is not AEGIS-128L."""
    key, nonce = bytes.fromhex("1001" + 28 * "0"), bytes.fromhex("100002" + 26 * "0")
    for bound, sealed, tag, clear in VECTORS:
        bound, sealed, tag = bytes.fromhex(bound), bytes.fromhex(sealed), bytes.fromhex(tag)
        if opened(key, nonce, bound, sealed, tag) != clear:
            raise AssertionError("not AEGIS-128L")
        wrong = bytes([tag[0] ^ 1]) + tag[1:]
        if opened(key, nonce, bound, sealed, wrong) is not None:
            raise AssertionError("a wrong tag is taken")

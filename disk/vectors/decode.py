#!/usr/bin/env python3
"""Opens a sealed disk, as docs/disk-format.md says, and checks all of it. What the crate `disk` is held against.

    decode.py KEY IMAGE [PLAINTEXT]

KEY is the wrapping key, in hexadecimal: this is for tests, as other users of the machine see the words of a command.
Says what the disk is, as JSON, and writes what a VM would read to PLAINTEXT. Exit code 1: this is no such disk, or
something in it is not what was written.

Nothing here comes from the crate.
"""

import hmac
import json
import struct
import sys

import aegis

BLOCK = 4096
FAN = 128
NEVER = bytes(32)
DATA, NODES, LOG, ANCHORS = 1, 2, 3, 4
# What frames are about, where what they speak of is, and which of that may be in which frame.
CHANGES, NODE_CHANGES, CHECKPOINT = 0, 1, 2
IN_PLACE, LOGGED, FORGOTTEN = 0, 1, 2
MAY = {CHANGES: (IN_PLACE, LOGGED, FORGOTTEN), NODE_CHANGES: (LOGGED,), CHECKPOINT: (IN_PLACE,)}


class Refused(Exception):
    """This is no such disk, or something in it is not what was written."""


def derived(salt, key, purpose):
    """HKDF-SHA256 (RFC 5869); 16 bytes are less than one block of it."""
    extracted = hmac.digest(salt, key, "sha256")
    return hmac.digest(extracted, b"visor disk 1" + bytes([purpose, 1]), "sha256")[:16]


def check(holds, what):
    if not holds:
        raise Refused(what)


class Disk:
    """A sealed disk of which the wrapping key is known."""

    def __init__(self, key, image):
        check(len(image) % BLOCK == 0 and len(image) >= 6 * BLOCK, "size")
        self.image = image
        self.total = len(image) // BLOCK
        self.read_header(key)
        self.lay_out()
        self.read_anchor()
        self.replay()

    def block(self, number):
        return self.image[number * BLOCK:(number + 1) * BLOCK]

    def read_header(self, key):
        """The newer of the two headers that are right."""
        found = []
        for number in (self.total - 2, self.total - 1):
            block = self.block(number)
            bound, body, tag = block[:48], block[48:4080], block[4080:]
            magic, version, zero = struct.unpack("<8sII", bound[:16])
            clear = aegis.opened(derived(bound[16:], key, 0), bytes(16), bound, body, tag)
            if clear is None:
                continue
            check((magic, version, zero) == (b"VISORDSK", 1, 0), "another format")
            check(not any(clear[80:]), "header: not zero where it has to be")
            found.append(struct.unpack("<16s32sQQQQ", clear[:80]))
        check(found, "no header is right for this key")
        newest = max(found, key=lambda body: body[5])
        self.id, volume, self.capacity, self.log_blocks, self.entries, self.sequence = newest
        self.keys = {purpose: derived(self.id, volume, purpose) for purpose in (DATA, NODES, LOG, ANCHORS)}

    def lay_out(self):
        check(1 <= self.capacity <= 1 << 32 and 64 <= self.log_blocks <= 1 << 31, "capacity, or length of the log")
        check(1 <= self.entries <= 1 << 16, "entries")
        self.base, count, at = [0], self.capacity, self.capacity
        while count > 1 or len(self.base) == 1:
            count = -(-count // FAN)
            self.base.append(at)
            at += count
        self.top = len(self.base) - 1
        self.log = at
        check(at + self.log_blocks + 4 == self.total, "size does not fit the header")

    def span(self, level):
        """How many blocks of data are below one node."""
        return FAN ** level

    def count(self, level):
        return -(-self.capacity // self.span(level))

    def unwrapped(self, purpose, block, bound):
        """A block that has its nonce before and its tag after what is encrypted."""
        return aegis.opened(self.keys[purpose], block[:16], bound, block[16:4080], block[4080:])

    def read_anchor(self):
        found = []
        for slot in (0, 1):
            block = self.block(self.total - 4 + slot)
            clear = self.unwrapped(ANCHORS, block, struct.pack("<QQ", self.capacity, slot))
            if clear is None:
                continue
            generation, moment, root = struct.unpack("<QQ32s", clear[:48])
            if max(generation, moment) >> 63:
                continue
            check(generation % 2 == slot and not any(clear[48:]), "anchor")
            found.append((generation, moment, root, block[4080:]))
        check(found, "no anchor is right")
        self.generation, self.moment, self.root, self.chain = max(found)

    def sealed(self, level, index, record, place):
        """What is sealed at a place, or None."""
        bound = struct.pack("<QB7x", index, level)
        key = self.keys[NODES if level else DATA]
        return aegis.opened(key, record[:16], bound, self.block(place), record[16:])

    def frames(self):
        """Frames as they follow each other, up to a checkpoint: kind, moment, tag, and entries with their places."""
        at, chain, moment = 0, self.chain, self.moment
        for number in range(self.log_blocks):
            if at >= self.log_blocks:
                return
            block = self.block(self.log + at)
            clear = self.unwrapped(LOG, block, struct.pack("<QQ16s", self.generation, number, chain))
            if clear is None:
                return
            said, kind, zero, count = struct.unpack("<QB3sI", clear[:16])
            chain, moment, at = block[4080:], moment + 1, at + 1
            check(said == moment and kind in MAY and not any(zero) and 1 <= count <= 101, "frame")
            check(not any(clear[16 + 40 * count:]), "frame: not zero where it has to be")
            entries = []
            for start in range(16, 16 + 40 * count, 40):
                level, index, what, record = self.entry(kind, clear[start:start + 40])
                place = self.base[level] + index
                if what == LOGGED:
                    place, at = self.log + at, at + 1
                entries.append((level, index, what, record, place))
            payload = sum(what == LOGGED for _, _, what, _, _ in entries)
            check(payload <= 31 and at <= self.log_blocks, "a frame is too long")
            check(kind != CHECKPOINT or [entry[:3] for entry in entries] == [(self.top, 0, IN_PLACE)], "checkpoint")
            yield kind, moment, chain, entries
            if kind == CHECKPOINT:
                return

    def entry(self, kind, entry):
        index, (level, what, zero), record = int.from_bytes(entry[:5], "little"), entry[5:8], entry[8:]
        check(zero == 0 and (level == 0) == (kind == CHANGES) and what in MAY[kind], "entry")
        check(level <= self.top and index < self.count(level), "an entry of what is not there")
        if what == FORGOTTEN:
            count, zero = struct.unpack("<Q24s", record)
            check(not any(zero) and 0 < count <= self.capacity - index, "what is forgotten")
        check(record != NEVER or kind == CHECKPOINT, "a record of nothing")
        return level, index, what, record

    def replay(self):
        """What of the log counts."""
        self.changed, self.moved = {}, {}
        frames = list(self.frames())
        if frames and frames[-1][0] == CHECKPOINT:
            self.root = frames[-1][3][0][3]
            for _, _, _, entries in frames:
                for level, index, what, _, place in entries:
                    if what == LOGGED:
                        self.moved[level, index] = place
            _, self.moment, self.chain, _ = frames[-1]
            return
        for kind, moment, tag, entries in frames:
            if kind != CHANGES or not self.whole(entries):
                break
            self.moment, self.chain = moment, tag
            for _, index, what, record, place in entries:
                if what == FORGOTTEN:
                    count = int.from_bytes(record[:8], "little")
                    self.changed.update(dict.fromkeys(range(index, index + count), NEVER))
                else:
                    self.changed[index], self.moved[0, index] = record, place

    def whole(self, entries):
        """Whether all that a frame speaks of is there: power may have failed before it was."""
        return all(
            what == FORGOTTEN or self.sealed(level, index, record, place) is not None
            for level, index, what, record, place in entries
        )

    def read(self, level, index, record):
        """A block or a node; None where nothing was written."""
        if record == NEVER:
            return None
        place = self.moved.get((level, index), self.base[level] + index)
        clear = self.sealed(level, index, record, place)
        check(clear is not None, f"block {index}, level {level} is not what was written")
        return clear

    def records(self, level, index, record):
        """Numbers and records of the blocks below a node that were written."""
        node = self.read(level, index, record)
        if node is None:
            return
        for child in range(FAN):
            below, number = node[32 * child:32 * child + 32], index * FAN + child
            if below == NEVER:
                continue
            check(number < self.count(level - 1), "a record of what is not there")
            if level == 1:
                yield number, below
            else:
                yield from self.records(level - 1, number, below)

    def blocks(self):
        """All blocks that a VM would not read as zeros."""
        records = dict(self.records(self.top, 0, self.root))
        records.update(self.changed)
        for index, record in sorted(records.items()):
            clear = self.read(0, index, record)
            if clear is not None:
                yield index, clear


def main(key, image, plaintext=None):
    aegis.self_test()
    with open(image, "rb") as file:
        disk = Disk(bytes.fromhex(key), file.read())
    blocks = dict(disk.blocks())
    if plaintext is not None:
        with open(plaintext, "wb") as file:
            for index, clear in blocks.items():
                file.seek(index * BLOCK)
                file.write(clear)
            file.truncate(disk.capacity * BLOCK)
    said = {"disk": disk.id.hex(), "capacity": disk.capacity, "moment": disk.moment, "tag": disk.chain.hex(),
            "written": len(blocks)}
    print(json.dumps(said))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Refused as why:
        sys.exit(f"decode.py: {why}")

"""Reads and changes the words of an image that the classes of differences are about."""

import collections
import dataclasses

KEEP_OFFSET = 0x00FFFFFFFFFFFE00
COMPRESSED = 1 << 62
COPIED = 1 << 63
QEMU_MAX_FILE_BYTES = (1 << 63) - (1 << 30)
BITMAPS = 0x23852875  # the type of the header extension


@dataclasses.dataclass
class WithoutDisputed:
    words: "ImageWords"
    classes: set


class ImageWords:
    def __init__(self, data):
        self.data = data
        self.length = len(data)
        self.cluster_bits = self.number(20, 4)
        if not 9 <= self.cluster_bits <= 30:
            self.cluster_bits = 16
        self.cluster_size = 1 << self.cluster_bits
        self.clusters = -(-self.length // self.cluster_size)
        self.version = self.number(4, 4)
        self.refcount_bits = 1 << min(self.number(96, 4), 6) if self.version >= 3 else 16
        self.l2_entry_bytes = 16 if self.version >= 3 and self.number(72, 8) & 16 else 8

    def number(self, offset, size):
        return int.from_bytes(self.data[offset:offset + size].ljust(size, b"\0"), "big")

    def word(self, offset):
        return self.number(offset, 8)

    def clusters_of(self, offset, size):
        return range(offset // self.cluster_size, (offset + size - 1) // self.cluster_size + 1)

    def region_of(self, entry, is_l1):
        """What an entry of an L1 or L2 table refers to."""
        if is_l1 or not entry & COMPRESSED:
            return entry & KEEP_OFFSET, self.cluster_size
        bits = 70 - self.cluster_bits
        offset = entry & ((1 << bits) - 1)
        sectors = (entry & ~(COMPRESSED | COPIED)) >> bits
        return offset, (sectors + 1) * 512 - offset % 512

    def entries_of(self, finding):
        """The places of the entries that a finding is about."""
        step = self.l2_entry_bytes if finding["structure"] == "l2-table" else 8
        return range(finding["host-offset"], finding["host-offset"] + finding["length"], step)

    def regions_of(self, findings):
        """(place, offset, size, how often it is referred to) for each entry that the findings are about."""
        for finding in findings:
            places = self.entries_of(finding)
            for place in places:
                offset, size = self.region_of(self.word(place), finding["structure"] != "l2-table")
                yield place, offset, size, finding["count"] // len(places)

    def is_outside(self, offset, size):
        """As both tools see it; only qemu-img also believes what begins behind the end and ends in the next cluster."""
        return offset >= self.length or offset + size - self.length >= self.cluster_size

    # --- Tables ---

    def snapshot_entries(self):
        """(place in the snapshot table, offset of the L1 table) of each snapshot."""
        end = self.number(64, 8)
        for _ in range(min(self.number(60, 4), 65536)):
            at = (end + 7) & ~7
            if at + 40 > self.length:
                return
            yield at, self.word(at)
            end = self.end_of_snapshot(at)

    def end_of_snapshot(self, at):
        return at + 40 + self.number(at + 36, 4) + self.number(at + 12, 2) + self.number(at + 14, 2)

    def l1_tables(self):
        """(offset, entries) of the active one and of those of the snapshots."""
        yield self.number(40, 8), self.number(36, 4)
        for at, offset in self.snapshot_entries():
            yield offset, self.number(at + 8, 4)

    def snapshot_table(self):
        begin = end = self.number(64, 8)
        for _ in range(min(self.number(60, 4), 65536)):
            end = self.end_of_snapshot((end + 7) & ~7)
        return begin, end - begin

    def bitmaps_extension(self):
        """(number of bitmaps, size of the directory, its offset), or nothing."""
        at = self.number(100, 4) if self.version >= 3 else 72
        while at + 32 <= min(self.length, self.cluster_size) and (kind := self.number(at, 4)):
            if kind == BITMAPS and self.number(88, 8) & 1:
                return self.number(at + 8, 4), self.number(at + 16, 8), self.number(at + 24, 8)
            at += 8 + (self.number(at + 4, 4) + 7) // 8 * 8
        return None

    def bitmap_structures(self):
        """(offset, size) of the directory, the tables and the data clusters of all bitmaps."""
        if not (extension := self.bitmaps_extension()):
            return
        bitmaps, size, at = extension
        yield at, size
        for _ in range(min(bitmaps, 1000)):
            table, entries = self.number(at, 8), self.number(at + 8, 4)
            yield table, 8 * entries
            for place in range(table, min(table + 8 * entries, self.length), 8):
                if offset := self.word(place) & KEEP_OFFSET:
                    yield offset, self.cluster_size
            at += 24 + self.number(at + 20, 4) + self.number(at + 18, 2)
            at = (at + 7) & ~7

    def structures(self):
        """(our code if it is wrong, offset, size) of what the header, the snapshot table and the bitmap directory
        name."""
        code = "l1-offset-invalid"
        for offset, entries in self.l1_tables():
            yield code, offset, 8 * entries
            code = "snapshot-l1-invalid"
        yield "snapshot-table-invalid", *self.snapshot_table()
        yield "refcount-table-invalid", *self.refcount_table()
        for offset, size in self.bitmap_structures():
            yield "bitmap-table-invalid", offset, size

    def refcount_table(self):
        return self.number(48, 8), self.number(56, 4) * self.cluster_size

    def block_of(self, cluster):
        """The offset of the refcount block for a cluster, as qemu-img takes it from the table; 0 if there is none."""
        begin, size = self.refcount_table()
        index = cluster // (self.cluster_size * 8 // self.refcount_bits)
        return self.word(begin + 8 * index) & ~0x1FF if 8 * index < size else 0

    def refcount(self, cluster):
        """As the refcount block says; 0 if there is none in the file."""
        block, bit = self.block_of(cluster), cluster * self.refcount_bits % (self.cluster_size * 8)
        if block == 0:
            return 0
        if self.refcount_bits >= 8:
            return self.number(block + bit // 8, self.refcount_bits // 8)
        return self.number(block + bit // 8, 1) >> bit % 8 & ((1 << self.refcount_bits) - 1)

    def refcount_is_unreadable(self, cluster):
        """A block behind the end reads as zeros, unless it is where no file can end."""
        block = self.block_of(cluster)
        return block % self.cluster_size != 0 or block + self.cluster_size > QEMU_MAX_FILE_BYTES

    def block_offsets(self):
        """How many entries of the refcount table lead to each offset: those without reserved bits, those with."""
        plain, reserved = collections.Counter(), collections.Counter()
        begin, size = self.refcount_table()
        for place in range(begin, min(begin + size, self.length), 8):
            if word := self.word(place):
                (reserved if word & 0x1FF else plain)[word & ~0x1FF] += 1
        return plain, reserved

    # --- Disputed pointers ---

    def take_out_disputed(self, ours):
        """A copy without the pointers that qemu-img follows and ours does not, and the classes that they are of;
        None if there are none."""
        data = bytearray(self.data)
        classes = set()

        def set_number(place, value, size, name):
            data[place:place + size] = value.to_bytes(size, "big")
            if data != self.data:
                classes.add(name)

        self.take_out_tables(ours, set_number)
        self.take_out_header_fields(ours, set_number)
        return WithoutDisputed(ImageWords(bytes(data)), classes) if classes else None

    def take_out_tables(self, ours, set_number):
        lost = {finding["host-offset"] & -self.cluster_size for finding in ours.of("lost-l2-table")}
        for offset, entries in self.l1_tables() if lost else ():
            for place in range(offset, min(offset + 8 * entries, self.length - 7), 8):
                if self.word(place) & KEEP_OFFSET & -self.cluster_size in lost:
                    set_number(place, 0, 8, "no-table")
        for finding in ours.of("l2-table-misaligned", "l1-entry-without-offset", "l1-entry-reserved-bits"):
            for place in self.entries_of(finding):
                if finding["code"] == "l2-table-misaligned":
                    set_number(place, 0, 8, "misaligned-table-pointer")
                elif self.word(place) & KEEP_OFFSET == 0:
                    set_number(place, 0, 8, "header-as-table")
        for finding in ours.of("snapshot-l1-invalid"):
            for entry, offset in self.snapshot_entries():
                if offset == 0 and self.number(entry + 8, 4):
                    set_number(entry + 8, 0, 4, "header-as-table")

    def take_out_header_fields(self, ours, set_number):
        if ours.of("l1-offset-invalid") and self.number(40, 8) == 0:
            behind_end = (self.clusters + 64) * self.cluster_size
            set_number(40, behind_end, 8, "header-as-table")
        if ours.of("refcount-table-invalid") and self.number(48, 8) == 0:
            set_number(56, 0, 4, "header-as-table")
        if ours.of("snapshot-table-invalid") and self.number(60, 4):
            set_number(60, 0, 4, "snapshot-table")
            set_number(64, 0, 8, "snapshot-table")

#!/usr/bin/env python3
"""Turns a listing of a qcow2 image's metadata into qtxt on standard output: make_seed.py LISTING

The listing is plain text made by another project's dump tool: the header's bytes on the second line, then
the L1 table, the refcount table and one L2 table, each row of eight bytes the next entry, rows of zeros
included. It says where the refcount block is, not what it holds, and holds no guest data; so the refcounts
are counted from the layout, guest data reads as zeros, and the file ends after the last cluster in use.
"""

import re
import struct
import sys

OFFSET_MASK = 0x00FFFFFFFFFFFE00  # Bits 9-55 of an L1 or standard L2 entry.
COMPRESSED = 1 << 62
HEADER = struct.Struct(">4sIQIIQIIQQIIQ")  # The 72 bytes of version 2.
ROW = re.compile(r"(?:[0-9A-Fa-f]{2} ?){8}")


class ListingError(ValueError):
    pass


class Listing:
    """The listing's tables as integers, with the offsets that it gives for them."""

    def __init__(self, text):
        lines = [line.strip() for line in text.splitlines()]
        try:
            self.name = lines[0].rpartition("\\")[2]
            self.header = bytes.fromhex(lines[1])
        except (IndexError, ValueError):
            raise ListingError("the second line is not the header's bytes") from None
        if len(self.header) != HEADER.size:
            raise ListingError(f"the header has {len(self.header)} bytes, not {HEADER.size}")
        self.l1_offset, self.l1 = _table(lines, "L1 Offset=")
        self.refcount_table_offset, self.refcount_table = _table(lines, "refcount Offset=")
        self.refcount_block_offset, _ = _table(lines, "refblock Offset=")
        self.l2_offset, self.l2 = _table(lines, "Level 2 Offset:")


def _table(lines, heading):
    """Returns the offset after `heading`, and the rows of eight bytes up to the next heading of a table."""
    starts = [i for i, line in enumerate(lines) if line.startswith(heading)]
    if len(starts) != 1:
        raise ListingError(f"{len(starts)} lines start with '{heading}', not 1")
    offset = int(lines[starts[0]][len(heading):])
    rows = []
    for line in lines[starts[0] + 1:]:
        if "Offset" in line:
            break
        if ROW.fullmatch(line):
            rows.append(int.from_bytes(bytes.fromhex(line), "big"))
    return offset, rows


def make_qtxt(listing):
    (magic, version, _, _, cluster_bits, _, _, l1_size, l1_offset, refcount_table_offset,
     refcount_table_clusters, snapshots, _) = HEADER.unpack(listing.header)
    cluster = 1 << cluster_bits
    _require(magic == b"QFI\xfb" and version == 2, "not a version 2 qcow2 header")
    _require(snapshots == 0, "the image has snapshots, which the listing leaves out")
    _require(listing.l1_offset == l1_offset, "the L1 table is not where the header says")
    _require(listing.refcount_table_offset == refcount_table_offset,
             "the refcount table is not where the header says")
    _require(len(listing.l1) == l1_size == 1 and listing.l1[0] & OFFSET_MASK == listing.l2_offset,
             "the L1 table is not one entry that points to the L2 table")
    _require(listing.refcount_table[:1] == [listing.refcount_block_offset]
             and not any(listing.refcount_table[1:]),
             "the refcount table is not one entry that points to the refcount block")
    _require(len(listing.l2) == cluster // 8,
             f"the L2 table has {len(listing.l2)} rows, a cluster has {cluster // 8} entries")
    _require(not any(entry & COMPRESSED for entry in listing.l2),
             "compressed clusters, whose bytes the listing leaves out")

    tables = [0, l1_offset, listing.refcount_block_offset, listing.l2_offset]
    tables += [refcount_table_offset + i * cluster for i in range(refcount_table_clusters)]
    data = [entry & OFFSET_MASK for entry in listing.l2 if entry & OFFSET_MASK]
    refcounts = {}
    for offset in tables + data:
        _require(offset % cluster == 0, f"offset {offset:#x} is not cluster aligned")
        refcounts[offset // cluster] = refcounts.get(offset // cluster, 0) + 1
    clusters = max(refcounts) + 1
    _require(clusters <= cluster // 2, "more clusters than one refcount block counts")

    yield f"# {listing.name}: the metadata of a version 2 image, made from its listing by make_seed.py."
    yield f"# {len(tables)} clusters of metadata, {len(data)} of guest data (zeros)."
    yield f"size {clusters * cluster:#x}"
    yield ""
    yield "# Header"
    for start, end, field in HEADER_LINES:
        yield f"{start:#x}: {listing.header[start:end].hex(' ')}  # {field}"
    yield ""
    yield "# L1 table"
    yield _entry(l1_offset, listing.l1[0])
    yield ""
    yield "# Refcount table"
    yield _entry(refcount_table_offset, listing.refcount_table[0])
    yield ""
    yield "# Refcount block: 16 bits a cluster, counted from the layout"
    yield from _refcount_lines(listing.refcount_block_offset, [refcounts.get(i, 0) for i in range(clusters)])
    yield ""
    yield "# L2 table"
    for index, entry in enumerate(listing.l2):
        if entry:
            yield _entry(listing.l2_offset + 8 * index, entry) + f"  # {index}: guest {index * cluster:#x}"


HEADER_LINES = [
    (0, 8, "magic, version"),
    (8, 20, "no backing file"),
    (20, 24, "cluster_bits"),
    (24, 32, "virtual size"),
    (32, 36, "not encrypted"),
    (36, 48, "L1 entries, L1 offset"),
    (48, 60, "refcount table offset, clusters"),
    (60, 72, "no snapshots"),
]


def _entry(offset, value):
    return f"{offset:#x}: {value.to_bytes(8, 'big').hex(' ')}"


def _refcount_lines(base, refcounts):
    """Yields one line for each run of equal refcounts that are not zero."""
    first = 0
    while first < len(refcounts):
        end = first
        while end < len(refcounts) and refcounts[end] == refcounts[first]:
            end += 1
        if refcounts[first]:
            yield f"{base + 2 * first:#x}: {refcounts[first]:04x} * {end - first}"
        first = end


def _require(condition, message):
    if not condition:
        raise ListingError(message)


def main():
    if len(sys.argv) != 2:
        print("usage: make_seed.py LISTING", file=sys.stderr)
        return 2
    with open(sys.argv[1], encoding="utf-8") as file:
        text = file.read()
    try:
        lines = list(make_qtxt(Listing(text)))
    except ListingError as error:
        print(f"{sys.argv[1]}: {error}", file=sys.stderr)
        return 1
    print(*lines, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

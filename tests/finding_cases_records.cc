// Cases for the snapshot table and for bitmaps.
#include <string>
#include <utility>
#include <vector>

#include "common/header_extension.h"
#include "common/limits.h"
#include "common/snapshot_entry.h"
#include "tests/damage.h"
#include "tests/finding_cases.h"

namespace qcow2check::testing {
namespace {

// --- Snapshots ---

// The fields of a snapshot table entry, from its first byte.
constexpr uint64_t kL1Size = 8;

BuiltImage WithSnapshots(std::vector<TakeSnapshot> snapshots) {
  ImageOptions options = SmallOptions();
  for (TakeSnapshot& snapshot : snapshots) options.steps.push_back(std::move(snapshot));
  return BuildImage(options);
}

BuiltImage WithSnapshot() { return WithSnapshots({TakeSnapshot{}}); }

// The file ends with the snapshot table, whose last 7 bytes are padding.
BuiltImage EndingWithTable(uint64_t missing) {
  ImageOptions options = SmallOptions();
  options.steps.push_back(TakeSnapshot{.id = "1"});
  options.end_at_last_byte = true;
  BuiltImage image = BuildImage(options);
  Truncate(image.bytes, image.snapshot_table.offset + image.snapshot_table.length - missing);
  return image;
}

BuiltImage WithSnapshotCount(uint64_t count) {
  BuiltImage image = WithSnapshot();
  PokeField(image, "nb_snapshots", count);
  return image;
}

BuiltImage WithExtraBytes(uint32_t bytes, int version = 3) {
  ImageOptions options = SmallOptions();
  options.version = version;
  options.steps.push_back(TakeSnapshot{});
  options.snapshot_extra_bytes = bytes;
  return BuildImage(options);
}

BuiltImage WithSnapshotL1(uint64_t offset, uint64_t entries) {
  BuiltImage image = WithSnapshot();
  Poke64(image.bytes, image.snapshots[0].entry_offset, offset);
  Poke32(image.bytes, image.snapshots[0].entry_offset + kL1Size, static_cast<uint32_t>(entries));
  return image;
}

uint64_t SnapshotL1Offset() { return WithSnapshot().snapshots[0].l1.offset; }

// A disk that fills a part of what its only L1 entry maps, and VM state, which starts at the next.
BuiltImage WithVmState(uint64_t l1_entries) {
  BuiltImage image = BuildImage({.cluster_bits = 12,
                                 .virtual_size = 1 << 20,
                                 .steps = {WriteClusters{}, TakeSnapshot{.vm_state_bytes = 4096}}});
  Poke32(image.bytes, image.snapshots[0].entry_offset + kL1Size, static_cast<uint32_t>(l1_entries));
  return image;
}

Fired FiresAtTable(const BuiltImage& image) { return FiresAt(image, image.snapshot_table.offset); }
Fired FiresAtSnapshot(const BuiltImage& image, size_t index) {
  return FiresAt(image, image.snapshots[index].entry_offset);
}

constexpr FindingCase kSnapshotCases[] = {
    {FindingCode::kSnapshotTableInvalid, "misaligned / aligned",
     [] {
       BuiltImage image = WithSnapshot();
       PokeField(image, "snapshots_offset", image.snapshot_table.offset + 512);
       return FiresAt(image, image.snapshot_table.offset + 512);
     },
     [] { return Check(WithSnapshot()); }},
    {FindingCode::kSnapshotTableInvalid, "the last byte of a name missing / all of its padding",
     [] { return FiresAtTable(EndingWithTable(8)); }, [] { return Check(EndingWithTable(7)); }},
    // Row M13: qemu-img calls the snapshot's clusters leaks.
    {FindingCode::kSnapshotTableInvalid, "no snapshots, but their table / and the table was freed",
     [] { return FiresAtTable(WithSnapshotCount(0)); },
     [] {
       BuiltImage image = WithSnapshotCount(0);
       SetRefcount(image, image.ClusterOf(image.snapshot_table.offset), 0);
       return Check(image);
     }},
    {FindingCode::kSnapshotTooMany, "65,537 / 65,536",
     [] { return FiresAtTable(WithSnapshotCount(kQemuMaxSnapshots + 1)); },
     [] { return Check(WithSnapshotCount(kQemuMaxSnapshots)); }},
    {FindingCode::kSnapshotEntryIncomplete, "15 bytes / 16 bytes",
     [] { return FiresAtSnapshot(WithExtraBytes(15), 0); },
     [] { return Check(WithExtraBytes(16)); }},
    {FindingCode::kSnapshotEntryIncomplete, "version 3 / version 2",
     [] { return FiresAtSnapshot(WithExtraBytes(8), 0); },
     [] { return Check(WithExtraBytes(8, 2)); }},
    {FindingCode::kSnapshotExtraTooLarge, "1,025 bytes / 1,024 bytes",
     [] { return FiresAtSnapshot(WithExtraBytes(1025), 0); },
     [] { return Check(WithExtraBytes(1024)); }},
    {FindingCode::kSnapshotL1Invalid, "misaligned / aligned",
     [] { return FiresAt(WithSnapshotL1(SnapshotL1Offset() + 512, 2), SnapshotL1Offset() + 512); },
     [] { return Check(WithSnapshot()); }},
    {FindingCode::kSnapshotL1Invalid, "an entry over the end of the file / up to it",
     [] {
       const uint64_t entries = (WithSnapshot().bytes.size() - SnapshotL1Offset()) / 8;
       return FiresAt(WithSnapshotL1(SnapshotL1Offset(), entries + 1), SnapshotL1Offset());
     },
     [] {
       const uint64_t entries = (WithSnapshot().bytes.size() - SnapshotL1Offset()) / 8;
       return Check(WithSnapshotL1(SnapshotL1Offset(), entries));
     }},
    // Row M13.
    {FindingCode::kSnapshotDuplicate, "one id / two ids",
     [] {
       return FiresAtSnapshot(WithSnapshots({{.id = "7"}, {.id = "7"}}), 1);
     },
     [] {
       return Check(WithSnapshots({{.id = "7"}, {.id = "8"}}));
     },
     Verdict::kClean},
    {FindingCode::kSnapshotDuplicate, "one name / no names",
     [] {
       return FiresAtSnapshot(WithSnapshots({{.id = "1", .name = "a"}, {.id = "2", .name = "a"}}),
                              1);
     },
     [] {
       return Check(WithSnapshots({{.id = "1"}, {.id = "2"}}));
     },
     Verdict::kClean},
    {FindingCode::kSnapshotSizeMismatch, "an L1 entry less than the disk needs / all of them",
     [] { return FiresAtSnapshot(WithSnapshotL1(SnapshotL1Offset(), 1), 0); },
     [] { return Check(WithSnapshotL1(SnapshotL1Offset(), 2)); }},
    {FindingCode::kSnapshotSizeMismatch, "no L1 entry for the VM state / one",
     [] { return FiresAtSnapshot(WithVmState(1), 0); }, [] { return Check(WithVmState(2)); }},
};

// --- Bitmaps ---

// The fields of a bitmap directory entry, and of the bitmaps extension with its 8 bytes of type and
// length, from the first byte.
constexpr uint64_t kTableEntries = 8;
constexpr uint64_t kFlags = 12;
constexpr uint64_t kGranularity = 17;
constexpr uint64_t kExtensionCount = 8;
constexpr uint64_t kExtensionReserved = 12;
constexpr uint64_t kExtensionDirectorySize = 16;
constexpr uint64_t kExtensionDirectoryOffset = 24;

// Bitmaps of 64 bits, whose data lies in a cluster each.
BuiltImage WithBitmaps(std::vector<BitmapOptions> bitmaps) {
  ImageOptions options = SmallOptions();
  options.bitmaps = std::move(bitmaps);
  for (BitmapOptions& bitmap : options.bitmaps) bitmap.dirty = {{0, 1}};
  return BuildImage(options);
}

BuiltImage WithBitmap() { return WithBitmaps({{.name = "a"}}); }
BuiltImage WithTwoBitmaps() { return WithBitmaps({{.name = "a"}, {.name = "b"}}); }

uint64_t ExtensionPlace(const BuiltImage& image) {
  return image.Extension(kExtensionBitmaps).offset;
}

BuiltImage WithExtensionField(BuiltImage image, uint64_t field, uint32_t value) {
  Poke32(image.bytes, ExtensionPlace(image) + field, value);
  return image;
}

BuiltImage WithDirectoryOffset(uint64_t distance) {
  BuiltImage image = WithBitmap();
  Poke64(image.bytes, ExtensionPlace(image) + kExtensionDirectoryOffset,
         image.bitmap_directory.offset + distance);
  return image;
}

BuiltImage WithEntryWord(uint64_t field, uint32_t value) {
  BuiltImage image = WithBitmap();
  Poke32(image.bytes, image.bitmaps[0].entry_offset + field, value);
  return image;
}

BuiltImage WithGranularity(uint8_t bits) {
  BuiltImage image = WithBitmap();
  Fill(image.bytes, image.bitmaps[0].entry_offset + kGranularity, 1, bits);
  return image;
}

// The first table entry, with some bits flipped.
BuiltImage WithTableBits(uint64_t bits) {
  BuiltImage image = WithBitmap();
  const uint64_t place = image.bitmaps[0].table_offset;
  Poke64(image.bytes, place, Peek64(image.bytes, place) ^ bits);
  return image;
}

BuiltImage WithTableEntryAtEnd(uint64_t extra_bytes) {
  BuiltImage image = WithBitmap();
  Poke64(image.bytes, image.bitmaps[0].table_offset, image.bytes.size());
  Extend(image.bytes, image.bytes.size() + extra_bytes);
  return image;
}

BuiltImage WithDataBit(uint64_t bit) {
  BuiltImage image = WithBitmap();
  FlipBit(image.bytes, image.bitmaps[0].data_offsets[0] + bit / 8, static_cast<int>(bit % 8));
  return image;
}

Fired FiresAtExtension(const BuiltImage& image) { return FiresAt(image, ExtensionPlace(image)); }
Fired FiresAtEntry(const BuiltImage& image, size_t index = 0) {
  return FiresAt(image, image.bitmaps[index].entry_offset);
}
Fired FiresAtBitmapTable(const BuiltImage& image) {
  return FiresAt(image, image.bitmaps[0].table_offset);
}

BuiltImage WithAutoclear(BuiltImage image, uint64_t features) {
  PokeField(image, "autoclear_features", features);
  return image;
}

constexpr FindingCase kBitmapCases[] = {
    {FindingCode::kBitmapExtensionInvalid, "its reserved field is 1 / 0",
     [] { return FiresAtExtension(WithExtensionField(WithBitmap(), kExtensionReserved, 1)); },
     [] { return Check(WithExtensionField(WithBitmap(), kExtensionReserved, 0)); }},
    {FindingCode::kBitmapExtensionInvalid, "no bitmaps / one",
     [] { return FiresAtExtension(WithExtensionField(WithBitmap(), kExtensionCount, 0)); },
     [] { return Check(WithExtensionField(WithBitmap(), kExtensionCount, 1)); }},
    {FindingCode::kBitmapExtensionInvalid, "65,536 bitmaps / 65,535",
     [] {
       return FiresAtExtension(
           WithExtensionField(WithBitmap(), kExtensionCount, kQemuMaxBitmaps + 1));
     },
     [] { return Check(WithExtensionField(WithBitmap(), kExtensionCount, kQemuMaxBitmaps)); }},
    {FindingCode::kBitmapExtensionInvalid, "23 bytes / 24 bytes",
     [] { return FiresAtExtension(WithExtensionField(WithBitmap(), 4, 23)); },
     [] { return Check(WithExtensionField(WithBitmap(), 4, 24)); }},
    {FindingCode::kBitmapExtensionInvalid, "stale and of 23 bytes / stale and of no bitmaps",
     [] { return FiresAtExtension(WithAutoclear(WithExtensionField(WithBitmap(), 4, 23), 0)); },
     [] { return Check(WithAutoclear(WithExtensionField(WithBitmap(), kExtensionCount, 0), 0)); }},
    {FindingCode::kBitmapExtensionInvalid, "the directory is misaligned / aligned",
     [] { return FiresAtExtension(WithDirectoryOffset(512)); },
     [] { return Check(WithDirectoryOffset(0)); }},
    {FindingCode::kBitmapExtensionInvalid, "its feature bit without it / neither",
     [] {
       return FiresAtField(WithAutoclear(SmallImage(), kBitmapsConsistent), "autoclear_features");
     },
     [] { return Check(SmallImage()); }},
    {FindingCode::kBitmapDirectoryInvalid, "granularity 2^32 / 2^31",
     [] { return FiresAtEntry(WithGranularity(32)); }, [] { return Check(WithGranularity(31)); }},
    {FindingCode::kBitmapDirectoryInvalid, "granularity 2^8 / 2^9",
     [] { return FiresAtEntry(WithGranularity(8)); }, [] { return Check(WithGranularity(9)); }},
    {FindingCode::kBitmapDirectoryInvalid, "flag 2 / flag 1",
     [] { return FiresAtEntry(WithEntryWord(kFlags, 4)); },
     [] { return Check(WithEntryWord(kFlags, 2)); }},
    {FindingCode::kBitmapDirectoryInvalid, "two table entries for one / for an old size, in use",
     [] { return FiresAtEntry(WithEntryWord(kTableEntries, 2)); },
     [] {
       BuiltImage image = WithEntryWord(kTableEntries, 2);
       Poke32(image.bytes, image.bitmaps[0].entry_offset + kFlags, 1);
       return Check(image);
     }},
    {FindingCode::kBitmapDirectoryInvalid, "two bitmaps in one entry's room / in two entries'",
     [] {
       const BuiltImage image = WithTwoBitmaps();
       return FiresAt(WithExtensionField(image, kExtensionDirectorySize + 4,
                                         static_cast<uint32_t>(image.bitmaps[0].entry_length)),
                      image.bitmaps[1].entry_offset);
     },
     [] { return Check(WithTwoBitmaps()); }},
    {FindingCode::kBitmapDirectoryInvalid, "a directory without the last byte of padding / with it",
     [] {
       const BuiltImage image = WithBitmap();
       const auto length = static_cast<uint32_t>(image.bitmaps[0].entry_length);
       return FiresAt(WithExtensionField(image, kExtensionDirectorySize + 4, length - 1),
                      image.bitmaps[0].entry_offset);
     },
     [] { return Check(WithBitmap()); }},
    {FindingCode::kBitmapDirectoryInvalid, "one bitmap in two entries' room / in its own",
     [] {
       const BuiltImage image = WithTwoBitmaps();
       return FiresAt(WithExtensionField(image, kExtensionCount, 1), image.bitmaps[1].entry_offset);
     },
     [] { return Check(WithBitmap()); }},
    {FindingCode::kBitmapTableInvalid, "bit 1 / none",
     [] { return FiresAtBitmapTable(WithTableBits(2)); }, [] { return Check(WithTableBits(0)); }},
    {FindingCode::kBitmapTableInvalid, "all ones with an offset / without one",
     [] { return FiresAtBitmapTable(WithTableBits(1)); },
     [] {
       BuiltImage image = WithBitmap();
       Poke64(image.bytes, image.bitmaps[0].table_offset, 1);
       return Check(image);
     }},
    {FindingCode::kBitmapTableInvalid, "at the end of the file / one byte before it",
     [] { return FiresAtBitmapTable(WithTableEntryAtEnd(0)); },
     [] { return Check(WithTableEntryAtEnd(1)); }},
    {FindingCode::kBitmapInUse, "in use / tracking by itself",
     [] { return FiresAtEntry(WithBitmaps({{.name = "a", .in_use = true}})); },
     [] { return Check(WithBitmaps({{.name = "a", .auto_flag = true}})); }, Verdict::kClean},
    // Damage D6: qemu-img frees them.
    {FindingCode::kBitmapsStale, "the feature bit is 0 / 1",
     [] { return FiresAtExtension(WithAutoclear(WithBitmap(), 0)); },
     [] { return Check(WithAutoclear(WithBitmap(), kBitmapsConsistent)); }, Verdict::kLeaks},
    // Row M16.
    {FindingCode::kBitmapTailBits, "the first bit behind the disk / the last bit of the disk",
     [] {
       const BuiltImage image = WithDataBit(64);
       return FiresAt(image, image.bitmaps[0].data_offsets[0]);
     },
     [] { return Check(WithDataBit(63)); }, Verdict::kClean},
    {FindingCode::kBitmapDuplicate, "one name / two names",
     [] {
       return FiresAtEntry(WithBitmaps({{.name = "a"}, {.name = "a"}}), 1);
     },
     [] { return Check(WithTwoBitmaps()); }},
};

}  // namespace

absl::Span<const FindingCase> SnapshotCases() { return kSnapshotCases; }
absl::Span<const FindingCase> BitmapCases() { return kBitmapCases; }

}  // namespace qcow2check::testing

// Cases for the L1 table, its entries, and L2 tables as wholes.
#include "common/limits.h"
#include "common/table_entry.h"
#include "tests/damage.h"
#include "tests/finding_cases.h"

namespace qcow2check::testing {
namespace {

BuiltImage WithClusters(uint64_t count) {
  ImageOptions options = SmallOptions();
  options.steps = {WriteClusters{.count = count}};
  return BuildImage(options);
}

BuiltImage WithField(absl::string_view field, uint64_t value) {
  BuiltImage image = SmallImage();
  PokeField(image, field, value);
  return image;
}

// An image that ends with its L1 table.
BuiltImage EndingWithL1() {
  ImageOptions options = SmallOptions();
  options.steps = {};
  options.end_at_last_byte = true;
  return BuildImage(options);
}

BuiltImage WithL1Entry(uint64_t l1_index, uint64_t value) {
  BuiltImage image = SmallImage();
  SetL1Entry(image, l1_index, value);
  return image;
}

// The first L1 entry of the small image, with some bits flipped.
BuiltImage WithL1Bits(uint64_t bits) { return WithL1Entry(0, GetL1Entry(SmallImage(), 0) ^ bits); }

BuiltImage WithZeroedL1(uint64_t clusters) {
  BuiltImage image = WithClusters(clusters);
  L1Zeroed(image);
  return image;
}

BuiltImage WithZeroedL2(uint64_t clusters) {
  BuiltImage image = WithClusters(clusters);
  L2Zeroed(image);
  return image;
}

// Every entry of the L2 table has a reserved bit set.
BuiltImage WithReservedBits(uint64_t clusters) {
  BuiltImage image = WithClusters(clusters);
  for (const BuiltCluster& cluster : image.l1.clusters) {
    FlipBit64(image.bytes, cluster.entry_offset, 60);
  }
  return image;
}

// The small image whose second half of the L2 table, with `lost` entries, is zero.
BuiltImage WithTornL2(uint64_t lost) {
  BuiltImage image = WithClusters(256 + lost);
  TornL2SecondHalfZero(image);
  return image;
}

// Two L2 tables with eight clusters each.
BuiltImage WithTwoTables() {
  ImageOptions options = SmallOptions();
  options.steps = {WriteClusters{.count = 8}, WriteClusters{.first = 512, .count = 8}};
  return BuildImage(options);
}

BuiltImage SharedBySnapshot() {
  ImageOptions options = SmallOptions();
  options.steps = {WriteClusters{.count = 8}, WriteClusters{.first = 512, .count = 8},
                   TakeSnapshot{}};
  return BuildImage(options);
}

BuiltImage WithShiftedEntry() {
  BuiltImage image = SmallImage();
  SetL1Entry(image, 1, image.bytes.size() | kCopiedBit);
  return image;
}

constexpr FindingCase kCases[] = {
    {FindingCode::kL1OffsetInvalid, "misaligned / aligned",
     [] { return FiresAt(WithField("l1_table_offset", 0x3200), 0x3200); },
     [] { return Check(SmallImage()); }},
    // Row M1: the last entries of the table are not in the file.
    {FindingCode::kL1OffsetInvalid, "cut by a byte / just in the file",
     [] {
       BuiltImage image = EndingWithL1();
       Truncate(image.bytes, image.bytes.size() - 1);
       return FiresAt(image, image.l1.offset);
     },
     [] { return Check(EndingWithL1()); }},
    {FindingCode::kL1OffsetInvalid, "0 / 0 for a table of no entries",
     [] { return FiresAt(WithField("l1_table_offset", 0), 0); },
     [] {
       BuiltImage image = WithField("l1_table_offset", 0);
       PokeField(image, "l1_size", 0);
       return Check(image);
     }},
    {FindingCode::kL1TooSmall, "a sector more than it maps / just what it maps",
     [] {
       const BuiltImage image = WithField("size", (4u << 20) + 512);
       return FiresAt(image, image.l1.offset);
     },
     [] { return Check(WithField("size", 4u << 20)); }},
    {FindingCode::kL1TooLarge, "32 MiB and an entry / 32 MiB",
     [] {
       const BuiltImage image = WithField("l1_size", kQemuMaxL1Entries + 1);
       return FiresAt(image, image.l1.offset);
     },
     [] { return Check(WithField("l1_size", kQemuMaxL1Entries)); }},
    {FindingCode::kL1Lost, "eight unreferenced clusters / seven",
     [] {
       const BuiltImage image = WithZeroedL1(7);  // and their L2 table
       return FiresAt(image, image.l1.offset);
     },
     [] { return Check(WithZeroedL1(6)); }},
    {FindingCode::kL1Lost, "nothing is mapped / there never was anything",
     [] {
       const BuiltImage image = WithZeroedL1(8);
       return FiresAt(image, image.l1.offset);
     },
     [] { return Check(WithClusters(0)); }},
    {FindingCode::kL1EntryReservedBits, "bit 8 / bit 9, part of the offset",
     [] {
       const BuiltImage image = WithL1Bits(uint64_t{1} << 8);
       return FiresAt(image, image.l1.EntryOffset(0));
     },
     [] { return Check(WithL1Bits(uint64_t{1} << 9)); }},
    {FindingCode::kL1EntryReservedBits, "bit 56 / bit 55, part of the offset",
     [] {
       const BuiltImage image = WithL1Bits(uint64_t{1} << 56);
       return FiresAt(image, image.l1.EntryOffset(0));
     },
     [] { return Check(WithL1Bits(uint64_t{1} << 55)); }},
    {FindingCode::kL1EntryWithoutOffset, "only COPIED / only a reserved bit, another finding",
     [] {
       const BuiltImage image = WithL1Entry(1, kCopiedBit);
       return FiresAt(image, image.l1.EntryOffset(1));
     },
     [] { return Check(WithL1Entry(1, 1)); }},
    {FindingCode::kL2TableMisaligned, "0x4200 with clusters of 4 KiB / of 512 bytes",
     [] {
       const BuiltImage image = WithL1Bits(0x200);
       return FiresAt(image, image.l1.EntryOffset(0));
     },
     [] {
       BuiltImage image = BuildImage({.cluster_bits = 9, .steps = {WriteClusters{.count = 8}}});
       FlipBit64(image.bytes, image.l1.EntryOffset(0), 9);
       return Check(image);
     }},
    {FindingCode::kL2TablePastEnd, "at the end of the file / one byte before it",
     [] {
       const BuiltImage image = WithShiftedEntry();
       return FiresAt(image, image.l1.EntryOffset(1));
     },
     [] {
       BuiltImage image = WithShiftedEntry();
       Extend(image.bytes, image.bytes.size() + 1);
       return Check(image);
     }},
    {FindingCode::kL2TableLost, "eight entries that cannot be / seven, each a finding",
     [] {
       const BuiltImage image = WithReservedBits(8);
       return FiresAt(image, image.L2At(0).host_offset);
     },
     [] { return Check(WithReservedBits(7)); }},
    {FindingCode::kL2TableLost, "zeros before eight unreferenced clusters / before seven",
     [] {
       const BuiltImage image = WithZeroedL2(8);
       return FiresAt(image, image.L2At(0).host_offset);
     },
     [] { return Check(WithZeroedL2(7)); }},
    {FindingCode::kL2TableLost, "text / the table",
     [] {
       BuiltImage image = SmallImage();
       L2HasText(image);
       return FiresAt(image, image.L2At(0).host_offset);
     },
     [] { return Check(SmallImage()); }},
    {FindingCode::kL2TableTorn, "eight unreferenced clusters would go on / seven",
     [] {
       const BuiltImage image = WithTornL2(8);
       return FiresAt(image, image.L2At(0).host_offset + 2048);
     },
     [] { return Check(WithTornL2(7)); }},
    {FindingCode::kL1EntryLost, "the disk has no entry for a table that a snapshot shares / it has",
     [] {
       BuiltImage image = SharedBySnapshot();
       SetL1Entry(image, 1, 0);
       return FiresAt(image, image.L2At(1).host_offset);
     },
     [] { return Check(SharedBySnapshot()); }, Verdict::kLeaks},
    {FindingCode::kOrphanL2Table, "it maps unreferenced clusters / clusters of the table it was",
     [] {
       BuiltImage image = WithTwoTables();
       SetL1Entry(image, 1, 0);
       return FiresAt(image, image.L2At(1).host_offset);
     },
     [] {
       BuiltImage image = WithTwoTables();
       const uint64_t stale = image.bytes.size();
       Extend(image.bytes, stale + image.cluster_size());
       CopyCluster(image, image.L2At(1).host_offset, stale);
       SetRefcount(image, image.ClusterOf(stale), 1);
       return Check(image);
     }},
};

}  // namespace

absl::Span<const FindingCase> TableCases() { return kCases; }

}  // namespace qcow2check::testing

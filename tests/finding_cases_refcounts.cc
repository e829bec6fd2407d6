// Cases for who owns a cluster, and for refcounts.
#include "common/limits.h"
#include "common/table_entry.h"
#include "tests/damage.h"
#include "tests/finding_cases.h"

namespace qcow2check::testing {
namespace {

BuiltImage WithSteps(std::vector<Step> steps) {
  ImageOptions options = SmallOptions();
  options.steps = std::move(steps);
  return BuildImage(options);
}

// The active disk and a snapshot share all clusters but the first, by two L2 tables.
BuiltImage WithSnapshot() {
  return WithSteps({WriteClusters{.count = 8}, TakeSnapshot{}, WriteClusters{.count = 1}});
}

// The cluster with that guest offset.
uint64_t ClusterAt(const BuiltImage& image, uint64_t guest_offset) {
  return image.ClusterOf(image.At(guest_offset).host_offset);
}

BuiltImage WithRefcount(BuiltImage image, uint64_t cluster, uint64_t value) {
  SetRefcount(image, cluster, value);
  return image;
}

// The second guest cluster points to `host_offset`, whose refcount says so: row M4 and M5, which
// qemu-img takes for consistent.
BuiltImage WithSecondUser(uint64_t host_offset) {
  BuiltImage image = SmallImage();
  SetL2Entry(image, 0x1000, host_offset);
  SetRefcount(image, image.ClusterOf(host_offset), 2);
  return image;
}

BuiltImage WithTwoBitmaps() {
  ImageOptions options = SmallOptions();
  options.bitmaps = {{.name = "a", .dirty = {{0, 1}}}, {.name = "b", .dirty = {{0, 1}}}};
  return BuildImage(options);
}

BuiltImage WithField(absl::string_view field, uint64_t value) {
  BuiltImage image = SmallImage();
  PokeField(image, field, value);
  return image;
}

BuiltImage WithRefcountTableBits(uint64_t bits) {
  BuiltImage image = SmallImage();
  const uint64_t place = image.refcount_table.offset;
  Poke64(image.bytes, place, Peek64(image.bytes, place) ^ bits);
  return image;
}

Fired FiresAtTable(const BuiltImage& image) { return FiresAt(image, image.refcount_table.offset); }

// 512-byte clusters; the first of two refcount blocks describes 256 of them, all in use once.
BuiltImage WithTwoBlocks() {
  return BuildImage(
      {.cluster_bits = 9, .virtual_size = 256 << 10, .steps = {WriteClusters{.count = 300}}});
}

BuiltImage WithWrongRefcounts(uint64_t count) {
  BuiltImage image = WithTwoBlocks();
  for (uint64_t i = 0; i < count; ++i) SetRefcount(image, 100 + i, 3);
  return image;
}

BuiltImage WithLazyDamage(uint64_t compatible_features) {
  BuiltImage image = SmallImage();
  LazyRefcountsStale(image);
  PokeField(image, "compatible_features", compatible_features);
  return image;
}

// One-bit refcounts.
BuiltImage WithNarrowRefcounts() {
  ImageOptions options = SmallOptions();
  options.refcount_order = 0;
  return BuildImage(options);
}

// A cluster more at the end of the file than anything uses, with that refcount.
BuiltImage WithSpareCluster(uint64_t refcount) {
  BuiltImage image = SmallImage();
  const uint64_t spare = image.bytes.size();
  Extend(image.bytes, spare + image.cluster_size());
  SetRefcount(image, image.ClusterOf(spare), refcount);
  return image;
}
uint64_t SpareOffset() { return SmallImage().bytes.size(); }

BuiltImage WithoutLastCluster(uint64_t refcount) {
  BuiltImage image = SmallImage();
  SetRefcount(image, ClusterAt(image, 0x7000), refcount);
  Truncate(image.bytes, image.bytes.size() - image.cluster_size());
  return image;
}

// A compressed cluster of some 2,000 bytes ends the file; the bytes that its entry claims reach
// `missing` bytes further.
BuiltImage WithCutCompressed(uint64_t missing) {
  ImageOptions options = SmallOptions();
  options.steps = {WriteCompressed{.random_bytes = 2000}};
  BuiltImage image = BuildImage(options);
  Truncate(image.bytes, image.At(0).host_offset + image.At(0).length - missing);
  return image;
}

constexpr FindingCase kOwnerCases[] = {
    {FindingCode::kCrossLinkedData, "two guest ranges / one, in the disk and a snapshot",
     [] {
       BuiltImage image = SmallImage();
       const uint64_t host = image.At(0).host_offset;
       SetL2Entry(image, 0, host);
       SetL2Entry(image, 0x1000, host);
       return FiresAt(WithRefcount(image, image.ClusterOf(host), 2), host);
     },
     [] { return Check(WithSnapshot()); }},
    {FindingCode::kCrossLinkedL2, "two slots / one slot, in the disk and a snapshot",
     [] {
       BuiltImage image = SmallImage();
       const uint64_t table = image.L2At(0).host_offset;
       SetL1Entry(image, 0, table);
       SetL1Entry(image, 1, table);
       return FiresAt(WithRefcount(image, image.ClusterOf(table), 2), table);
     },
     [] {
       return Check(WithSteps({WriteClusters{.count = 8}, TakeSnapshot{}}));
     }},
    {FindingCode::kDataOnMetadata, "on the L1 table / on other data",
     [] {
       const uint64_t table = SmallImage().l1.offset;
       return FiresAt(WithSecondUser(table), table);
     },
     [] { return Check(WithSecondUser(SmallImage().At(0).host_offset)); }},
    {FindingCode::kDataOnMetadata, "on a cluster that ends with a table / behind it",
     [] {
       const uint64_t table = SmallImage().refcount_table.offset;
       return FiresAt(WithSecondUser(table), table);
     },
     [] { return Check(SmallImage()); }},
    // Row M16.
    {FindingCode::kMetadataOverlap, "two bitmaps, one cluster / two clusters",
     [] {
       BuiltImage image = WithTwoBitmaps();
       const uint64_t data = image.bitmaps[0].data_offsets[0];
       Poke64(image.bytes, image.bitmaps[1].table_offset, data);
       return FiresAt(WithRefcount(image, image.ClusterOf(data), 2), data);
     },
     [] { return Check(WithTwoBitmaps()); }},
};

constexpr FindingCase kRefcountCases[] = {
    {FindingCode::kRefcountTableInvalid, "no clusters / one",
     [] { return FiresAtTable(WithField("refcount_table_clusters", 0)); },
     [] { return Check(WithField("refcount_table_clusters", 1)); }},
    {FindingCode::kRefcountTableInvalid, "misaligned / aligned, on something else",
     [] { return FiresAt(WithField("refcount_table_offset", 0x1200), 0x1200); },
     [] { return Check(WithField("refcount_table_offset", 0x2000)); }},
    {FindingCode::kRefcountTableInvalid, "at the end of the file / one byte before it",
     [] { return FiresAt(WithField("refcount_table_offset", SpareOffset()), SpareOffset()); },
     [] {
       BuiltImage image = WithField("refcount_table_offset", SpareOffset());
       Extend(image.bytes, image.bytes.size() + 1);
       return Check(image);
     }},
    {FindingCode::kRefcountTableLarge, "8 MiB and a cluster / 8 MiB",
     [] {
       return FiresAtTable(
           WithField("refcount_table_clusters", kQemuMaxRefcountTableBytes / 4096 + 1));
     },
     [] { return Check(WithField("refcount_table_clusters", kQemuMaxRefcountTableBytes / 4096)); }},
    {FindingCode::kRefcountTableEntryReservedBits, "bit 8 / bit 9, part of the offset",
     [] { return FiresAtTable(WithRefcountTableBits(0x100)); },
     [] { return Check(WithRefcountTableBits(0x200)); }},
    {FindingCode::kRefcountTableEntryReservedBits, "bit 0 / bit 63, part of the offset",
     [] { return FiresAtTable(WithRefcountTableBits(1)); },
     [] { return Check(WithRefcountTableBits(uint64_t{1} << 63)); }},
    {FindingCode::kRefcountBlockMisaligned, "reserved bits as well: counted as those / neither",
     [] { return FiresAtTable(WithRefcountTableBits(0x801)); },
     [] { return Check(WithRefcountTableBits(0)); }, Verdict::kCorrupt, 0},
    {FindingCode::kRefcountBlockMisaligned, "bit 11 / bit 12 with clusters of 4 KiB",
     [] { return FiresAtTable(WithRefcountTableBits(0x800)); },
     [] { return Check(WithRefcountTableBits(0x1000)); }},
    {FindingCode::kRefcountBlockPastEnd, "at the end of the file / one byte before it",
     [] {
       BuiltImage image = SmallImage();
       Poke64(image.bytes, image.refcount_table.offset, image.bytes.size());
       return FiresAtTable(image);
     },
     [] {
       BuiltImage image = SmallImage();
       Poke64(image.bytes, image.refcount_table.offset, image.bytes.size());
       Extend(image.bytes, image.bytes.size() + 1);
       return Check(image);
     }},
    {FindingCode::kRefcountBlockShared, "two ranges, one block / two blocks",
     [] {
       BuiltImage image = WithTwoBlocks();
       Poke64(image.bytes, image.refcount_table.offset + 8, image.refcount_blocks[0]);
       return FiresAt(image, image.refcount_blocks[0]);
     },
     [] { return Check(WithTwoBlocks()); }},
    {FindingCode::kRefcountBlockGarbage, "more than half of the counts wrong / half",
     [] {
       const BuiltImage image = WithWrongRefcounts(129);
       return FiresAt(image, image.refcount_blocks[0]);
     },
     [] { return Check(WithWrongRefcounts(128)); }, Verdict::kCorrupt, 0},
    {FindingCode::kRefcountTooLow, "1 of 2 / 3 of 2",
     [] {
       const BuiltImage image = WithSnapshot();
       return FiresAt(WithRefcount(image, ClusterAt(image, 0x1000), 1),
                      image.At(0x1000).host_offset);
     },
     [] {
       const BuiltImage image = WithSnapshot();
       return Check(WithRefcount(image, ClusterAt(image, 0x1000), 3));
     }},
    {FindingCode::kRefcountZeroInUse, "0 of 1 / 1 of 2",
     [] {
       const BuiltImage image = SmallImage();
       return FiresAt(WithRefcount(image, ClusterAt(image, 0x1000), 0),
                      image.At(0x1000).host_offset);
     },
     [] {
       const BuiltImage image = WithSnapshot();
       return Check(WithRefcount(image, ClusterAt(image, 0x1000), 1));
     }},
    {FindingCode::kRefcountZeroInUse, "in use / not in use",
     [] {
       const BuiltImage image = SmallImage();
       return FiresAt(WithRefcount(image, 0, 0), 0);
     },
     [] { return Check(WithSpareCluster(0)); }},
    // The L2 table and its eight clusters, and the COPIED flags that lead to them: as qemu-img.
    {FindingCode::kRefcountLazy, "dirty with lazy refcounts / dirty without them",
     [] {
       const BuiltImage image = WithLazyDamage(kLazyRefcounts);
       return FiresAt(image, image.L2At(0).host_offset);
     },
     [] { return Check(WithLazyDamage(0)); }, Verdict::kCorrupt, 18},
    {FindingCode::kRefcountOverflow, "2 users of a one-bit refcount / 1 user",
     [] {
       BuiltImage image = WithNarrowRefcounts();
       TwoGuestOneHost(image);
       return FiresAt(image, image.At(0).host_offset);
     },
     [] { return Check(WithNarrowRefcounts()); }},
    {FindingCode::kLeakedCluster, "refcount 1 / 0",
     [] { return FiresAt(WithSpareCluster(1), SpareOffset()); },
     [] { return Check(WithSpareCluster(0)); }, Verdict::kLeaks},
    {FindingCode::kLeakSuspicious, "with a damaged pointer / without one",
     [] {
       BuiltImage image = WithSpareCluster(1);
       EntryMisaligned(image);
       return FiresAt(image, SpareOffset());
     },
     [] { return Check(WithSpareCluster(1)); }},
    {FindingCode::kRefcountTooHigh, "2 of 1 / 2 of 2",
     [] {
       BuiltImage image = SmallImage();
       SetL2Entry(image, 0x1000, image.At(0x1000).host_offset);  // COPIED as the refcount says
       return FiresAt(WithRefcount(image, ClusterAt(image, 0x1000), 2),
                      image.At(0x1000).host_offset);
     },
     [] { return Check(WithSnapshot()); }, Verdict::kLeaks},
    // Row M3.
    {FindingCode::kRefcountPastEnd, "the cluster behind the end / the last one",
     [] {
       BuiltImage image = SmallImage();
       return FiresAt(WithRefcount(image, image.ClusterOf(image.bytes.size()), 1), SpareOffset());
     },
     [] { return Check(WithSpareCluster(1)); }, Verdict::kLeaks},
    // With row M1: the last data cluster was there, its refcount says so.
    {FindingCode::kFileTruncated, "a missing cluster with a refcount / without one",
     [] {
       const BuiltImage image = WithoutLastCluster(1);
       return FiresAt(image, image.bytes.size());
     },
     [] { return Check(WithoutLastCluster(0)); }},
    {FindingCode::kCutByEndOfFile, "a byte of a data cluster missing / none",
     [] {
       BuiltImage image = SmallImage();
       Truncate(image.bytes, image.bytes.size() - 1);
       return FiresAt(image, image.L2EntryOffset(0x7000));
     },
     [] { return Check(SmallImage()); }, Verdict::kClean},
    {FindingCode::kCutByEndOfFile, "a whole sector of a compressed cluster missing / less",
     [] {
       const BuiltImage image = WithCutCompressed(512);
       return FiresAt(image, image.L2EntryOffset(0));
     },
     [] { return Check(WithCutCompressed(511)); }, Verdict::kClean},
};

}  // namespace

absl::Span<const FindingCase> OwnerCases() { return kOwnerCases; }
absl::Span<const FindingCase> RefcountCases() { return kRefcountCases; }

}  // namespace qcow2check::testing

// One test for each mistake that the checker once made: what it said then is in the comment.
#include <cstdint>
#include <vector>

#include "absl/algorithm/container.h"
#include "checker/check.h"
#include "common/header_extension.h"
#include "common/memory_file.h"
#include "common/table_entry.h"
#include "gtest/gtest.h"
#include "tests/damage.h"
#include "tests/fault_file.h"
#include "tests/image_builder.h"
#include "tests/reference_compare.h"
#include "tests/repair_promises.h"

namespace qcow2check::testing {
namespace {

uint64_t CountOf(const Report& report, FindingCode code) {
  for (const CodeTotal& total : report.code_totals) {
    if (total.code == code) return total.count;
  }
  return 0;
}

bool Has(const Report& report, FindingCode code) {
  for (const CodeTotal& total : report.code_totals) {
    if (total.code == code) return true;
  }
  return false;
}

// What the refcount finding about the cluster at `offset` expects; 1 if there is none.
uint64_t ExpectedRefcount(const Report& report, uint64_t offset) {
  for (const Finding& finding : report.findings) {
    if (finding.host_offset != HostOffset{offset}) continue;
    if (finding.code == FindingCode::kRefcountTooLow) return finding.expected.value_or(0);
  }
  return 1;
}

// 64 KiB of disk in clusters of 4 KiB, one L2 table, with one snapshot.
ImageOptions SmallWithSnapshot() {
  return {.cluster_bits = 12,
          .virtual_size = uint64_t{64} << 10,
          .steps = {WriteClusters{.count = 4}, TakeSnapshot{}, WriteClusters{.count = 1}}};
}

// COPIED in an L1 entry was not judged if the entry was misaligned and led so far behind the end of
// the file that no refcount is looked up there. qemu-img takes the refcount for 0 and counts it.
TEST(Regressions, CopiedOfMisalignedL1EntryFarBehindTheEnd) {
  BuiltImage image = BuildImage({.cluster_bits = 12, .steps = {WriteClusters{.count = 1}}});
  SetL1Entry(image, 0, uint64_t{1} << 55 | 512 | kCopiedBit);
  const Report report = CheckBytes(image.bytes);
  EXPECT_EQ(CountOf(report, FindingCode::kL2TableMisaligned), 1u);
  EXPECT_EQ(CountOf(report, FindingCode::kCopiedWrong), 1u);
}

// A misaligned entry that starts at the end of the file, in the cluster that the end cuts, is
// outside and not counted. It was taken for a user of that cluster all the same, and as what
// misaligned entries reach into is their fault, a real collision there was not reported.
TEST(Regressions, MisalignedEntryBehindTheEndHidesNoCollision) {
  BuiltImage image = BuildImage({.cluster_bits = 12, .steps = {WriteClusters{.count = 3}}});
  const uint64_t last = image.At(2 * 4096).host_offset;
  SetL2Entry(image, 0, last | kCopiedBit);  // shared with guest cluster 2
  SetL2Entry(image, 4096, (last + 512) | kCopiedBit);
  Truncate(image.bytes, last + 512);
  const Report report = CheckBytes(image.bytes);
  EXPECT_TRUE(Has(report, FindingCode::kDataMisaligned));
  EXPECT_TRUE(Has(report, FindingCode::kDataPastEnd));
  EXPECT_TRUE(Has(report, FindingCode::kCrossLinkedData));
}

// A snapshot L1 table at offset 0 was refused only if it ended inside the file. If it was longer,
// the header was walked as an L1 table.
TEST(Regressions, SnapshotL1AtTheHeaderIsNotWalkedHoweverLong) {
  BuiltImage image = BuildImage(SmallWithSnapshot());
  const uint64_t entry = image.snapshots[0].entry_offset;
  Poke64(image.bytes, entry, 0);
  Poke32(image.bytes, entry + 8, static_cast<uint32_t>(image.bytes.size() / 8 + 1));
  const Report report = CheckBytes(image.bytes);
  EXPECT_EQ(CountOf(report, FindingCode::kSnapshotL1Invalid), 1u);
  EXPECT_FALSE(Has(report, FindingCode::kL1EntryReservedBits));
  EXPECT_FALSE(Has(report, FindingCode::kMetadataOverlap));
}

// Where a snapshot used the active L1 table with a length that reaches a cluster or more behind the
// end of the file, the table's clusters got a reference from it all the same.
TEST(Regressions, L1TableThatReachesOutsideIsNotCountedForOthers) {
  BuiltImage image = BuildImage(SmallWithSnapshot());
  const uint64_t l1 = image.l1.offset;
  const uint64_t entry = image.snapshots[0].entry_offset;
  const uint64_t entries = (image.bytes.size() - l1 + 4096) / 8;
  Poke64(image.bytes, entry, l1);
  // Just not outside, the same entries are walked and the table counts.
  Poke32(image.bytes, entry + 8, static_cast<uint32_t>(entries - 1));
  const uint64_t with_snapshot = ExpectedRefcount(CheckBytes(image.bytes), l1);
  Poke32(image.bytes, entry + 8, static_cast<uint32_t>(entries));
  EXPECT_EQ(ExpectedRefcount(CheckBytes(image.bytes), l1), with_snapshot - 1);
}

// Where the refcount width is unknown, entries that lead far behind the end of the file were said
// to have a COPIED flag that does not agree with the refcount, which nobody had seen.
TEST(Regressions, CopiedIsNotJudgedWithoutRefcounts) {
  BuiltImage image = BuildImage({.cluster_bits = 12, .steps = {WriteClusters{.count = 1}}});
  PokeField(image, "refcount_order", 7);
  SetL2Entry(image, 0, uint64_t{1} << 50 | kCopiedBit);
  EXPECT_FALSE(Has(CheckBytes(image.bytes), FindingCode::kCopiedWrong));
  SetL1Entry(image, 0, uint64_t{1} << 50 | kCopiedBit);
  EXPECT_FALSE(Has(CheckBytes(image.bytes), FindingCode::kCopiedWrong));
}

// Clusters whose refcount could not be read were said to have refcount 0, the most urgent damage.
TEST(Regressions, RefcountsThatCannotBeReadAreNotZero) {
  const BuiltImage image = BuildImage({.cluster_bits = 12, .steps = {WriteClusters{.count = 8}}});
  for (const uint64_t place : {image.refcount_blocks[0], image.refcount_table.offset}) {
    FaultFile file(image.bytes);
    file.Break(place, 512);
    const Report report = CheckImage(file, {});
    EXPECT_EQ(report.totals.check_errors, 1u);
    EXPECT_EQ(report.totals.corruptions, 0u);
    EXPECT_EQ(report.statistics.image_end_offset, image.bytes.size());
  }
}

// The sectors around the one that cannot be read are compared all the same.
TEST(Regressions, RefcountsBesideABadSectorAreCompared) {
  BuiltImage image = BuildImage({.cluster_bits = 12, .steps = {WriteClusters{.count = 300}}});
  SetRefcount(image, 5, 0);
  SetRefcount(image, 290, 0);
  FaultFile file(image.bytes);
  file.Break(image.refcount_blocks[0], 512);
  EXPECT_EQ(CountOf(CheckImage(file, {}), FindingCode::kRefcountZeroInUse), 1u);
}

// An L2 table that could not be read was said to map nothing.
TEST(Regressions, TableThatCannotBeReadIsNotLost) {
  const BuiltImage image = BuildImage({.cluster_bits = 12, .steps = {WriteClusters{.count = 300}}});
  FaultFile file(image.bytes);
  file.Break(image.L2At(0).host_offset, 4096);
  const Report report = CheckImage(file, {});
  EXPECT_FALSE(Has(report, FindingCode::kL2TableLost));
  EXPECT_EQ(report.held_back.clusters, 300u);
}

// Each was a finding, and a duplicate of the first: tens of thousands, of a number in the header.
TEST(Regressions, SnapshotEntriesOfZerosAreOneFinding) {
  BuiltImage image = BuildImage(SmallWithSnapshot());
  PokeField(image, "snapshots_offset", image.bytes.size());
  PokeField(image, "nb_snapshots", 100);
  image.bytes.resize(image.bytes.size() + 4096);
  const Report report = CheckBytes(image.bytes);
  EXPECT_EQ(CountOf(report, FindingCode::kSnapshotEntryIncomplete), 100u);
  EXPECT_EQ(CountOf(report, FindingCode::kSnapshotTableInvalid), 1u);
  EXPECT_FALSE(Has(report, FindingCode::kSnapshotDuplicate));
  EXPECT_EQ(absl::c_count_if(report.findings,
                             [](const Finding& finding) {
                               return finding.code == FindingCode::kSnapshotEntryIncomplete;
                             }),
            1);
}

// A compressed cluster that a snapshot's entry says is longer than the active one does was said to
// overlap itself.
TEST(Regressions, CompressedClusterOfTwoLengthsDoesNotOverlapItself) {
  BuiltImage image = BuildImage({.cluster_bits = 12,
                                 .virtual_size = uint64_t{64} << 10,
                                 .steps = {WriteCompressed{}, TakeSnapshot{}, WriteClusters{4}}});
  SetL2Entry(image, 0, GetL2Entry(image, 0) + (uint64_t{1} << 58));
  const Report report = CheckImage(MemoryFile(image.bytes), {.verify_data = true});
  EXPECT_EQ(report.coverage.compressed_clusters_decompressed, 2u);
  EXPECT_EQ(report.verdict, Verdict::kClean);
}

// A plan keeps whole clusters in memory: not of a size that only the header claims.
TEST(Regressions, NoPlanForClustersOfAGibibyte) {
  BuiltImage image = BuildImage({.virtual_size = 1 << 20, .steps = {WriteClusters{.count = 2}}});
  PokeField(image, "cluster_bits", 30);
  const RepairedImage repaired = Repair(image.bytes);
  EXPECT_EQ(repaired.result.plan.refused, "the clusters are larger than 2 MiB");
  EXPECT_TRUE(repaired.bytes == image.bytes);
}

// With extended L2 entries that clusters of this size cannot have, every second entry was read as
// the bitmap of the one before, and "repaired".
TEST(Regressions, NothingIsWrittenIfClustersAreTooSmallForExtendedL2) {
  BuiltImage image = BuildImage(SmallWithSnapshot());
  PokeField(image, "incompatible_features", kExtendedL2);
  const RepairedImage repaired = Repair(image.bytes);
  EXPECT_NE(repaired.result.plan.refused, "");
  EXPECT_TRUE(repaired.bytes == image.bytes);
}

// An L2 table in what the pointer to the LUKS header claimed was given up, although the LUKS header
// itself says that it ends before.
TEST(Regressions, TablesDoNotLoseToALuksHeaderThatIsClaimedTooLong) {
  BuiltImage image = BuildImage({.cluster_bits = 12,
                                 .virtual_size = uint64_t{64} << 10,
                                 .luks = LuksOptions{.key_bytes = 16, .stripes = 4},
                                 .steps = {WriteClusters{.count = 4}}});
  const uint64_t length = image.L2At(0).host_offset + 4096 - image.luks_header.offset;
  Poke64(image.bytes, image.Extension(kExtensionCrypto).offset + 16, length);
  const RepairedImage repaired = Repair(image.bytes);
  EXPECT_EQ(EntryOffset(Peek64(repaired.bytes, image.l1.offset)), image.L2At(0).host_offset);
  EXPECT_TRUE(repaired.result.plan.lost_guest_ranges.empty());
}

}  // namespace
}  // namespace qcow2check::testing

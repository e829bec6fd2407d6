// One small image for each class of docs/differences.md: what qemu-img check counts of it and what
// ours does. scripts/campaign finds the classes in thousands of random images; tests/campaign has
// the rules.
#include <cstdint>
#include <string>
#include <vector>

#include "common/header_extension.h"
#include "common/table_entry.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/checked_program.h"
#include "tests/damage.h"
#include "tests/image_builder.h"
#include "tests/program.h"
#include "tests/qemu.h"

namespace qcow2check::testing {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsSupersetOf;

// Eight clusters of data under one L2 table. With 4 KiB clusters: header 0x0, refcount table
// 0x1000, refcount block 0x2000, L1 table 0x3000, L2 table 0x4000, data 0x5000-0xcfff.
ImageOptions Options(ImageOptions options = {}) {
  options.cluster_bits = options.extended_l2 ? 14 : 12;
  options.virtual_size = uint64_t{1} << 20;
  options.steps.insert(options.steps.begin(), WriteClusters{.count = 8});
  return options;
}

class Differences : public ::testing::Test {
 protected:
  void SetUp() override { QCOW2CHECK_SKIP_WITHOUT_QEMU(); }

  CheckedTwice Check(const std::vector<uint8_t>& bytes) const {
    return CheckWithBoth(dir_.Write("image.qcow2", bytes), {"-f", "qcow2"});
  }
  CheckedTwice Check(const BuiltImage& image) const { return Check(image.bytes); }

  TempDir dir_;
};

// --- Where qemu-img gives no numbers ---

TEST_F(Differences, QemuImgRefuses) {
  BuiltImage image = BuildImage(Options());
  Poke32(image.bytes, image.extensions_end - 4, 0xffffffff);  // the length of the end marker
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(QemuGivesUp(both));
  EXPECT_TRUE(OursCounts(both, 1, 0));
  EXPECT_THAT(both.ours.codes(), Contains("extension-overflow"));
}

TEST_F(Differences, QemuImgGivesUp) {
  BuiltImage image = BuildImage(Options({.steps = {TakeSnapshot{}}}));
  Poke32(image.bytes, image.snapshot_table.offset + 36, 70000);  // bytes of extra data
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(QemuGivesUp(both));
  EXPECT_EQ(both.ours.exit_code, 2);
  EXPECT_THAT(both.ours.codes(), Contains("snapshot-table-invalid"));
  EXPECT_GT(both.ours.held_back_clusters(), 0);
}

TEST_F(Differences, QemuImgNeedsAKey) {
  const CheckedTwice both = Check(BuildImage(Options({.luks = LuksOptions{.key_bytes = 16}})));
  EXPECT_TRUE(QemuGivesUp(both));
  EXPECT_THAT(both.qemu.err, HasSubstr("key-secret"));
  EXPECT_TRUE(OursCounts(both, 0, 0));
  EXPECT_EQ(both.ours.exit_code, 0);
}

TEST_F(Differences, QemuImgOpensOtherFiles) {
  const CheckedTwice both =
      Check(BuildImage(Options({.backing = BackingOptions{.file = "missing.qcow2"}})));
  EXPECT_TRUE(QemuGivesUp(both));
  EXPECT_THAT(both.qemu.err, HasSubstr("missing.qcow2"));
  EXPECT_EQ(both.ours.exit_code, 0);
}

// --- What qemu-img does not see ---

TEST_F(Differences, CorruptBit) {
  const CheckedTwice both = Check(BuildImage(Options({.corrupt = true})));
  EXPECT_TRUE(QemuCounts(both, 0, 0));
  EXPECT_TRUE(OursCounts(both, 1, 0));
}

TEST_F(Differences, SharedClusters) {
  BuiltImage image = BuildImage(Options());
  const uint64_t shared = image.At(0).host_offset;
  SetL2Entry(image, 0, shared);
  SetL2Entry(image, 1 << 12, shared);
  SetRefcount(image, image.ClusterOf(shared), 2);
  SetRefcount(image, image.ClusterOf(image.At(1 << 12).host_offset), 0);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(QemuCounts(both, 0, 0));
  EXPECT_TRUE(OursCounts(both, 1, 0));
  EXPECT_THAT(both.ours.codes(), Contains("cross-linked-data"));
}

TEST_F(Differences, RefcountsBehindTheEnd) {
  BuiltImage image = BuildImage(Options());
  SetRefcount(image, 100, 1);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(QemuCounts(both, 0, 0));
  EXPECT_TRUE(OursCounts(both, 0, 1));
}

// Too far away for ours to ask whether it is the pointer's: the flag promises a refcount of 1.
TEST_F(Differences, RefcountsFarBehindTheEnd) {
  constexpr uint64_t kFar = uint64_t{3} << 19;
  BuiltImage image =
      BuildImage({.cluster_bits = 18, .refcount_order = 0, .steps = {WriteClusters{}}});
  SetRefcount(image, kFar, 1);
  SetL2Entry(image, 0, kCopiedBit | kFar << 18);
  SetRefcount(image, image.ClusterOf(image.At(0).host_offset), 0);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(QemuCounts(both, 1, 0));
  EXPECT_TRUE(OursCounts(both, 2, 1));
  EXPECT_THAT(both.ours.codes(), IsSupersetOf({"data-past-end", "copied-flag-wrong"}));
}

// qemu-img counts the cluster, as if it were in the file, and then finds its refcount right.
TEST_F(Differences, FirstClusterBehindTheEnd) {
  BuiltImage image = BuildImage(Options({.steps = {WriteCompressed{.first = 20}}}));
  const BuiltCluster& compressed = image.At(20 << 12);
  Truncate(image.bytes, compressed.host_offset);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(QemuCounts(both, 0, 0));
  EXPECT_TRUE(OursCounts(both, 1, 0));
  EXPECT_THAT(both.ours.codes(), Contains("compressed-past-end"));
}

TEST_F(Differences, ZeroFlagInVersion2) {
  BuiltImage image = BuildImage(Options({.version = 2}));
  SetL2Entry(image, 0, GetL2Entry(image, 0) | 1);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(QemuCounts(both, 0, 0));
  EXPECT_TRUE(OursCounts(both, 1, 0));
}

TEST_F(Differences, LostStructure) {
  BuiltImage image = BuildImage(Options());
  SetL1Entry(image, 0, 0);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(QemuCounts(both, 0, 9));
  EXPECT_TRUE(OursCounts(both, 1, 9));
  EXPECT_THAT(both.ours.codes(), IsSupersetOf({"l1-lost", "leak-suspicious"}));
  EXPECT_EQ(both.ours.held_back_clusters(), 9);
}

// An empty table: to qemu-img the snapshot lacks extra data, and the rest is waste.
TEST_F(Differences, SnapshotTable) {
  BuiltImage image = BuildImage(Options({.steps = {TakeSnapshot{}}}));
  ZeroCluster(image, image.snapshot_table.offset);
  const CheckedTwice both = Check(image);
  EXPECT_EQ(both.qemu.corruptions + 1, both.ours.corruptions());
  EXPECT_EQ(both.qemu.leaks, both.ours.leaks());
  EXPECT_THAT(both.ours.codes(), IsSupersetOf({"snapshot-table-invalid", "leak-suspicious"}));
}

// The header says that there are bitmaps, and the extension that says where they are is gone.
TEST_F(Differences, Bitmaps) {
  BuiltImage image = BuildImage(Options());
  PokeField(image, "autoclear_features", 1);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(QemuCounts(both, 0, 0));
  EXPECT_TRUE(OursCounts(both, 1, 0));
  EXPECT_THAT(both.ours.codes(), Contains("bitmap-extension-invalid"));
}

TEST_F(Differences, HeaderFields) {
  BuiltImage image = BuildImage(Options({.version = 2}));
  PokeField(image, "cluster_bits", 13);
  const CheckedTwice both = Check(image);
  EXPECT_THAT(both.ours.codes(), Contains("cluster-bits-suspect"));
  EXPECT_EQ(both.ours.data_state(), "lost");
}

// --- What both see and count otherwise ---

TEST_F(Differences, CompressedSubclusters) {
  BuiltImage image =
      BuildImage(Options({.extended_l2 = true, .steps = {WriteCompressed{.first = 20}}}));
  SetL2Bitmap(image, 20 << 14, 1);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(QemuCounts(both, 1, 1));  // what it does not count it frees
  EXPECT_TRUE(OursCounts(both, 1, 0));
  EXPECT_EQ(both.ours.Number("compressed-clusters"), both.qemu.compressed_clusters + 1);
}

TEST_F(Differences, NoTable) {
  BuiltImage image = BuildImage(Options());
  FillWithText(image.bytes, image.L2At(0).host_offset, 4096);
  const CheckedTwice both = Check(image);
  EXPECT_GT(both.qemu.corruptions, 100);
  EXPECT_EQ(both.ours.CountOf("lost-l2-table"), 1);
  EXPECT_TRUE(OursCounts(both, 1, 8));
  EXPECT_EQ(both.ours.held_back_clusters(), 8);
}

TEST_F(Differences, MisalignedTablePointer) {
  BuiltImage image = BuildImage(Options());
  SetL1Entry(image, 0, GetL1Entry(image, 0) | 0x200);
  const CheckedTwice both = Check(image);
  EXPECT_GT(both.qemu.leaks, 0);
  EXPECT_TRUE(OursCounts(both, 1, 0));
  EXPECT_THAT(both.ours.codes(), Contains("l2-table-misaligned"));
}

TEST_F(Differences, HeaderAsTable) {
  BuiltImage image = BuildImage(Options());
  PokeField(image, "l1_table_offset", 0);
  const CheckedTwice both = Check(image);
  EXPECT_GT(both.qemu.corruptions, 1);
  EXPECT_EQ(both.ours.CountOf("l1-offset-invalid"), 1);
  EXPECT_EQ(both.ours.held_back_clusters(), both.ours.leaks());
}

TEST_F(Differences, UnreadableRefcounts) {
  BuiltImage image = BuildImage(Options());
  Poke64(image.bytes, image.refcount_table.offset, image.refcount_blocks[0] + 512);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(QemuCounts(both, 1, 0));
  EXPECT_EQ(both.qemu.check_errors, 13);
  EXPECT_EQ(both.qemu.exit_code, 1);
  EXPECT_EQ(both.ours.Number("check-errors"), 0);
  EXPECT_EQ(both.ours.CountOf("refcount-zero-in-use"), 12);
  EXPECT_EQ(both.ours.CountOf("copied-flag-wrong"), 9);
  EXPECT_EQ(both.ours.exit_code, 2);
}

TEST_F(Differences, RefcountTableEntry) {
  BuiltImage image = BuildImage(Options());
  Poke64(image.bytes, image.refcount_table.offset, image.refcount_blocks[0] | 1);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(QemuCounts(both, 1, 1));  // the block itself is a leak to it
  EXPECT_TRUE(OursCounts(both, 1, 0));
}

TEST_F(Differences, OneBitRefcounts) {
  BuiltImage image = BuildImage(Options({.refcount_order = 0}));
  SetL2Entry(image, 0, image.refcount_blocks[0] | kCopiedBit);
  SetRefcount(image, image.ClusterOf(image.At(0).host_offset), 0);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(QemuCounts(both, 1, 0));
  EXPECT_TRUE(OursCounts(both, 2, 0));
  EXPECT_EQ(both.ours.CountOf("refcount-overflow"), 1);
  EXPECT_EQ(both.ours.CountOf("refcount-block-shared"), 1);
}

TEST_F(Differences, RefcountTableBehindTheEnd) {
  BuiltImage image = BuildImage(Options());
  PokeField(image, "refcount_table_clusters", 100);
  const CheckedTwice both = Check(image);
  EXPECT_EQ(both.ours.CountOf("refcount-table-invalid"), 1);
  EXPECT_GT(both.ours.corruptions(), both.qemu.corruptions);
}

// --- After a repair ---

// The disk itself is sound, but QEMU opens no image with such a table. Its repair makes snapshots
// of what lies in the file there; ours leaves everything as it is.
TEST_F(Differences, RepairKeepsSnapshots) {
  BuiltImage image =
      BuildImage(Options({.version = 2, .steps = {TakeSnapshot{}, WriteClusters{.count = 8}}}));
  Poke32(image.bytes, image.snapshot_table.offset + 36, 70000);  // bytes of extra data
  Poke64(image.bytes, image.snapshots[0].l1.offset, image.At(0).host_offset);
  const std::string ours = dir_.Write("ours.qcow2", image.bytes);
  const std::string qemus = dir_.Write("qemus.qcow2", image.bytes);
  RunCommand({QCOW2CHECK_PROGRAM, "--repair", "--no-undo", ours});
  RunCommand({"qemu-img", "check", "-q", "-r", "all", "-f", "qcow2", qemus});
  const CheckedTwice after_ours = CheckWithBoth(ours, {"-f", "qcow2"});
  EXPECT_TRUE(QemuGivesUp(after_ours));
  EXPECT_THAT(after_ours.ours.codes(), Contains("snapshot-table-invalid"));
  EXPECT_GT(after_ours.ours.held_back_clusters(), 0);
  const CheckedTwice after_qemus = CheckWithBoth(qemus, {"-f", "qcow2"});
  EXPECT_TRUE(QemuCounts(after_qemus, 0, 10));  // the next repair frees all that it had
}

}  // namespace
}  // namespace qcow2check::testing

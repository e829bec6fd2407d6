// `qcow2check inspect --guest` says where a byte is for every kind of entry, `--cluster` who owns a
// cluster for every kind of owner.
#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "checker/inspect.h"
#include "cli/inspect_command.h"
#include "common/memory_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/damage.h"
#include "tests/image_builder.h"
#include "tests/inspected_image.h"
#include "tests/program.h"
#include "tests/qemu.h"

namespace qcow2check::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr uint64_t kKiB = 1024;
constexpr uint64_t kMiB = uint64_t{1} << 20;

Json Guest(const BuiltImage& image, uint64_t offset) {
  return JsonOf(image.bytes, {absl::StrCat("--guest=", offset)})["guest"];
}

Json Cluster(const BuiltImage& image, uint64_t host_offset) {
  return JsonOf(image.bytes, {absl::StrCat("--cluster=", image.ClusterOf(host_offset))})["cluster"];
}

// The structures of all owners, in order.
std::vector<std::string> OwnersOf(const Json& cluster) {
  std::vector<std::string> names;
  for (const Json& owner : cluster["owners"]) names.push_back(owner["structure"]);
  std::sort(names.begin(), names.end());
  return names;
}

// --- Where is this guest byte? ---

TEST(InspectGuestTest, ANormalClusterGivesThePlaceOfExactlyThatByte) {
  const BuiltImage image = BuildImage({.steps = {WriteClusters{.first = 5}}});
  const uint64_t cluster = 5 * 64 * kKiB;
  const Json guest = Guest(image, cluster + 1234);
  EXPECT_EQ(guest["reads-from"], "cluster");
  EXPECT_EQ(guest["host-offset"], image.At(cluster).host_offset + 1234);
  EXPECT_EQ(guest["l1-index"], 0);
  EXPECT_EQ(guest["l1-entry-offset"], image.l1.offset);
  EXPECT_EQ(guest["l2-table-offset"], image.L2At(0).host_offset);
  EXPECT_EQ(guest["l2-index"], 5);
  EXPECT_EQ(guest["l2-entry"]["entry-offset"], image.At(cluster).entry_offset);
  ASSERT_EQ(guest["refcounts"].size(), 1u);
  EXPECT_EQ(guest["refcounts"][0]["stored"], 1);
  EXPECT_EQ(guest["refcounts"][0]["expected"], 1);
  const uint64_t byte = guest["host-offset"];
  EXPECT_EQ(image.bytes[byte], ReadGuest(image.guest, 16, cluster + 1234, 1)[0]);
}

TEST(InspectGuestTest, StoredAndExpectedRefcountAreToldApart) {
  BuiltImage image = BuildImage({.steps = {WriteClusters{}, TakeSnapshot{}}});
  SetRefcount(image, image.ClusterOf(image.At(0).host_offset), 1);
  const Json refcounts = Guest(image, 0)["refcounts"][0];
  EXPECT_EQ(refcounts["stored"], 1);
  EXPECT_EQ(refcounts["expected"], 2);
}

TEST(InspectGuestTest, ZeroClusters) {
  const BuiltImage image =
      BuildImage({.steps = {WriteZeros{.first = 0}, WriteZeros{.first = 1, .preallocated = true}}});
  const Json plain = Guest(image, 7);
  EXPECT_EQ(plain["reads-from"], "zeros");
  EXPECT_FALSE(plain.contains("host-offset"));
  const Json reserved = Guest(image, 64 * kKiB + 7);
  EXPECT_EQ(reserved["reads-from"], "zeros");
  EXPECT_EQ(reserved["host-offset"], image.At(64 * kKiB).host_offset + 7);
  EXPECT_EQ(reserved["refcounts"][0]["expected"], 1);
}

TEST(InspectGuestTest, UnallocatedWithoutBackingFileReadsAsZeros) {
  const BuiltImage image = BuildImage({.steps = {WriteClusters{}}});
  EXPECT_EQ(Guest(image, 64 * kKiB)["reads-from"], "zeros");
  EXPECT_EQ(Guest(BuildImage({}), 0)["reads-from"], "zeros");  // without an L2 table, too
}

TEST(InspectGuestTest, UnallocatedWithBackingFileNamesIt) {
  const BuiltImage image =
      BuildImage({.backing = BackingOptions{.file = "base.qcow2"}, .steps = {WriteClusters{}}});
  const Json guest = Guest(image, 64 * kKiB);
  EXPECT_EQ(guest["reads-from"], "backing-file");
  EXPECT_EQ(guest["file"], "base.qcow2");
  EXPECT_THAT(TextOf(image.bytes, {"--guest=64K"}),
              HasSubstr("reads from the backing file \"base.qcow2\""));
}

TEST(InspectGuestTest, ACompressedClusterGivesItsRangeAndAllItsHostClusters) {
  const BuiltImage image = BuildImage(
      {.cluster_bits = 9, .steps = {WriteCompressed{.first = 0, .count = 4, .random_bytes = 300}}});
  for (uint64_t i = 0; i < 4; ++i) {
    const BuiltCluster& cluster = image.At(i * 512);
    ASSERT_EQ(cluster.kind, L2EntryKind::kCompressed);
    const Json guest = Guest(image, i * 512 + 3);
    EXPECT_EQ(guest["reads-from"], "compressed-cluster");
    EXPECT_EQ(guest["compressed"]["offset"], cluster.host_offset);
    EXPECT_EQ(guest["compressed"]["length"], cluster.length);
    const uint64_t last = image.ClusterOf(cluster.host_offset + cluster.length - 1);
    EXPECT_EQ(guest["refcounts"].size(), last - image.ClusterOf(cluster.host_offset) + 1);
    for (const Json& one : guest["refcounts"]) EXPECT_EQ(one["stored"], one["expected"]);
  }
}

TEST(InspectGuestTest, SubclustersOfOneClusterReadFromDifferentPlaces) {
  BuiltImage image = BuildImage(
      {.extended_l2 = true, .backing = BackingOptions{}, .steps = {Write{.length = 2 * kKiB}}});
  SetL2Bitmap(image, 0, 0x0000000200000001);  // subcluster 0 allocated, 1 zero, others neither
  EXPECT_EQ(Guest(image, 100)["reads-from"], "cluster");
  EXPECT_EQ(Guest(image, 100)["host-offset"], image.At(0).host_offset + 100);
  const Json zero = Guest(image, 2 * kKiB);
  EXPECT_EQ(zero["subcluster"], 1);
  EXPECT_EQ(zero["reads-from"], "zeros");
  EXPECT_EQ(Guest(image, 63 * kKiB)["reads-from"], "backing-file");
  EXPECT_EQ(Guest(image, 63 * kKiB)["subcluster"], 31);
}

TEST(InspectGuestTest, SubclusterBitsThatContradictEachOther) {
  BuiltImage image = BuildImage({.extended_l2 = true, .steps = {WriteClusters{}}});
  SetL2Bitmap(image, 0, 0x00000001ffffffff);
  const Json both = Guest(image, 0);
  EXPECT_EQ(both["reads-from"], "nowhere");
  EXPECT_EQ(both["notes"].size(), 1u);
  SetL2Bitmap(image, 64 * kKiB, 1);  // allocated, but the entry has no cluster
  EXPECT_EQ(Guest(image, 64 * kKiB)["reads-from"], "nowhere");
}

TEST(InspectGuestTest, AnExternalDataFile) {
  const BuiltImage image =
      BuildImage({.data_file = DataFileOptions{.name = "disk.raw"}, .steps = {WriteClusters{}}});
  const Json guest = Guest(image, 10);  // host offset 0 is a valid place there
  EXPECT_EQ(guest["reads-from"], "data-file");
  EXPECT_EQ(guest["data-file-offset"], 10);
  EXPECT_EQ(guest["file"], "disk.raw");
  EXPECT_THAT(guest["refcounts"], IsEmpty());
}

TEST(InspectGuestTest, BehindTheEndOfTheDisk) {
  const BuiltImage image = BuildImage({.virtual_size = 64 * kMiB});
  const Json near = Guest(image, 64 * kMiB);
  EXPECT_EQ(near["past-end"], true);
  EXPECT_EQ(near["reads-from"], "nowhere");
  const Json far = Guest(image, ~uint64_t{0});
  EXPECT_EQ(far["past-end"], true);
  EXPECT_FALSE(far.contains("l1-entry"));
  EXPECT_THAT(TextOf(image.bytes, {"--guest=1T"}), HasSubstr("behind the end of the virtual disk"));
}

TEST(InspectGuestTest, TablesThatCannotBeFollowed) {
  BuiltImage image = BuildImage({.steps = {WriteClusters{}}});
  SetL1Entry(image, 0, uint64_t{1} << 50);
  EXPECT_EQ(Guest(image, 0)["reads-from"], "nowhere");
  SetL1Entry(image, 0, image.L2At(0).host_offset + 512);
  EXPECT_THAT(Guest(image, 0)["notes"].dump(), HasSubstr("start of a cluster"));
  PokeField(image, "size", uint64_t{1} << 40);  // the L1 table is too small for it
  EXPECT_THAT(Guest(image, uint64_t{1} << 39)["notes"].dump(), HasSubstr("has only 1 entries"));
}

TEST(InspectGuestTest, AClusterBehindTheEndOfTheFile) {
  BuiltImage image = BuildImage({.steps = {WriteClusters{}}});
  EntryOnePastEnd(image);
  const Json guest = Guest(image, 0);
  EXPECT_THAT(guest["notes"].dump(), HasSubstr("behind the end of the file"));
  EXPECT_TRUE(guest["refcounts"][0]["expected"].is_null());
}

TEST(InspectGuestTest, ATableThatHoldsSomethingElse) {
  BuiltImage image = BuildImage(FieldImageOptions());
  L2HasText(image);
  EXPECT_THAT(Guest(image, 0)["notes"].dump(), HasSubstr("something else than an L2 table"));
}

TEST(InspectGuestTest, AgreesWithQemuMap) {
  QCOW2CHECK_SKIP_WITHOUT_QEMU();
  const BuiltImage image = BuildImage(
      {.steps = {WriteClusters{.count = 2}, WriteClusters{.first = 10, .count = 2, .stride = 3},
                 TakeSnapshot{}, WriteClusters{.first = 1}, WriteCompressed{.first = 20},
                 WriteZeros{.first = 13}, WriteZeros{.first = 30}}});
  const TempDir dir;
  const std::string path = dir.Write("disk.qcow2", image.bytes);
  const CommandResult map = RunCommand({"qemu-img", "map", "--output=json", "-f", "qcow2", path});
  const Json extents = JsonIn(map);
  EXPECT_GT(extents.size(), 6u);
  for (const Json& extent : extents) {
    const uint64_t offset = extent["start"].get<uint64_t>() + 77;
    const Json guest = Guest(image, offset);
    if (!extent["data"].get<bool>()) {
      EXPECT_EQ(guest["reads-from"], "zeros") << extent;
    } else if (extent.contains("offset")) {
      EXPECT_EQ(guest["host-offset"], extent["offset"].get<uint64_t>() + 77) << extent;
    } else {
      EXPECT_EQ(guest["reads-from"], "compressed-cluster") << extent;
    }
  }
}

TEST(InspectGuestTest, OffsetsInDecimalHexAndUnits) {
  const auto parsed = [](absl::string_view text) { return ParseByteOffset(text).value_or(42); };
  EXPECT_EQ(parsed("0"), 0u);
  EXPECT_EQ(parsed("4096"), 4096u);
  EXPECT_EQ(parsed("0x10e"), 0x10eu);
  EXPECT_EQ(parsed("0XFF"), 0xffu);
  EXPECT_EQ(parsed("4k"), 4096u);
  EXPECT_EQ(parsed("3M"), 3 * kMiB);
  EXPECT_EQ(parsed("1G"), uint64_t{1} << 30);
  EXPECT_EQ(parsed("15E"), uint64_t{15} << 60);
  EXPECT_EQ(parsed("18446744073709551615"), ~uint64_t{0});
  for (const char* wrong : {"", "K", "-1", "+1", " 1", "1 K", "1KB", "0x", "0x1K", "1.5K", "16E",
                            "18446744073709551616", "abc"}) {
    EXPECT_FALSE(ParseByteOffset(wrong).ok()) << wrong;
  }
}

// --- Who owns this cluster? ---

TEST(InspectClusterTest, EveryKindOfMetadata) {
  const BuiltImage image = BuildImage({.luks = LuksOptions{},
                                       .steps = {WriteClusters{}, TakeSnapshot{}, WriteClusters{}},
                                       .bitmaps = {{.name = "a", .dirty = {{0, kMiB}}}}});
  const auto owner = [&](uint64_t offset) { return OwnersOf(Cluster(image, offset)); };
  EXPECT_THAT(owner(0), ElementsAre("header"));
  EXPECT_THAT(owner(image.l1.offset), ElementsAre("l1-table"));
  EXPECT_THAT(owner(image.refcount_table.offset), ElementsAre("refcount-table"));
  EXPECT_THAT(owner(image.refcount_blocks[0]), ElementsAre("refcount-block"));
  EXPECT_THAT(owner(image.snapshot_table.offset), ElementsAre("snapshot-table"));
  EXPECT_THAT(owner(image.snapshots[0].l1.offset), ElementsAre("snapshot-l1-table"));
  EXPECT_THAT(owner(image.bitmap_directory.offset), ElementsAre("bitmap-directory"));
  EXPECT_THAT(owner(image.bitmaps[0].table_offset), ElementsAre("bitmap-table"));
  EXPECT_THAT(owner(image.bitmaps[0].data_offsets[0]), ElementsAre("bitmap-data"));
  EXPECT_THAT(owner(image.luks_header.offset), ElementsAre("luks-header"));
  EXPECT_THAT(owner(image.L2At(0).host_offset), ElementsAre("l2-table"));
  EXPECT_THAT(owner(image.At(0).host_offset), ElementsAre("data-cluster"));
  EXPECT_EQ(Cluster(image, image.snapshots[0].l1.offset)["owners"][0]["snapshots"],
            Json::array({0}));
  EXPECT_EQ(Cluster(image, image.l1.offset)["owners"][0]["active"], true);
}

TEST(InspectClusterTest, ADataClusterNamesItsGuestOffsetAndEntry) {
  const BuiltImage image = BuildImage({.steps = {WriteClusters{.first = 9}}});
  const BuiltCluster& data = image.At(9 * 64 * kKiB);
  const Json cluster = Cluster(image, data.host_offset);
  EXPECT_EQ(cluster["stored"], 1);
  EXPECT_EQ(cluster["expected"], 1);
  ASSERT_EQ(cluster["owners"].size(), 1u);
  EXPECT_EQ(cluster["owners"][0]["guest-offset"], 9 * 64 * kKiB);
  EXPECT_EQ(cluster["owners"][0]["entry-offset"], data.entry_offset);
  EXPECT_EQ(cluster["owners"][0]["l2-index"], 9);
  EXPECT_EQ(cluster["owners"][0]["active"], true);
}

TEST(InspectClusterTest, CompressedClustersThatShareAHostCluster) {
  const BuiltImage image = BuildImage({.steps = {WriteCompressed{.first = 0, .count = 3}}});
  const Json cluster = Cluster(image, image.At(0).host_offset);
  EXPECT_THAT(OwnersOf(cluster),
              ElementsAre("compressed-cluster", "compressed-cluster", "compressed-cluster"));
  EXPECT_EQ(cluster["expected"], 3);
}

TEST(InspectClusterTest, ACrossLinkHasBothGuestOffsets) {
  BuiltImage image = BuildImage({.steps = {WriteClusters{.count = 2}}});
  TwoGuestOneHost(image);
  const Json cluster = Cluster(image, image.At(0).host_offset);
  EXPECT_EQ(cluster["stored"], 1);
  EXPECT_EQ(cluster["expected"], 2);
  ASSERT_EQ(cluster["owners"].size(), 2u);
  EXPECT_EQ(cluster["owners"][0]["guest-offset"], 0);
  EXPECT_EQ(cluster["owners"][1]["guest-offset"], 64 * kKiB);
}

TEST(InspectClusterTest, DataOnMetadataHasBothOwners) {
  BuiltImage image = BuildImage({.steps = {WriteClusters{.count = 2}}});
  DataEntryIsRefcountBlock(image);
  EXPECT_THAT(OwnersOf(Cluster(image, image.refcount_blocks[0])),
              ElementsAre("data-cluster", "refcount-block"));
}

TEST(InspectClusterTest, SharedThroughOneL2TableNamesAllDisks) {
  const BuiltImage image = BuildImage({.steps = {WriteClusters{}, TakeSnapshot{}, TakeSnapshot{}}});
  const Json data = Cluster(image, image.At(0).host_offset);
  EXPECT_EQ(data["expected"], 3);
  ASSERT_EQ(data["owners"].size(), 1u);
  EXPECT_EQ(data["owners"][0]["active"], true);
  EXPECT_EQ(data["owners"][0]["snapshots"], Json::array({0, 1}));
  const Json table = Cluster(image, image.L2At(0).host_offset);
  EXPECT_THAT(OwnersOf(table), ElementsAre("l2-table"));
  EXPECT_EQ(table["owners"][0]["snapshots"], Json::array({0, 1}));
  EXPECT_EQ(table["owners"][0]["entry-offset"], image.l1.EntryOffset(0));
  EXPECT_THAT(
      TextOf(image.bytes, {absl::StrCat("--cluster=", image.ClusterOf(image.At(0).host_offset))}),
      HasSubstr("of the active disk and snapshots 0, 1"));
}

TEST(InspectClusterTest, SharedThroughTwoL2TablesNamesBothEntries) {
  const BuiltImage image =
      BuildImage({.steps = {WriteClusters{.count = 2}, TakeSnapshot{}, WriteClusters{.first = 1}}});
  const Json cluster = Cluster(image, image.At(0).host_offset);
  EXPECT_EQ(cluster["stored"], 2);
  ASSERT_EQ(cluster["owners"].size(), 2u);
  EXPECT_NE(cluster["owners"][0]["active"], cluster["owners"][1]["active"]);
  for (const Json& owner : cluster["owners"]) EXPECT_EQ(owner["guest-offset"], 0);
}

TEST(InspectClusterTest, AnL2TableInTwoSlots) {
  BuiltImage image = BuildImage(FieldImageOptions());
  TwoL1SameL2(image);
  const Json table = Cluster(image, image.L2At(0).host_offset);
  ASSERT_EQ(table["owners"].size(), 2u);
  EXPECT_EQ(table["owners"][0]["l1-index"], 0);
  EXPECT_EQ(table["owners"][1]["l1-index"], 1);
  const Json data = Cluster(image, image.At(0).host_offset);
  ASSERT_EQ(data["owners"].size(), 2u);
  EXPECT_EQ(data["owners"][1]["guest-offset"], 512 * kMiB);
}

TEST(InspectClusterTest, NobodyUsesALeakedCluster) {
  BuiltImage image = BuildImage({.steps = {WriteClusters{}}});
  SetL2Entry(image, 0, 0);
  const Json cluster = Cluster(image, image.At(0).host_offset);
  EXPECT_EQ(cluster["stored"], 1);
  EXPECT_EQ(cluster["expected"], 0);
  EXPECT_THAT(cluster["owners"], IsEmpty());
}

TEST(InspectClusterTest, WhatWasNotExaminedIsSaid) {
  BuiltImage image = BuildImage(FieldImageOptions());
  L2HasText(image);
  const Json cluster = Cluster(image, image.At(0).host_offset);
  EXPECT_THAT(cluster["owners"], IsEmpty());
  EXPECT_THAT(cluster["notes"].dump(), HasSubstr("not examined: the L2 table"));
}

TEST(InspectClusterTest, BehindTheEndOfTheFile) {
  const BuiltImage image = BuildImage({});
  const Json cluster = JsonOf(image.bytes, {"--cluster=1000000"})["cluster"];
  EXPECT_EQ(cluster["in-file"], false);
  EXPECT_EQ(cluster["stored"], 0);
  EXPECT_TRUE(cluster["expected"].is_null());
  EXPECT_EQ(Inspect(image.bytes, {"--cluster=0xffffffffffffffff"}).exit_code, 1);
}

TEST(InspectClusterTest, FindOwnersAnswersOneQuestion) {
  const BuiltImage image = BuildImage({.steps = {WriteClusters{}}});
  const MemoryFile file(image.bytes);
  const absl::StatusOr<ClusterOwners> owners =
      FindOwners(file, ClusterIndex{image.ClusterOf(image.At(0).host_offset)});
  ASSERT_TRUE(owners.ok()) << owners.status();
  ASSERT_EQ(owners->owners.items.size(), 1u);
  EXPECT_EQ(owners->owners.items[0].owner.structure, Structure::kDataCluster);
  EXPECT_FALSE(FindOwners(MemoryFile({1, 2, 3}), ClusterIndex{0}).ok());
}

}  // namespace
}  // namespace qcow2check::testing

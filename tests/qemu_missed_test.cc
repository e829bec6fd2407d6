// What qemu-img check does not see (M1 to M19 of the project's notes on it: "No errors were found")
// and what its repair makes worse (D1 to D8): ours says what is wrong, and holds back what a repair
// must not free. Places are those of a fresh image with 64 KiB clusters: refcount table at 0x10000,
// refcount block at 0x20000, L1 table at 0x30000, first L2 table at 0x40000, data from 0x50000.
#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/checked_program.h"
#include "tests/disk_image.h"
#include "tests/qemu.h"

namespace qcow2check::testing {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsSupersetOf;

using Ranges = std::vector<GuestRange>;

constexpr uint32_t kBitmapsExtension = 0x23852875;
constexpr uint32_t kFeatureNamesExtension = 0x6803f857;
constexpr uint32_t kCryptoExtension = 0x0537be77;

class MissedByQemu : public ::testing::Test {
 protected:
  void SetUp() override { QCOW2CHECK_SKIP_WITHOUT_QEMU(); }
  static CheckedTwice Check(const DiskImage& image) { return CheckWithBoth(image.path()); }
};

TEST_F(MissedByQemu, M1_TruncatedFileLostItsL1) {
  for (const uint64_t size : {0x30000, 150000}) {
    const DiskImage image("64M");
    image.Io({"write 0 1M"});
    image.Truncate(size);
    const CheckedTwice both = Check(image);
    EXPECT_TRUE(QemuCounts(both, 0, 0)) << size;
    EXPECT_EQ(both.ours.exit_code, 2) << size;
    EXPECT_THAT(both.ours.codes(), IsSupersetOf({"l1-offset-invalid", "file-truncated"}));
    EXPECT_EQ(both.ours.lost_guest_ranges(), (Ranges{{0, 64 << 20}})) << size;
  }
}

TEST_F(MissedByQemu, M2_CompressedClusterBehindTheEnd) {
  const DiskImage image("64M");
  image.Io({"write 0 64k", "write -c -P 1 64k 64k"});
  image.Truncate(0x60000);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(QemuCounts(both, 0, 0));
  EXPECT_EQ(both.ours.exit_code, 2);
  EXPECT_TRUE(both.ours.Has("compressed-past-end"));
  EXPECT_EQ(both.ours.lost_guest_ranges(), (Ranges{{65536, 65536}}));
}

TEST_F(MissedByQemu, M2_SnapshotTableBehindTheEnd) {
  const DiskImage image("64M");
  image.Io({"write 0 64k"});
  image.TakeSnapshot("foo");
  image.Truncate(image.Peek64(64));
  const CheckedTwice both = Check(image);
  EXPECT_THAT(both.ours.codes(), Contains("snapshot-table-invalid"));
  EXPECT_EQ(both.ours.exit_code, 2);
}

TEST_F(MissedByQemu, M3_RefcountsBehindTheEnd) {
  const DiskImage image("64M");
  image.Io({"write 0 64k"});
  image.Poke(0x20000 + 2 * 100, "0001 0001");
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(QemuCounts(both, 0, 0));
  EXPECT_TRUE(OursCounts(both, 0, 2));
  EXPECT_THAT(both.ours.codes(), ElementsAre("refcount-past-end"));
}

TEST_F(MissedByQemu, M4_TwoGuestClustersOnOneHostClusterThatCountsTwo) {
  const DiskImage image("64M");
  image.Io({"write 0 64k"});
  image.Poke64(0x40000, 0x50000);
  image.Poke64(0x40008, 0x50000);
  image.Poke16(0x20000 + 2 * 5, 2);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(QemuCounts(both, 0, 0));
  EXPECT_TRUE(OursCounts(both, 1, 0));
  EXPECT_EQ(both.ours.TheOnly("cross-linked-data")["owners"].size(), 2);
}

// A snapshot shares clusters at the same guest offset: that is no cross-link.
TEST_F(MissedByQemu, M4_SharingWithASnapshotIsNoCrossLink) {
  const DiskImage image("64M");
  image.Io({"write 0 1M"});
  image.TakeSnapshot("foo");
  image.Io({"write 0 64k"});
  EXPECT_TRUE(AllNumbersAgree(Check(image)));
}

// After `qemu-img check -r all` made the sharing legal.
TEST_F(MissedByQemu, M5_GuestDataOnMetadataAfterRepair) {
  const DiskImage image("2G");
  image.Io({"write 0 128k", "write 1G 64k"});
  const uint64_t other_l2 = image.Peek64(0x30010) & ~(uint64_t{1} << 63);
  for (const uint64_t metadata : {uint64_t{0x30000}, other_l2}) {
    image.Poke64(0x40000, metadata | uint64_t{1} << 63);
    RunCommand({"qemu-img", "check", "-q", "-r", "all", image.path()});
    const CheckedTwice both = Check(image);
    EXPECT_TRUE(QemuCounts(both, 0, 0));
    EXPECT_TRUE(OursCounts(both, 1, 0));
    EXPECT_EQ(both.ours.TheOnly("data-on-metadata")["host-offset"], metadata);
  }
}

TEST_F(MissedByQemu, M5_TwoL1EntriesOnOneL2TableAfterRepair) {
  const DiskImage image("2G");
  image.Io({"write 0 128k"});
  image.Poke64(0x30008, image.Peek64(0x30000));
  RunCommand({"qemu-img", "check", "-q", "-r", "all", image.path()});
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(QemuCounts(both, 0, 0));
  EXPECT_THAT(both.ours.codes(), Contains("cross-linked-l2-table"));
  EXPECT_EQ(both.ours.exit_code, 2);
}

TEST_F(MissedByQemu, M6_BrokenCompressedStream) {
  for (const char* type : {"zlib", "zstd"}) {
    const DiskImage image("64M", absl::StrCat("compression_type=", type));
    image.Io({"write -c -P 1 0 64k", "write -c -P 2 64k 64k"});
    image.Poke(0x50002, "ffffffffffffffff");
    EXPECT_TRUE(AllNumbersAgree(Check(image))) << type;
    const CheckedImage with_data = CheckWithProgram(image.path(), {"--verify-data"});
    EXPECT_EQ(with_data.exit_code, 2) << type;
    EXPECT_EQ(with_data.Findings("compressed-broken").size(), 1) << type;
    EXPECT_EQ(with_data.lost_guest_ranges(), (Ranges{{0, 65536}})) << type;
  }
}

// Before a repair both count the refcounts of the neighbours.
TEST_F(MissedByQemu, M7_CompressedSizeTooLarge) {
  const DiskImage image("64M");
  image.Io({"write -c -P 1 0 64k", "write 64k 128k"});
  image.Poke(0x40000, "7fc0");
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(AllNumbersAgree(both));
  EXPECT_EQ(both.ours.exit_code, 2);
  // After a repair all refcounts fit the claim.
  QemuImg({"check", "-q", "-r", "all", image.path()});
  EXPECT_EQ(Check(image).qemu.exit_code, 0);
  EXPECT_THAT(CheckWithProgram(image.path(), {"--verify-data"}).codes(),
              Contains("compressed-too-long"));
}

TEST_F(MissedByQemu, M8_DataFileOffsets) {
  const DiskImage image;
  QemuImg({"create", "-q", "-f", "qcow2", "-o", absl::StrCat("data_file=", image.Beside("data")),
           image.path(), "64M"});
  image.Io({"write 0 256k"});
  const uint64_t l2 = image.Peek64(image.Peek64(40)) & ~(uint64_t{1} << 63);
  image.Poke64(l2 + 8, uint64_t{1} << 63 | 0x30000);
  EXPECT_TRUE(AllNumbersAgree(Check(image)));
  const CheckedImage moved = CheckWithProgram(image.path(), {"--verify-data"});
  EXPECT_THAT(moved.codes(), Contains("data-file-offset-mismatch"));
  image.Poke64(l2 + 8, uint64_t{1} << 63 | 0x10000);
  std::filesystem::resize_file(image.Beside("data"), 0x20000);
  EXPECT_EQ(Check(image).qemu.exit_code, 0);
  const CheckedImage cut = CheckWithProgram(image.path(), {"--verify-data"});
  EXPECT_THAT(cut.codes(), Contains("data-file-too-short"));
  EXPECT_EQ(cut.lost_guest_ranges(), (Ranges{{0x20000, 0x20000}}));
}

TEST_F(MissedByQemu, M9_CopiedWhereItMeansNothing) {
  const DiskImage image("64M");
  image.Io({"write 0 64k"});
  image.Poke64(0x40008, uint64_t{1} << 63);      // unallocated
  image.Poke64(0x40010, uint64_t{1} << 63 | 1);  // zero
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(AllNumbersAgree(both));
  EXPECT_THAT(both.ours.codes(), ElementsAre("stray-l2-flag"));
  EXPECT_EQ(both.ours.CountOf("stray-l2-flag"), 2);
}

TEST_F(MissedByQemu, M10_ZeroFlagInVersion2) {
  const DiskImage image("64M", "compat=0.10");
  image.Io({"write 0 64k"});
  image.Poke64(0x40000, uint64_t{1} << 63 | 0x50001);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(QemuCounts(both, 0, 0));
  EXPECT_TRUE(OursCounts(both, 1, 0));
  EXPECT_THAT(both.ours.codes(), ElementsAre("zero-flag-not-allowed"));
}

TEST_F(MissedByQemu, M10_Bit0OfAnExtendedEntry) {
  const DiskImage image("64M", "extended_l2=on");
  image.Io({"write 0 64k"});
  image.Poke(0x40007, "01");
  EXPECT_THAT(Check(image).ours.codes(), ElementsAre("stray-l2-flag"));
}

TEST_F(MissedByQemu, M11_DirtyAndCorruptBits) {
  const DiskImage image("64M", "lazy_refcounts=on");
  image.Io({"write 0 64k"});
  image.Poke64(72, 1);
  const CheckedTwice dirty = Check(image);
  EXPECT_TRUE(AllNumbersAgree(dirty));
  EXPECT_THAT(dirty.ours.codes(), ElementsAre("dirty-bit"));
  image.Poke64(72, 2);
  const CheckedTwice corrupt = Check(image);
  EXPECT_TRUE(QemuCounts(corrupt, 0, 0));
  EXPECT_TRUE(OursCounts(corrupt, 1, 0));
  EXPECT_THAT(corrupt.ours.codes(), ElementsAre("corrupt-bit"));
}

TEST_F(MissedByQemu, M12_VirtualSize) {
  const DiskImage image("64M");
  image.Io({"write 0 64k", "write 1M 64k"});
  image.Poke64(24, (1 << 20) - 100);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(AllNumbersAgree(both));
  EXPECT_THAT(both.ours.codes(), ElementsAre("data-past-virtual-end", "virtual-size-unaligned"));
}

TEST_F(MissedByQemu, M13_DuplicateSnapshots) {
  const DiskImage image("64M");
  image.TakeSnapshot("foo");
  image.TakeSnapshot("bar");
  const uint64_t table = image.Peek64(64);
  const std::string bytes = image.Bytes(table, image.size_bytes() - table);
  image.PokeBytes(table + bytes.find("bar"), "foo");
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(AllNumbersAgree(both));
  EXPECT_THAT(both.ours.codes(), ElementsAre("snapshot-duplicate"));
}

TEST_F(MissedByQemu, M13_SnapshotL1Shortened) {
  const DiskImage image("1G");
  image.Io({"write 0 64k", "write 512M 64k"});
  image.TakeSnapshot("foo");
  image.Io({"write 512M 64k"});
  const uint64_t table = image.Peek64(64);
  ASSERT_EQ(image.Peek32(table + 8), 2);
  image.Poke32(table + 8, 1);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(QemuCounts(both, 0, 2));
  EXPECT_EQ(both.ours.leaks(), 2);
  EXPECT_THAT(both.ours.codes(), IsSupersetOf({"snapshot-size-mismatch", "leak-suspicious"}));
  EXPECT_EQ(both.ours.held_back_clusters(), 2);
}

TEST_F(MissedByQemu, M13_SnapshotCountZeroed) {
  const DiskImage image("64M");
  image.Io({"write 0 64k"});
  image.TakeSnapshot("foo");
  image.Io({"write 0 64k"});
  image.Poke32(60, 0);
  const CheckedTwice both = Check(image);
  EXPECT_EQ(both.qemu.exit_code, 3);
  EXPECT_EQ(both.ours.leaks(), both.qemu.leaks);
  EXPECT_THAT(both.ours.codes(), IsSupersetOf({"snapshot-table-invalid", "leak-suspicious"}));
  EXPECT_EQ(both.ours.held_back_clusters(), both.ours.leaks());
}

TEST_F(MissedByQemu, M14_HeaderExtensions) {
  const DiskImage image("64M");
  const uint64_t names = image.ExtensionData(kFeatureNamesExtension);
  const uint64_t end = names + image.Peek32(names - 4);
  image.Poke32(end, 0x12345678);               // unknown, empty
  image.Poke32(end + 8, 0x12345678);           // and again
  image.Poke64(80, uint64_t{1} << 20);         // an unknown compatible feature
  image.PokeBytes(0x8000, "somebody's note");  // behind the extensions
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(AllNumbersAgree(both));
  EXPECT_THAT(both.ours.codes(), ElementsAre("extension-duplicate", "extension-unknown",
                                             "header-area-bytes", "unknown-feature"));
}

TEST_F(MissedByQemu, M14_HeaderLengthNotAMultipleOf8) {
  const DiskImage image("64M");
  image.Zero(112, 512);
  image.Poke32(100, 109);
  EXPECT_TRUE(Check(image).ours.Has("header-length-unaligned"));
}

TEST_F(MissedByQemu, M15_DamagedBackingFile) {
  const DiskImage base("64M");
  base.Io({"write 0 64k"});
  const DiskImage image;
  QemuImg({"create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base.path(), image.path()});
  base.Zero(0x20000, 64);
  EXPECT_TRUE(AllNumbersAgree(Check(image)));
  const CheckedImage chain = CheckWithProgram(image.path(), {"--chain"});
  EXPECT_EQ(chain.exit_code, 2);
  EXPECT_THAT(chain.codes(), Contains("chain-layer-bad"));
}

// What is neither qcow2 nor raw is not called clean: nobody looked.
TEST_F(MissedByQemu, M15_BackingFileOfAnotherFormat) {
  const DiskImage base("64M");
  const DiskImage image;
  QemuImg({"create", "-q", "-f", "vmdk", base.path(), "64M"});
  QemuImg({"create", "-q", "-f", "qcow2", "-F", "vmdk", "-b", base.path(), image.path()});
  const CheckedImage chain = CheckWithProgram(image.path(), {"--chain"});
  EXPECT_EQ(chain.exit_code, 0);
  EXPECT_EQ(chain.data_state(), "unknown");
  EXPECT_FALSE(chain.json["coverage"]["complete"]);
  EXPECT_EQ(chain.json["chain"][0]["verdict"], "unsupported");
  EXPECT_FALSE(chain.json["chain"][0].contains("virtual-size"));
}

TEST_F(MissedByQemu, M16_BitmapSemantics) {
  const DiskImage image("1M");
  QemuImg({"bitmap", "--add", image.path(), "one"});
  QemuImg({"bitmap", "--add", image.path(), "two"});
  image.Io({"write 0 128k"});
  const uint64_t directory = image.Peek64(image.ExtensionData(kBitmapsExtension) + 16);
  const uint64_t table = image.Peek64(directory);
  const uint64_t data = image.Peek64(table);
  ASSERT_GT(data, 1);
  EXPECT_TRUE(AllNumbersAgree(Check(image)));
  image.Poke(data + 100, "01");  // the disk has 16 granules: two bytes of bits
  const CheckedTwice tail = Check(image);
  EXPECT_TRUE(AllNumbersAgree(tail));
  EXPECT_THAT(tail.ours.codes(), ElementsAre("bitmap-tail-bits"));
  image.Poke(data + 100, "00");
  image.Poke32(directory + 12, 1);
  const CheckedTwice in_use = Check(image);
  EXPECT_TRUE(AllNumbersAgree(in_use));
  EXPECT_THAT(in_use.ours.codes(), ElementsAre("bitmap-in-use"));
}

// qemu-img sees only that a cluster is referenced twice.
TEST_F(MissedByQemu, M16_BitmapsShareData) {
  const DiskImage image("1M");
  QemuImg({"bitmap", "--add", image.path(), "one"});
  QemuImg({"bitmap", "--add", image.path(), "two"});
  image.Io({"write 0 128k"});
  const uint64_t directory = image.Peek64(image.ExtensionData(kBitmapsExtension) + 16);
  const uint64_t data = image.Peek64(image.Peek64(directory));
  const uint64_t second_table = image.Peek64(directory + 32);
  const uint64_t second_data = image.Peek64(second_table);
  ASSERT_NE(data, second_data);
  image.Poke64(second_table, data);
  image.Poke16(0x20000 + data / 0x10000 * 2, 2);
  image.Poke16(0x20000 + second_data / 0x10000 * 2, 0);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(QemuCounts(both, 0, 0));
  EXPECT_TRUE(OursCounts(both, 1, 0));
  EXPECT_THAT(both.ours.codes(), ElementsAre("metadata-overlap"));
}

TEST_F(MissedByQemu, M17_LuksHeader) {
  const DiskImage image;
  if (!CreateLuks(image, "", "64M")) GTEST_SKIP() << "no LUKS on this machine";
  const uint64_t luks = image.Peek64(image.ExtensionData(kCryptoExtension));
  EXPECT_EQ(CheckWithProgram(image.path()).exit_code, 0);
  image.PokeBytes(luks, "LOST");
  const CheckedImage ours = CheckWithProgram(image.path());
  EXPECT_EQ(ours.exit_code, 2);
  EXPECT_THAT(ours.codes(), ElementsAre("luks-header-invalid"));
  EXPECT_EQ(ours.data_state(), "lost");
}

// "No harm to data", says qemu-img. The table that was there is found among the orphans.
TEST_F(MissedByQemu, M18_L1EntryPointsToAClusterOfZeros) {
  const DiskImage image("64M");
  image.Io({"write 0 1M", "write -P 0 1M 64k"});
  const uint64_t zeros = 0x50000 + 16 * 0x10000;
  image.Poke64(0x30000, zeros | uint64_t{1} << 63);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(QemuCounts(both, 0, 17));
  EXPECT_EQ(both.ours.leaks(), 17);
  EXPECT_THAT(both.ours.codes(), IsSupersetOf({"orphan-l2-table", "leak-suspicious"}));
  EXPECT_EQ(both.ours.TheOnly("orphan-l2-table")["host-offset"], 0x40000);
  EXPECT_EQ(both.ours.held_back_clusters(), 17);
  EXPECT_NE(both.ours.data_state(), "intact");
}

TEST_F(MissedByQemu, M18_L1EntryPointsToUnrelatedData) {
  const DiskImage image("64M");
  image.Io({"write -P 0x21 0 1M"});
  image.Poke64(0x30000, 0x80000 | uint64_t{1} << 63);
  const CheckedTwice both = Check(image);
  EXPECT_EQ(both.ours.exit_code, 2);
  EXPECT_EQ(both.ours.leaks(), 16);
  EXPECT_THAT(both.ours.codes(), IsSupersetOf({"l1-lost", "lost-l2-table", "orphan-l2-table"}));
  EXPECT_EQ(both.ours.held_back_clusters(), 16);
  EXPECT_EQ(both.ours.lost_guest_bytes(), 64 << 20);
}

TEST_F(MissedByQemu, M19_ClusterBitsDamaged) {
  const DiskImage image("64M");
  image.Io({"write 0 1M"});
  image.Poke32(20, 15);
  const CheckedTwice both = Check(image);
  EXPECT_THAT(both.ours.codes(), Contains("cluster-bits-suspect"));
  EXPECT_EQ(both.ours.TheOnly("cluster-bits-suspect")["expected"], 16);
  EXPECT_EQ(both.ours.held_back_clusters(), both.ours.leaks());
}

// --- What a repair by qemu-img destroys: held back, or not called damage at all ---

class MadeWorseByRepair : public MissedByQemu {};

// D1: the flipped bit is below the cluster size.
TEST_F(MadeWorseByRepair, D1_FlippedLowBitInAnL1Entry) {
  const DiskImage image("64M");
  image.Io({"write 0 1M"});
  image.Poke64(0x30000, uint64_t{1} << 63 | 0x40200);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(OursCounts(both, 1, 0));
  EXPECT_EQ(both.ours.TheOnly("l2-table-misaligned")["expected"], uint64_t{1} << 63 | 0x40000);
}

TEST_F(MadeWorseByRepair, D2_FlippedHighBitInAnL1Entry) {
  const DiskImage image("64M");
  image.Io({"write 0 1M"});
  image.Poke64(0x30000, uint64_t{1} << 63 | uint64_t{1} << 40 | 0x40000);
  const CheckedTwice both = Check(image);
  EXPECT_EQ(both.ours.leaks(), 17);
  EXPECT_EQ(both.ours.TheOnly("l2-table-past-end")["expected"], 0x40000);
  EXPECT_EQ(both.ours.held_back_clusters(), 17);
}

// D3 is Iotest080.SnapshotL1OffsetAndSize, D4 Iotest271.CompressedWithBitmap.
TEST_F(MadeWorseByRepair, D5_L2EntryBehindTheEnd) {
  const DiskImage image("64M");
  image.Io({"write 0 1M"});
  image.Poke64(0x40018, uint64_t{1} << 63 | uint64_t{1} << 33 | 0x80000);
  const CheckedTwice both = Check(image);
  EXPECT_EQ(both.ours.TheOnly("data-past-end")["expected"], 0x80000);
  EXPECT_EQ(both.ours.held_back_clusters(), 1);
}

TEST_F(MadeWorseByRepair, D6_BitmapsAutoclearBitLost) {
  const DiskImage image("1M");
  QemuImg({"bitmap", "--add", image.path(), "one"});
  image.Io({"write 0 64k"});
  image.Poke64(88, 0);
  const CheckedTwice both = Check(image);
  EXPECT_EQ(both.ours.leaks(), both.qemu.leaks);
  EXPECT_EQ(both.ours.corruptions(), both.qemu.corruptions);
  EXPECT_TRUE(both.ours.Has("bitmaps-stale"));
}

TEST_F(MadeWorseByRepair, D7_DirtyAndALiveClusterWithRefcount0) {
  const DiskImage image("64M");
  image.Io({"write 0 128k"});
  image.Poke16(0x20000 + 2 * 5, 0);
  image.Poke64(72, 1);
  const CheckedTwice both = Check(image);
  EXPECT_EQ(both.ours.corruptions(), both.qemu.corruptions);
  // Without lazy refcounts this is no expected state.
  EXPECT_TRUE(both.ours.Has("refcount-zero-in-use"));
  EXPECT_EQ(both.ours.data_state(), "at-risk");
}

TEST_F(MadeWorseByRepair, D8_OneSnapshotAtOffset0) {
  const DiskImage image("64M");
  image.Io({"write 0 128k"});
  image.Poke32(60, 1);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(OursCounts(both, 1, 0));
  EXPECT_THAT(both.ours.codes(), ElementsAre("snapshot-table-invalid"));
}

}  // namespace
}  // namespace qcow2check::testing

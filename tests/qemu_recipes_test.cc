// The scenarios of QEMU's own test suite, as far as a check can see them, under the numbers they
// have there: what we count is what qemu-img counts, or the test says why not.
//
// The layout of a fresh image with 64 KiB clusters: header, refcount table at 0x10000, refcount
// block at 0x20000, L1 table at 0x30000, the first L2 table at 0x40000, the first data at 0x50000.
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/checked_program.h"
#include "tests/disk_image.h"
#include "tests/qemu.h"

namespace qcow2check::testing {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::IsSupersetOf;

class QemuRecipe : public ::testing::Test {
 protected:
  void SetUp() override { QCOW2CHECK_SKIP_WITHOUT_QEMU(); }
};

CheckedTwice Check(const DiskImage& image) { return CheckWithBoth(image.path()); }

// An error of the given event in the file below, while `commands` run; the image is closed after.
void IoWithErrors(const DiskImage& image, const std::string& event, int error_number,
                  const std::vector<std::string>& commands) {
  const std::string rules = absl::StrFormat(
      "[inject-error]\nevent = \"%s\"\nerrno = \"%d\"\nonce = \"on\"\n", event, error_number);
  const std::string config = image.Beside("blkdebug.conf");
  WriteFile(config, std::vector<uint8_t>(rules.begin(), rules.end()));
  std::vector<std::string> argv = {"qemu-io", "-f", "qcow2", "-t", "unsafe"};
  for (const std::string& command : commands) argv.insert(argv.end(), {"-c", command});
  argv.push_back(absl::StrCat("blkdebug:", config, ":", image.path()));
  RunCommand(argv);  // whether a command fails is the point
}

// --- 026, 098, 121: refcount structures under way ---

class Iotest026 : public QemuRecipe {};

// An error at any step of an allocation may waste clusters but must not lose any.
TEST_F(Iotest026, ErrorsWhileAllocating) {
  for (const char* event :
       {"l1_update", "l2_load", "l2_update", "l2_alloc_write", "write_aio", "refblock_load",
        "refblock_update_part", "refblock_alloc", "refblock_alloc_hookup", "refblock_alloc_write",
        "refblock_alloc_write_blocks", "refblock_alloc_write_table", "refblock_alloc_switch_table",
        "cluster_alloc"}) {
    const DiskImage image("1G", "cluster_size=1024");
    IoWithErrors(image, event, 28, {"write 0 600k", "write 512M 64k"});
    const CheckedTwice both = Check(image);
    EXPECT_TRUE(AllNumbersAgree(both)) << event;
    EXPECT_EQ(both.ours.corruptions(), 0) << event;
  }
}

TEST_F(Iotest026, ErrorsWhileTheL1TableGrows) {
  for (const char* event :
       {"l1_grow_alloc_table", "l1_grow_write_table", "l1_grow_activate_table"}) {
    const DiskImage image("1M", "cluster_size=1024");
    image.Io({"write 0 64k"});
    IoWithErrors(image, event, 5, {"truncate 2G", "write 1G 64k"});
    const CheckedTwice both = Check(image);
    EXPECT_TRUE(AllNumbersAgree(both)) << event;
    EXPECT_EQ(both.ours.corruptions(), 0) << event;
  }
}

class Iotest098 : public QemuRecipe {};

TEST_F(Iotest098, ErrorsWhileAnImageIsEmptied) {
  for (const char* event :
       {"l1_update", "empty_image_prepare", "reftable_update", "refblock_alloc"}) {
    const DiskImage base("1M");
    const DiskImage image;
    QemuImg({"create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base.path(), image.path()});
    image.Io({"write 0 1M"});
    const std::string rules =
        absl::StrCat("[inject-error]\nevent = \"", event, "\"\nerrno = \"5\"\n");
    const std::string config = image.Beside("blkdebug.conf");
    WriteFile(config, std::vector<uint8_t>(rules.begin(), rules.end()));
    RunCommand({"qemu-img", "commit", "-q", absl::StrCat("blkdebug:", config, ":", image.path())});
    const CheckedTwice both = Check(image);
    EXPECT_EQ(both.ours.leaks(), both.qemu.leaks) << event;
    // M18: an L1 table emptied in the middle of a commit looks like one that was lost.
    EXPECT_EQ(both.ours.corruptions(), both.qemu.corruptions + both.ours.CountOf("l1-lost"))
        << event;
  }
}

class Iotest121 : public QemuRecipe {};

TEST_F(Iotest121, RefcountTableGrows) {
  const DiskImage image("64M", "cluster_size=512,refcount_bits=64");
  image.Io({"write 0 5M", "write 20M 1M"});
  EXPECT_TRUE(AllNumbersAgree(Check(image)));
  EXPECT_GT(image.Peek32(56), 1) << "the refcount table has not grown";
}

// --- 029, 054, 114: unusual headers ---

class Iotest029 : public QemuRecipe {};

TEST_F(Iotest029, VmStateAndASmallSnapshotL1) {
  const DiskImage image("1k", "cluster_size=512");
  image.Io({"write 0 1k", "write -b 64k 4k"});
  image.TakeSnapshot("foo");
  image.Io({"write -b 1k 1k"});
  EXPECT_TRUE(AllNumbersAgree(Check(image)));
  QemuImg({"snapshot", "-a", "foo", image.path()});
  EXPECT_TRUE(AllNumbersAgree(Check(image)));
}

class Iotest054 : public QemuRecipe {};

TEST_F(Iotest054, OneExabyteInTheHeader) {
  const DiskImage image("1G", "cluster_size=4096");
  image.Poke64(24, uint64_t{1} << 60);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(QemuGivesUp(both));
  // It goes on where qemu-img refuses.
  EXPECT_TRUE(OursCounts(both, 1, 0));
  EXPECT_THAT(both.ours.codes(), ElementsAre("l1-too-small"));
}

class Iotest114 : public QemuRecipe {};

TEST_F(Iotest114, UnknownBackingFormat) {
  const DiskImage base("64M");
  const DiskImage image;
  QemuImg({"create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base.path(), image.path()});
  // The first extension is the backing format: its text.
  image.PokeBytes(112 + 8, "foo!!");
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(QemuGivesUp(both));
  EXPECT_TRUE(OursCounts(both, 0, 0));  // the image itself is sound
}

// --- 036: feature bits ---

class Iotest036 : public QemuRecipe {};

TEST_F(Iotest036, UnknownIncompatibleFeatures) {
  const DiskImage image("64M");
  image.Poke64(72, uint64_t{7} << 61);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(QemuGivesUp(both));
  EXPECT_EQ(both.ours.verdict(), "unsupported");
  EXPECT_EQ(both.ours.exit_code, 1);
  EXPECT_THAT(both.ours.TheOnly("unknown-incompatible-feature")["message"].get<std::string>(),
              ::testing::HasSubstr("61"));
}

TEST_F(Iotest036, UnknownAutoclearFeature) {
  const DiskImage image("64M");
  image.Poke64(88, uint64_t{1} << 63);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(AllNumbersAgree(both));
  EXPECT_THAT(both.ours.codes(), ElementsAre("unknown-feature"));
}

// --- 039: lazy refcounts ---

class Iotest039 : public QemuRecipe {};

TEST_F(Iotest039, KilledWithLazyRefcounts) {
  const DiskImage image("128M", "lazy_refcounts=on");
  image.Io({"write 64k 64k"});
  QemuIoKilled(image.path(), {"write 0 512", "flush"});
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(BothCount(both, 2, 0));
  EXPECT_THAT(both.ours.codes(), ElementsAre("dirty-bit", "refcount-lazy"));
  EXPECT_EQ(both.ours.data_state(), "intact");
}

TEST_F(Iotest039, ClosedWithLazyRefcounts) {
  const DiskImage image("128M", "lazy_refcounts=on");
  image.Io({"write 0 512"});
  EXPECT_TRUE(AllNumbersAgree(Check(image)));
}

// --- 060: the corruption test ---

class Iotest060 : public QemuRecipe {};

TEST_F(Iotest060, L1EntryPointsToL1Itself) {
  const DiskImage image("64M");
  image.Poke(0x30000, "80 00 00 00 00 03 00 00");
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(BothCount(both, 1, 0));
  EXPECT_THAT(both.ours.codes(), IsSupersetOf({"refcount-too-low", "data-on-metadata"}));
}

TEST_F(Iotest060, DataEntryPointsToRefcountBlock) {
  const DiskImage image("64M");
  image.Truncate(0x50000);
  image.Poke64(0x30000, 0x8000000000040000);
  image.Poke16(0x20008, 1);
  image.Poke64(0x40000, 0x8000000000020000);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(BothCount(both, 2, 0));
  EXPECT_THAT(both.ours.codes(),
              IsSupersetOf({"refcount-block-shared", "refcount-too-low", "data-on-metadata"}));
}

TEST_F(Iotest060, NewL2EntryPointsToInactiveL2) {
  const DiskImage image("64M");
  image.Io({"write 0 512"});
  image.TakeSnapshot("foo");
  image.Io({"write 0 512"});
  image.Poke64(0x80000, 0x8000000000040000);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(BothCount(both, 1, 1));
  EXPECT_THAT(both.ours.codes(), IsSupersetOf({"data-on-metadata", "leak-suspicious"}));
}

TEST_F(Iotest060, HeaderRefcountZero) {
  const DiskImage image("64M");
  image.Poke16(0x20000, 0);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(BothCount(both, 1, 0));
  EXPECT_THAT(both.ours.codes(), Contains("refcount-zero-in-use"));
}

// D1: qemu-img parses whatever lies at the misaligned place as an L2 table and reports what it
// finds there; ours is the one wrong pointer, and where it should lead.
TEST_F(Iotest060, L1EntryMisaligned) {
  const DiskImage image("64M");
  image.Io({"write 0 128k"});
  image.Poke64(0x30000, 0x8000000000042a00);
  const CheckedTwice both = Check(image);
  EXPECT_GT(both.qemu.corruptions, 1);
  EXPECT_TRUE(OursCounts(both, 1, 0));
  EXPECT_EQ(both.ours.TheOnly("l2-table-misaligned")["expected"], 0x8000000000040000);
  EXPECT_EQ(both.ours.data_state(), "at-risk");
}

TEST_F(Iotest060, DataEntryMisaligned) {
  const DiskImage image("64M");
  image.Io({"write 0 64k"});
  image.Poke64(0x40000, 0x8000000000052a00);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(BothCount(both, 2, 0));
  EXPECT_EQ(both.ours.TheOnly("data-misaligned")["expected"], 0x8000000000050000);
}

TEST_F(Iotest060, ZeroEntryMisaligned) {
  const DiskImage image("64M");
  image.Io({"write 0 64k"});
  image.Poke64(0x40000, 0x8000000000052a01);
  const CheckedTwice both = Check(image);
  EXPECT_EQ(both.ours.corruptions(), both.qemu.corruptions);
  EXPECT_EQ(both.ours.leaks(), both.qemu.leaks);
  EXPECT_THAT(both.ours.codes(), Contains("zero-cluster-misaligned"));
}

TEST_F(Iotest060, PreallocatedZeroClusterMisaligned) {
  const DiskImage image("64M");
  image.Io({"write 0 64k", "discard 0 64k"});
  image.Poke64(0x40000, 0x8000000000002a01);
  const CheckedTwice both = Check(image);
  EXPECT_EQ(both.ours.corruptions(), both.qemu.corruptions);
  EXPECT_EQ(both.ours.leaks(), both.qemu.leaks);
  EXPECT_THAT(both.ours.codes(), Contains("zero-cluster-misaligned"));
}

TEST_F(Iotest060, EmptyRefcountTable) {
  const DiskImage image("64M");
  image.Poke64(0x10000, 0);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(BothCount(both, 3, 0));
  EXPECT_THAT(both.ours.codes(), Contains("refcount-zero-in-use"));
}

TEST_F(Iotest060, EmptyRefcountTableWithData) {
  const DiskImage image("64M");
  image.Io({"write 0 64k"});
  image.Poke64(0x10000, 0);
  const CheckedTwice both = Check(image);
  // Two more than the five clusters of the recipe: the L1 and the L2 entry have COPIED set.
  EXPECT_EQ(both.ours.CountOf("refcount-zero-in-use"), 5);
  EXPECT_TRUE(BothCount(both, 7, 0));
}

TEST_F(Iotest060, EmptyRefcountBlock) {
  const DiskImage image("64M");
  image.Poke64(0x20000, 0);
  EXPECT_TRUE(BothCount(Check(image), 4, 0));
}

TEST_F(Iotest060, RefcountTableWithoutClusters) {
  const DiskImage image("64M");
  image.Io({"write 0 64k"});
  image.Poke32(56, 0);
  const CheckedTwice both = Check(image);
  EXPECT_THAT(both.ours.codes(), IsSupersetOf({"refcount-table-invalid", "refcount-zero-in-use"}));
  // qemu-img does not count the missing table itself.
  EXPECT_EQ(both.ours.corruptions(), both.qemu.corruptions + 1);
  EXPECT_EQ(both.ours.leaks(), both.qemu.leaks);
}

TEST_F(Iotest060, DirtyWithMisalignedRefcountBlock) {
  const DiskImage image("64M");
  image.Io({"write 0 64k"});
  image.Poke64(0x10000, 0x00000000ffff2a00);
  image.Poke64(72, 1);
  const CheckedTwice both = Check(image);
  EXPECT_THAT(both.ours.codes(), IsSupersetOf({"refcount-block-misaligned", "dirty-bit"}));
}

// qemu-img cannot look up any refcount and gives each cluster a check error; ours names the one
// entry that is wrong, and counts the clusters that have no refcount now.
TEST_F(Iotest060, RefcountBlockMisaligned) {
  const DiskImage image("64M");
  image.Io({"write 0 128k"});
  image.Poke64(0x10000, 0x2a00);
  const CheckedTwice both = Check(image);
  EXPECT_EQ(both.ours.CountOf("refcount-block-misaligned"), 1);
  EXPECT_EQ(both.ours.exit_code, 2);
}

TEST_F(Iotest060, RefcountBlockOutsideTheFile) {
  const DiskImage image("64M");
  image.Poke64(0x10008, 0x00ffffff00000000);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(BothCount(both, 1, 0));
  EXPECT_THAT(both.ours.codes(), ElementsAre("refcount-block-past-end"));
}

TEST_F(Iotest060, RefcountBlockOutsideTheFileWithNarrowRefcounts) {
  const DiskImage image("64M", "refcount_bits=1");
  image.Poke64(0x10008, 0x0000001000000000);
  EXPECT_TRUE(BothCount(Check(image), 1, 0));
  image.Poke64(0x10010, 0x0000000000000200);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(OursCounts(both, 2, 0));
  EXPECT_THAT(both.ours.codes(),
              IsSupersetOf({"refcount-block-past-end", "refcount-block-misaligned"}));
}

// --- 061: other versions ---

class Iotest061 : public QemuRecipe {};

TEST_F(Iotest061, DowngradeAndUpgrade) {
  const DiskImage image("64M", "compat=1.1,lazy_refcounts=on");
  image.Io({"write -P 1 0 128k", "write -z 0 64k", "write -z -u 128k 64k"});
  QemuImg({"amend", "-o", "compat=0.10", image.path()});
  EXPECT_TRUE(AllNumbersAgree(Check(image)));
  QemuImg({"amend", "-o", "compat=1.1,lazy_refcounts=on", image.path()});
  EXPECT_TRUE(AllNumbersAgree(Check(image)));
}

TEST_F(Iotest061, DowngradeOfADirtyImage) {
  const DiskImage image("64M", "compat=1.1,lazy_refcounts=on");
  QemuIoKilled(image.path(), {"write 0 128k", "flush"});
  QemuImg({"amend", "-q", "-o", "compat=0.10", image.path()});
  EXPECT_TRUE(AllNumbersAgree(Check(image)));
}

TEST_F(Iotest061, ResizeWithSnapshots) {
  const DiskImage image("64M");
  image.Io({"write 24M 64k"});
  image.TakeSnapshot("foo");
  QemuImg({"resize", "-q", image.path(), "1G"});
  image.Io({"write 900M 64k"});
  EXPECT_TRUE(AllNumbersAgree(Check(image)));
}

// --- 080: every header field out of range ---

class Iotest080 : public QemuRecipe {
 protected:
  // qemu-img refuses the image; ours examines it and names the field.
  static void ExpectRefusedAndNamed(const DiskImage& image, const std::string& code) {
    const CheckedTwice both = Check(image);
    EXPECT_TRUE(QemuGivesUp(both));
    EXPECT_THAT(both.ours.codes(), Contains(code));
    EXPECT_NE(both.ours.exit_code, 0);
    EXPECT_LT(both.ours.bytes_read(), 4 << 20);
  }
};

TEST_F(Iotest080, HugeHeaderLength) {
  const DiskImage image("64M");
  for (const uint64_t length : {0xffffffffu, 0x7fffffffu}) {
    image.Poke32(100, length);
    ExpectRefusedAndNamed(image, "header-length-invalid");
  }
}

TEST_F(Iotest080, HugeExtension) {
  const DiskImage image("64M");
  image.Poke32(112, 0x12345678);
  image.Poke32(116, 0x7fffffff);
  for (const uint64_t backing_offset : {~uint64_t{0}, uint64_t{0}}) {
    image.Poke64(8, backing_offset);
    ExpectRefusedAndNamed(image, "extension-overflow");
  }
  // The area for extensions ends where the backing file name starts: inside the first one.
  image.Poke64(8, 0x74);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(QemuGivesUp(both));
}

TEST_F(Iotest080, RefcountTableSizeAndOffset) {
  const DiskImage image("64M");
  for (const uint64_t clusters : {0xffffffffu, 0x00020001u}) {
    image.Poke32(56, clusters);
    ExpectRefusedAndNamed(image, "refcount-table-invalid");
  }
  image.Poke32(56, 1);
  for (const uint64_t offset : {0x1234567890abcdefu, 0xffffffffffff0000u}) {
    image.Poke64(48, offset);
    ExpectRefusedAndNamed(image, "refcount-table-invalid");
  }
}

TEST_F(Iotest080, SnapshotCountAndOffset) {
  const DiskImage image("64M");
  image.Poke32(60, 0xffffffff);
  image.Poke64(64, 0x30000);
  ExpectRefusedAndNamed(image, "snapshot-too-many");
  image.Poke32(60, 0x10000);
  image.Poke64(64, 0x1234567890abcdef);
  ExpectRefusedAndNamed(image, "snapshot-table-invalid");
}

TEST_F(Iotest080, L1SizeAndOffset) {
  const DiskImage image("64M");
  for (const uint64_t size : {0xffffffffu, 0x7fffffffu}) {
    image.Poke32(36, size);
    ExpectRefusedAndNamed(image, "l1-too-large");
  }
  image.Poke32(36, 0);
  ExpectRefusedAndNamed(image, "l1-too-small");
  image.Poke32(36, 1);
  for (const uint64_t offset : {0x1234567890abcdefu, 0xffffffffffff0000u}) {
    image.Poke64(40, offset);
    ExpectRefusedAndNamed(image, "l1-offset-invalid");
  }
}

TEST_F(Iotest080, HugeBackingFileName) {
  const DiskImage image("64M");
  image.Poke64(8, 0x1000);
  image.Poke32(16, 0xffffffff);
  ExpectRefusedAndNamed(image, "backing-name-invalid");
}

// D3: the clusters of the snapshot look leaked, but they are its only copy.
TEST_F(Iotest080, SnapshotL1OffsetAndSize) {
  for (const char* l1 : {"0000000000400200 00000001", "0000000000060000 10000000"}) {
    const DiskImage image("64M");
    image.Io({"write 0 512"});
    image.TakeSnapshot("test");
    image.Io({"write 0 512"});
    image.Poke(0x70000, l1);
    const CheckedTwice both = Check(image);
    EXPECT_TRUE(BothCount(both, 1, 3)) << l1;
    EXPECT_THAT(both.ours.codes(), IsSupersetOf({"snapshot-l1-invalid", "leak-suspicious"}));
    EXPECT_EQ(both.ours.held_back_clusters(), 3);
  }
}

// --- 108: refcounts that must be rebuilt ---

class Iotest108 : public QemuRecipe {};

TEST_F(Iotest108, RefcountTablePointerZeroed) {
  const DiskImage image("64M");
  image.Io({"write 0 64k"});
  image.Zero(0x30, 8);
  image.Zero(0x38, 4);
  const CheckedTwice both = Check(image);
  EXPECT_THAT(both.ours.codes(), IsSupersetOf({"refcount-table-invalid", "refcount-zero-in-use"}));
  EXPECT_EQ(both.ours.corruptions(), both.qemu.corruptions + 1);  // the missing table itself
}

TEST_F(Iotest108, DataInTheClusterThatTheFirstBlockDoesNotCover) {
  const DiskImage image("64M", "cluster_size=512");
  image.Io({absl::StrCat("write 0 ", 0x1b200)});
  image.Poke64(0x1ccc8, 0x8000000000020000);
  image.Truncate(0x20200);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(AllNumbersAgree(both));
  EXPECT_THAT(both.ours.codes(), Contains("refcount-zero-in-use"));
}

TEST_F(Iotest108, RefcountBlockBehindTheEnd) {
  for (const uint64_t refcount : {0, 1}) {
    const DiskImage image("64M");
    image.Poke64(0x10008, 0x100000);
    image.Poke16(0x20020, refcount);
    const CheckedTwice both = Check(image);
    EXPECT_THAT(both.ours.codes(), Contains("refcount-block-past-end"));
    EXPECT_EQ(both.ours.corruptions(), both.qemu.corruptions);
    // M3: the refcount of the cluster behind the end is not compared by qemu-img.
    EXPECT_EQ(both.ours.CountOf("refcount-past-end"), refcount);
  }
}

TEST_F(Iotest108, RefcountBlockFarBehindTheEnd) {
  for (const uint64_t offset : {0x7fffffffffff0000u, 0xffffffffffff0000u}) {
    const DiskImage image("64M");
    image.Io({"write 0 64k"});
    image.Poke64(0x10008, offset);
    const CheckedTwice both = Check(image);
    EXPECT_TRUE(OursCounts(both, 1, 0));
    EXPECT_THAT(both.ours.codes(), ElementsAre("refcount-block-past-end"));
  }
}

TEST_F(Iotest108, TailBehindTheLastClusterInUse) {
  const DiskImage image("1M", "cluster_size=512");
  image.Io({"write 0 64k"});
  image.Truncate(image.size_bytes() + 256 * 1024);
  image.Poke16(0x400, 0);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(BothCount(both, 1, 0));
  EXPECT_TRUE(AllNumbersAgree(both));
}

// --- 112: refcount widths ---

class Iotest112 : public QemuRecipe {};

TEST_F(Iotest112, Overflow) {
  const DiskImage image("64M", "refcount_bits=1");
  image.Io({"write 0 64k"});
  image.Poke64(0x40008, 0x8000000000050000);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(BothCount(both, 1, 0));
  EXPECT_THAT(both.ours.codes(), IsSupersetOf({"refcount-overflow", "cross-linked-data"}));
}

// The same damage where the refcount has room for the second reference.
TEST_F(Iotest112, NoOverflowWithTwoBits) {
  const DiskImage image("64M", "refcount_bits=2");
  image.Io({"write 0 64k"});
  image.Poke64(0x40008, 0x8000000000050000);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(BothCount(both, 1, 0));
  EXPECT_THAT(both.ours.codes(), ElementsAre("cross-linked-data", "refcount-too-low"));
}

TEST_F(Iotest112, LargestRefcounts) {
  for (const uint64_t refcount : {uint64_t{1} << 63, ~uint64_t{0}}) {
    const DiskImage image("64M", "refcount_bits=64");
    image.Io({"write 0 64k"});
    image.Poke64(0x20028, refcount);
    const CheckedTwice both = Check(image);
    EXPECT_TRUE(AllNumbersAgree(both));
    EXPECT_THAT(both.ours.codes(), IsSupersetOf({"refcount-too-high", "copied-flag-wrong"}));
  }
}

// --- 137: writes to an image whose refcount block was zeroed ---

class Iotest137 : public QemuRecipe {};

TEST_F(Iotest137, WriteAfterTheRefcountBlockWasZeroed) {
  const DiskImage image("64M");
  image.Zero(0x20000, 8);
  RunCommand({"qemu-io", "-f", "qcow2", "-c", "write 0 64k", image.path()});
  const CheckedTwice both = Check(image);
  EXPECT_THAT(both.ours.codes(), IsSupersetOf({"corrupt-bit", "refcount-zero-in-use"}));
  // M11: qemu-img does not count the bit.
  EXPECT_EQ(both.ours.corruptions(), both.qemu.corruptions + 1);
  EXPECT_EQ(both.ours.leaks(), both.qemu.leaks);
}

// --- 138: far away pointers ---

class Iotest138 : public QemuRecipe {};

TEST_F(Iotest138, HostOffsetOf32Pebibytes) {
  const DiskImage image("1k", "cluster_size=512");
  image.Io({"write 0 1k"});
  image.Poke64(0x808, 0x0080000000000000);
  const CheckedTwice both = Check(image);
  EXPECT_EQ(both.ours.CountOf("data-past-end"), 1);
  EXPECT_EQ(both.ours.corruptions(), both.qemu.corruptions);
  EXPECT_EQ(both.ours.leaks(), both.qemu.leaks);
  EXPECT_EQ(both.ours.lost_guest_ranges(), (std::vector<GuestRange>{{512, 512}}));
}

TEST_F(Iotest138, OneLeakAndOneFlag) {
  const DiskImage image("64M");
  image.Io({"write 0 64k"});
  image.Poke16(0x20000, 2);
  image.Poke64(0x30000, 0x40000);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(BothCount(both, 1, 1));
  EXPECT_THAT(both.ours.codes(), ElementsAre("copied-flag-wrong", "refcount-too-high"));
}

}  // namespace
}  // namespace qcow2check::testing

// The repairs of QEMU's own test suite, under the numbers that they have there, repaired by ours:
// one run, the result clean in qemu-img's eyes, and all data there that can be proven.
//
// The layout of a fresh image with 64 KiB clusters: header, refcount table at 0x10000, refcount
// block at 0x20000, L1 table at 0x30000, the first L2 table at 0x40000, the first data at 0x50000.
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/memory_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "repair/repair.h"
#include "tests/damage.h"
#include "tests/disk_image.h"
#include "tests/image_builder.h"
#include "tests/qemu.h"
#include "tests/repaired_disk.h"

namespace qcow2check::testing {
namespace {

constexpr uint64_t kCopied = uint64_t{1} << 63;

class RepairRecipe : public ::testing::Test {
 protected:
  void SetUp() override { QCOW2CHECK_SKIP_WITHOUT_QEMU(); }

  // Repairs the image; it must be clean then, with all data.
  static RepairedDisk ExpectMended(const SoundDisk& sound) {
    RepairedDisk repaired = sound.Repair();
    EXPECT_EQ(repaired.exit_code, 0);
    EXPECT_EQ(repaired.qemu_exit_code, 0);
    EXPECT_EQ(repaired.unreadable, 0);
    return repaired;
  }
};

// --- 026, 217: leaks of an operation that failed ---

class Repair217 : public RepairRecipe {};

// What is left of the snapshot looks like a disk that lost its L1 table: an L2 table and its data.
// Only the user can tell.
TEST_F(Repair217, ErrorWhileASnapshotIsDeleted) {
  const DiskImage image("64M");
  image.Io({"write 0 64k"});
  image.TakeSnapshot("foo");
  image.Io({"write 0 64k"});
  const std::string rules = "[inject-error]\nevent = \"cluster_free\"\nerrno = \"5\"\n";
  const std::string config = image.Beside("blkdebug.conf");
  WriteFile(config, std::vector<uint8_t>(rules.begin(), rules.end()));
  RunCommand(
      {"qemu-img", "snapshot", "-d", "foo", absl::StrCat("blkdebug:", config, ":", image.path())});
  const SoundDisk sound(image);
  const RepairedDisk kept = sound.Repair("leaks");
  EXPECT_EQ(kept.exit_code, 3);
  EXPECT_EQ(kept.report.held_back_clusters(), 4);
  const RepairedDisk freed = sound.Repair("leaks", {"--free-orphans"});
  EXPECT_TRUE(freed.IsClean());
  EXPECT_EQ(freed.report.Number("leaks-fixed"), 4);
  EXPECT_EQ(freed.unreadable, 0);
}

// --- 036, 039 ---

class Repair036 : public RepairRecipe {};

// The next program that writes clears it; it is no damage.
TEST_F(Repair036, UnknownAutoclearFeatureStays) {
  const DiskImage image("64M");
  const SoundDisk sound(image);
  image.Poke64(88, uint64_t{1} << 63);
  ExpectMended(sound);
  EXPECT_EQ(image.Peek64(88), uint64_t{1} << 63);
}

class Repair039 : public RepairRecipe {};

TEST_F(Repair039, KilledWithLazyRefcounts) {
  const DiskImage image("128M", "lazy_refcounts=on");
  image.Io({"write 64k 64k"});
  QemuIoKilled(image.path(), {"write 0 512", "flush"});
  const SoundDisk sound(image);
  ASSERT_EQ(image.Peek64(72), 1);
  ExpectMended(sound);
  EXPECT_EQ(image.Peek64(72), 0) << "the dirty bit";
}

// --- 060: the corruption test ---

class Repair060 : public RepairRecipe {};

// qemu-img's repair fails and leaves the corrupt bit.
TEST_F(Repair060, L1EntryPointsToL1Itself) {
  const DiskImage image("64M");
  const SoundDisk sound(image);
  image.Poke64(0x30000, kCopied | 0x30000);
  ExpectMended(sound);
}

TEST_F(Repair060, DataEntryPointsToRefcountBlock) {
  const DiskImage image("64M");
  const SoundDisk sound(image);
  image.Truncate(0x50000);
  image.Poke64(0x30000, kCopied | 0x40000);
  image.Poke16(0x20008, 1);
  image.Poke64(0x40000, kCopied | 0x20000);
  ExpectMended(sound);
}

// qemu-img frees the cluster that the entry should lead to.
TEST_F(Repair060, NewL2EntryPointsToInactiveL2) {
  const DiskImage image("64M");
  image.Io({"write -P 1 0 512"});
  image.TakeSnapshot("foo");
  image.Io({"write -P 2 0 512"});
  const SoundDisk sound(image);
  image.Poke64(0x80000, kCopied | 0x40000);
  ExpectMended(sound);
}

TEST_F(Repair060, HeaderRefcountZero) {
  const DiskImage image("64M");
  image.Io({"write 0 64k"});
  const SoundDisk sound(image);
  image.Poke16(0x20000, 0);
  ExpectMended(sound);
}

TEST_F(Repair060, L1EntryMisaligned) {
  const DiskImage image("64M");
  image.Io({"write 0 128k"});
  const SoundDisk sound(image);
  image.Poke64(0x30000, kCopied | 0x42a00);
  ExpectMended(sound);
}

TEST_F(Repair060, DataEntryMisaligned) {
  const DiskImage image("64M");
  image.Io({"write 0 64k"});
  const SoundDisk sound(image);
  image.Poke64(0x40000, kCopied | 0x52a00);
  ExpectMended(sound);
}

TEST_F(Repair060, PreallocatedZeroClusterMisaligned) {
  const DiskImage image("64M");
  image.Io({"write 0 64k", "discard 0 64k"});
  const SoundDisk sound(image);
  image.Poke64(0x40000, kCopied | 0x2a01);
  ExpectMended(sound);
}

TEST_F(Repair060, EmptyRefcountTable) {
  for (const bool with_data : {false, true}) {
    const DiskImage image("64M");
    if (with_data) image.Io({"write 0 64k"});
    const SoundDisk sound(image);
    image.Poke64(0x10000, 0);
    ExpectMended(sound);
  }
}

TEST_F(Repair060, EmptyRefcountBlock) {
  const DiskImage image("64M");
  const SoundDisk sound(image);
  image.Poke64(0x20000, 0);
  ExpectMended(sound);
}

TEST_F(Repair060, RefcountTableWithoutClusters) {
  const DiskImage image("64M");
  image.Io({"write 0 64k"});
  const SoundDisk sound(image);
  image.Poke32(56, 0);
  ExpectMended(sound);
}

// qemu-img needs two runs.
TEST_F(Repair060, DirtyWithMisalignedRefcountBlock) {
  const DiskImage image("64M");
  image.Io({"write 0 64k"});
  const SoundDisk sound(image);
  image.Poke64(0x10000, 0x00000000ffff2a00);
  image.Poke64(72, 1);
  ExpectMended(sound);
}

// qemu-img needs two runs, and fails the first.
TEST_F(Repair060, RefcountBlockMisaligned) {
  const DiskImage image("64M");
  image.Io({"write 0 128k"});
  const SoundDisk sound(image);
  image.Poke64(0x10000, 0x2a00);
  ExpectMended(sound);
}

// The rebuild of qemu-img fails each time where the old block is the first free cluster.
TEST_F(Repair060, ReservedBitInTheRefcountTable) {
  for (const uint64_t entry : {0x20001u, 0x22a00u}) {
    const DiskImage image("64M");
    image.Io({"write 0 128k"});
    const SoundDisk sound(image);
    image.Poke64(0x10000, entry);
    ExpectMended(sound);
  }
}

// qemu-img makes the file 64 GiB long for it.
TEST_F(Repair060, RefcountBlockOutsideTheFile) {
  for (const char* bits : {"16", "1"}) {
    const DiskImage image("64M", absl::StrCat("refcount_bits=", bits));
    image.Io({"write 0 64k"});
    const SoundDisk sound(image);
    image.Poke64(0x10008, 0x00ffffff00000000);
    EXPECT_LT(ExpectMended(sound).size_bytes, 1 << 20);
  }
}

TEST_F(Repair060, TwoBadRefcountBlocksWithNarrowRefcounts) {
  const DiskImage image("64M", "refcount_bits=1");
  image.Io({"write 0 64k"});
  const SoundDisk sound(image);
  image.Poke64(0x10008, 0x0000001000000000);
  image.Poke64(0x10010, 0x0000000000000200);
  EXPECT_LT(ExpectMended(sound).size_bytes, 1 << 20);
}

// --- 108: where rebuilt refcounts go ---

class Repair108 : public RepairRecipe {};

TEST_F(Repair108, RefcountTablePointerZeroed) {
  const DiskImage image("64M");
  image.Io({"write 0 64k"});
  const SoundDisk sound(image);
  image.Zero(0x30, 8);
  image.Zero(0x38, 4);
  ExpectMended(sound);
}

// The cluster behind those that the first block covers has no refcount and must not be taken.
TEST_F(Repair108, DataInTheClusterThatTheFirstBlockDoesNotCover) {
  const DiskImage image("64M", "cluster_size=512");
  image.Io({absl::StrCat("write -P 42 0 ", 0x1b200)});
  image.Poke64(0x1ccc8, kCopied | 0x20000);
  image.Truncate(0x20000);
  image.PokeBytes(0x20000, std::string(512, 'x'));
  const SoundDisk sound(image);
  ExpectMended(sound);
  EXPECT_EQ(image.Bytes(0x20000, 512), std::string(512, 'x'));
}

TEST_F(Repair108, RefcountBlockBehindTheEnd) {
  for (const uint64_t refcount : {0, 1}) {
    const DiskImage image("64M");
    image.Io({"write 0 64k"});
    const SoundDisk sound(image);
    image.Poke64(0x10008, 0x100000);
    image.Poke16(0x20020, refcount);
    EXPECT_LT(ExpectMended(sound).size_bytes, 1 << 20);
  }
}

// "could not resize image", says qemu-img.
TEST_F(Repair108, RefcountBlockFarBehindTheEnd) {
  for (const uint64_t offset : {0x7fffffffffff0000u, 0xffffffffffff0000u}) {
    const DiskImage image("64M");
    image.Io({"write 0 64k"});
    const SoundDisk sound(image);
    image.Poke64(0x10008, offset);
    EXPECT_LT(ExpectMended(sound).size_bytes, 1 << 20);
  }
}

TEST_F(Repair108, AFileWithRoomDoesNotGrow) {
  const DiskImage image("1M", "cluster_size=512");
  image.Io({"write 0 64k"});
  image.Truncate(image.size_bytes() + 256 * 1024);
  const SoundDisk sound(image);
  const uint64_t size = image.size_bytes();
  image.Poke16(0x400, 0);
  EXPECT_EQ(ExpectMended(sound).size_bytes, size);
}

// --- 112: refcount widths ---

class Repair112 : public RepairRecipe {};

// qemu-img cannot repair it: the refcount would have to be 2, and has one bit. Ours gives each its
// own cluster.
TEST_F(Repair112, Overflow) {
  const DiskImage image("64M", "refcount_bits=1");
  image.Io({"write 0 64k"});
  const SoundDisk sound(image);
  image.Poke64(0x40008, kCopied | 0x50000);
  ExpectMended(sound);
}

TEST_F(Repair112, LargestRefcounts) {
  for (const uint64_t refcount : {uint64_t{1} << 63, ~uint64_t{0}}) {
    const DiskImage image("64M", "refcount_bits=64");
    image.Io({"write 0 64k"});
    const SoundDisk sound(image);
    image.Poke64(0x20028, refcount);
    ExpectMended(sound);
  }
}

// --- 137, 138 ---

class Repair137 : public RepairRecipe {};

TEST_F(Repair137, WriteAfterTheRefcountBlockWasZeroed) {
  const DiskImage image("64M");
  image.Zero(0x20000, 8);
  RunCommand({"qemu-io", "-f", "qcow2", "-c", "write 0 64k", image.path()});
  const SoundDisk sound(image);
  ASSERT_EQ(image.Peek64(72), 2);
  ExpectMended(sound);
  EXPECT_EQ(image.Peek64(72), 0) << "the corrupt bit";
}

class Repair138 : public RepairRecipe {};

// The only orphan is the cluster that the entry led to.
TEST_F(Repair138, HostOffsetOf32Pebibytes) {
  const DiskImage image("1k", "cluster_size=512");
  image.Io({"write -P 1 0 512", "write -P 2 512 512"});
  const SoundDisk sound(image);
  image.Poke64(0x808, 0x0080000000000000);
  ExpectMended(sound);
}

TEST_F(Repair138, OneLeakAndOneFlag) {
  const DiskImage image("64M");
  image.Io({"write 0 64k"});
  const SoundDisk sound(image);
  image.Poke16(0x20000, 2);
  image.Poke64(0x30000, 0x40000);
  const RepairedDisk repaired = ExpectMended(sound);
  EXPECT_EQ(repaired.report.Number("corruptions-fixed"), 1);
  EXPECT_EQ(repaired.report.Number("leaks-fixed"), 1);
}

// --- 214: compressed clusters ---

class Repair214 : public RepairRecipe {};

TEST_F(Repair214, CompressedSizeTooLarge) {
  const DiskImage image("8M", "cluster_size=2M");
  image.Io({"write -c -P 1 0 2M", "write -c -P 2 2M 2M"});
  const SoundDisk sound(image);
  image.Poke(0x800000, "7ffe");
  image.Poke(0x800008, "7ffe");
  ExpectMended(sound);
}

// --- 261: the snapshot table ---

class Repair261 : public RepairRecipe {};

// Entries of version 2 in an image that became version 3: the disk's size of the time is missing.
TEST_F(Repair261, IncompleteEntries) {
  for (const uint32_t extra_bytes : {0, 8}) {
    const DiskImage image;
    WriteFile(image.path(), BuildImage({.virtual_size = 8 << 20,
                                        .steps = {WriteClusters{.count = 4}, TakeSnapshot{},
                                                  WriteClusters{.count = 2}, TakeSnapshot{}},
                                        .snapshot_extra_bytes = extra_bytes})
                                .bytes);
    const SoundDisk sound(image);
    const RepairedDisk repaired = ExpectMended(sound);
    EXPECT_TRUE(repaired.report.Has("snapshot-entry-incomplete")) << "before the repair";
    QemuImg({"snapshot", "-a", "1", image.path()});
  }
}

// qemu-img drops the extra data, or gives up.
TEST_F(Repair261, TooMuchExtraData) {
  const DiskImage image("64M");
  image.Io({"write 0 128k"});
  image.TakeSnapshot("foo");
  image.Io({"write 0 64k"});
  const SoundDisk sound(image);
  image.Poke32(image.Peek64(64) + 36, 0x10000);
  ExpectMended(sound);
}

// --- 271: extended L2 entries ---

class Repair271 : public RepairRecipe {};

TEST_F(Repair271, CompressedWithBitmap) {
  const DiskImage image("64M", "extended_l2=on");
  image.Io({"write -c -P 1 0 64k"});
  const SoundDisk sound(image);
  image.Poke(0x4000b, "0180");
  ExpectMended(sound);
}

TEST_F(Repair271, MisalignedWithoutData) {
  const DiskImage image("64M", "extended_l2=on");
  image.Io({"write 0 64k", "discard 0 64k"});
  const SoundDisk sound(image);
  image.Poke64(0x40000, kCopied | 0x50200);
  image.Poke64(0x40008, 0xffffffff00000000);
  ExpectMended(sound);
}

TEST_F(Repair271, MisalignedWithData) {
  const DiskImage image("64M", "extended_l2=on");
  image.Io({"write 0 64k"});
  const SoundDisk sound(image);
  image.Poke64(0x40000, kCopied | 0x50200);
  ExpectMended(sound);
}

// --- 242, 313 ---

class Repair242 : public RepairRecipe {};

// QEMU refuses the image because of it.
TEST_F(Repair242, UnknownBitmapFlag) {
  const DiskImage image("1M");
  QemuImg({"bitmap", "--add", image.path(), "one"});
  image.Io({"write 0 64k"});
  const SoundDisk sound(image);
  const uint64_t directory = image.Peek64(image.ExtensionData(0x23852875) + 16);
  image.Poke32(directory + 12, image.Peek32(directory + 12) | 4);
  ExpectMended(sound);
}

class Repair313 : public RepairRecipe {};

TEST_F(Repair313, SecondRefcountBlockMisaligned) {
  const DiskImage image("64M", "cluster_size=512");
  image.Io({"write 0 1M"});
  const SoundDisk sound(image);
  image.Poke(image.Peek64(48) + 14, "06");
  ExpectMended(sound);
}

}  // namespace
}  // namespace qcow2check::testing

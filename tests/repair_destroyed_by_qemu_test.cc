// Damage that `qemu-img check -r` turns into loss (qemu_missed_test.cc, MadeWorseByRepair: what the
// check says of it), repaired by ours: nothing is lost, and what was lost is found.
#include <string>

#include "gtest/gtest.h"
#include "tests/disk_image.h"
#include "tests/qemu.h"
#include "tests/repaired_disk.h"

namespace qcow2check::testing {
namespace {

constexpr uint64_t kCopied = uint64_t{1} << 63;

class DestroyedByQemu : public ::testing::Test {
 protected:
  void SetUp() override { QCOW2CHECK_SKIP_WITHOUT_QEMU(); }

  // Repairs the image; it must be clean then, with all data.
  static void ExpectMended(const SoundDisk& sound) {
    const RepairedDisk repaired = sound.Repair();
    EXPECT_EQ(repaired.exit_code, 0);
    EXPECT_EQ(repaired.qemu_exit_code, 0);
    EXPECT_EQ(repaired.unreadable, 0);
  }
  // The same, and the damage had made data unreadable.
  static void ExpectRegained(const SoundDisk& sound) {
    ASSERT_LT(sound.Readable(), sound.units());
    ExpectMended(sound);
  }
};

TEST_F(DestroyedByQemu, D1_FlippedLowBitInAnL1Entry) {
  const DiskImage image("64M");
  image.Io({"write 0 1M"});
  const SoundDisk sound(image);
  image.Poke64(0x30000, kCopied | 0x40200);
  ExpectRegained(sound);
}

TEST_F(DestroyedByQemu, D2_FlippedHighBitInAnL1Entry) {
  const DiskImage image("64M");
  image.Io({"write 0 1M"});
  const SoundDisk sound(image);
  image.Poke64(0x30000, kCopied | uint64_t{1} << 40 | 0x40000);
  ExpectRegained(sound);
}

TEST_F(DestroyedByQemu, D2_L1EntryPointsToAClusterOfZeros) {
  const DiskImage image("64M");
  image.Io({"write 0 1M", "write -P 0 1M 64k"});
  const SoundDisk sound(image);
  image.Poke64(0x30000, kCopied | (0x50000 + 16 * 0x10000));
  ExpectRegained(sound);
}

TEST_F(DestroyedByQemu, D3_SnapshotL1Offset) {
  for (const char* l1 : {"0000000000400200 00000001", "0000000000060000 10000000"}) {
    const DiskImage image("64M");
    image.Io({"write -P 1 0 512"});
    image.TakeSnapshot("test");
    image.Io({"write -P 2 0 512"});
    const SoundDisk sound(image);
    image.Poke(0x70000, l1);
    ExpectMended(sound);
    QemuImg({"snapshot", "-a", "test", image.path()});
    image.Io({"read -P 1 0 512"});
  }
}

TEST_F(DestroyedByQemu, D4_CompressedEntryWithSubclusterBitmap) {
  const DiskImage image("64M", "extended_l2=on");
  image.Io({"write -c -P 1 0 64k", "write -P 2 64k 64k"});
  const SoundDisk sound(image);
  image.Poke64(0x40008, 1);
  EXPECT_EQ(sound.Repair("leaks").unreadable, 0);
  ExpectMended(sound);
}

TEST_F(DestroyedByQemu, D5_L2EntryBehindTheEnd) {
  const DiskImage image("64M");
  image.Io({"write 0 1M"});
  const SoundDisk sound(image);
  image.Poke64(0x40018, kCopied | uint64_t{1} << 33 | 0x80000);
  ExpectRegained(sound);
}

// The bitmaps are out of date, but they are somebody's: kept until the user says otherwise.
TEST_F(DestroyedByQemu, D6_BitmapsAutoclearBitLost) {
  const DiskImage image("1M");
  QemuImg({"bitmap", "--add", image.path(), "one"});
  image.Io({"write 0 64k"});
  const SoundDisk sound(image);
  const uint64_t directory = image.Peek64(image.ExtensionData(0x23852875) + 16);
  const std::string bitmap = image.Bytes(directory, 32);
  image.Poke64(88, 0);
  const RepairedDisk repaired = sound.Repair();
  EXPECT_EQ(repaired.unreadable, 0);
  EXPECT_EQ(image.Bytes(directory, 32), bitmap);
  EXPECT_NE(repaired.exit_code, 2);
}

// A repair that only frees leaks leaves the dirty bit, which makes the next program look again.
TEST_F(DestroyedByQemu, D7_DirtyAndALiveClusterWithRefcount0) {
  const DiskImage image("64M");
  image.Io({"write 0 128k"});
  const SoundDisk sound(image);
  image.Poke16(0x20000 + 2 * 5, 0);
  image.Poke64(72, 1);
  EXPECT_EQ(sound.Repair("leaks").exit_code, 2);
  EXPECT_EQ(image.Peek64(72), 1);
  ExpectMended(sound);
  EXPECT_EQ(image.Peek64(72), 0);
}

TEST_F(DestroyedByQemu, D8_OneSnapshotAtOffset0) {
  const DiskImage image("64M");
  image.Io({"write 0 128k"});
  const SoundDisk sound(image);
  image.Poke32(60, 1);
  ExpectMended(sound);
  EXPECT_EQ(image.Peek32(60), 0) << "nothing in the file could be a snapshot";
}

// QEMU opens the image for writing to repair it, and rewrites header and bitmaps.
TEST_F(DestroyedByQemu, D9_AnImageWithoutDamage) {
  const DiskImage image("1M");
  QemuImg({"bitmap", "--add", image.path(), "one"});
  image.Io({"write 0 64k"});
  image.Poke64(88, image.Peek64(88) | uint64_t{1} << 40);
  image.PokeBytes(0x8000, "somebody's note");
  const std::string before = image.Bytes(0, image.size_bytes());
  const SoundDisk sound(image);
  for (const char* mode : {"leaks", "all"}) {
    EXPECT_EQ(sound.Repair(mode).exit_code, 0);
    EXPECT_TRUE(image.Bytes(0, image.size_bytes()) == before) << mode;
  }
}

}  // namespace
}  // namespace qcow2check::testing

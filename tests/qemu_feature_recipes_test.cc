// More scenarios of QEMU's own test suite (see qemu_recipes_test.cc): compression, snapshots,
// bitmaps, data files, extended L2 entries, encryption, and random damage.
//
// The layout of a fresh image with 64 KiB clusters: header, refcount table at 0x10000, refcount
// block at 0x20000, L1 table at 0x30000, the first L2 table at 0x40000, the first data at 0x50000.
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

class QemuRecipe : public ::testing::Test {
 protected:
  void SetUp() override { QCOW2CHECK_SKIP_WITHOUT_QEMU(); }
};

CheckedTwice Check(const DiskImage& image) { return CheckWithBoth(image.path()); }

// --- 214: compressed sizes ---

class Iotest214 : public QemuRecipe {};

// M6: one sector too few. The metadata is consistent; only the data shows it.
TEST_F(Iotest214, CompressedSizeTooSmall) {
  const DiskImage image("8M", "cluster_size=2M");
  image.Io({"write -c -P 0x11 0 2M", "write -c -P 0x11 2M 2M"});
  image.Poke(0x800000, "4006");
  EXPECT_TRUE(AllNumbersAgree(Check(image)));
  const CheckedImage with_data = CheckWithProgram(image.path(), {"--verify-data"});
  EXPECT_THAT(with_data.codes(), ElementsAre("compressed-broken"));
  EXPECT_EQ(with_data.lost_guest_ranges(), (std::vector<GuestRange>{{0, 2 << 20}}));
}

TEST_F(Iotest214, CompressedSizeTooLarge) {
  const DiskImage image("8M", "cluster_size=2M");
  image.Io({"write -c -P 0x11 0 2M", "write -c -P 0x11 2M 2M", "write 4M 4M"});
  image.Poke(0x800000, "7ffe");
  image.Poke(0x800008, "7ffe");
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(AllNumbersAgree(both));
  EXPECT_EQ(both.ours.exit_code, 2);
}

// --- 217: errors while a snapshot is deleted ---

class Iotest217 : public QemuRecipe {};

TEST_F(Iotest217, ErrorWhileASnapshotIsDeleted) {
  const DiskImage image("64M");
  image.Io({"write -P 42 0 64k"});
  image.TakeSnapshot("foo");
  image.Io({"write -P 23 0 64k"});
  const std::string rules = "[inject-error]\nevent = \"cluster_free\"\nerrno = \"5\"\n";
  const std::string config = image.Beside("blkdebug.conf");
  WriteFile(config, std::vector<uint8_t>(rules.begin(), rules.end()));
  RunCommand(
      {"qemu-img", "snapshot", "-d", "foo", absl::StrCat("blkdebug:", config, ":", image.path())});
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(AllNumbersAgree(both));
  EXPECT_EQ(both.ours.exit_code, 3);
  // It cannot be told from a snapshot that was lost: the clusters are kept all the same.
  EXPECT_THAT(both.ours.codes(), ElementsAre("leak-suspicious"));
}

// --- 220: refcounts far behind the end of the file (M3) ---

class Iotest220 : public QemuRecipe {};

TEST_F(Iotest220, RefcountsBehindTheEnd) {
  const DiskImage image("64M");
  image.Io({"write 0 64k"});
  // A second refcount block, at the next free cluster, that counts clusters from 2 GiB on.
  image.Poke64(0x10008, 0x60000);
  image.Poke16(0x20000 + 2 * 6, 1);
  image.Truncate(0x70000);
  image.Poke(0x60000, "0001 0001 0000 0001");
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(QemuCounts(both, 0, 0));
  EXPECT_TRUE(OursCounts(both, 0, 3));
  EXPECT_THAT(both.ours.codes(), ElementsAre("refcount-past-end"));
}

// --- 242, 303: bitmaps ---

class Iotest242 : public QemuRecipe {};

TEST_F(Iotest242, UnknownBitmapFlag) {
  const DiskImage image("1M");
  QemuImg({"bitmap", "--add", image.path(), "map"});
  const uint64_t directory = image.Peek64(image.ExtensionData(0x23852875) + 16);
  EXPECT_TRUE(AllNumbersAgree(Check(image)));
  image.Poke(directory + 15, "04");
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(QemuGivesUp(both));
  EXPECT_TRUE(both.ours.Has("bitmap-directory-invalid"));
  EXPECT_EQ(both.ours.lost_guest_bytes(), 0);
}

class Iotest303 : public QemuRecipe {};

TEST_F(Iotest303, TwoBitmaps) {
  const DiskImage image("10M");
  QemuImg({"bitmap", "--add", "-g", "32k", image.path(), "one"});
  image.Io({"write 0 1M"});
  QemuImg({"bitmap", "--disable", image.path(), "one"});
  QemuImg({"bitmap", "--add", "-g", "32k", image.path(), "two"});
  image.Io({"write 3M 1M", "write 1M 64k"});
  EXPECT_TRUE(AllNumbersAgree(Check(image)));
}

// --- 244: external data files ---

class Iotest244 : public QemuRecipe {};

TEST_F(Iotest244, DataFile) {
  for (const char* raw : {"off", "on"}) {
    const DiskImage image;
    QemuImg({"create", "-q", "-f", "qcow2", "-o",
             absl::StrCat("data_file_raw=", raw, ",data_file=", image.Beside("data")), image.path(),
             "64M"});
    image.Io({"write -P 0xa 0 64k", "write -P 0xb 10M 64k", "write -z 2M 64k", "discard 10M 64k"});
    EXPECT_TRUE(AllNumbersAgree(Check(image))) << raw;
    EXPECT_EQ(CheckWithProgram(image.path(), {"--verify-data"}).verdict(), "clean") << raw;
  }
}

// --- 261: snapshot tables ---

class Iotest261 : public QemuRecipe {
 protected:
  // A version 2 image whose three snapshot entries have that much extra data.
  static void MakeSnapshots(const DiskImage& image, const std::vector<uint32_t>& extra_bytes) {
    for (size_t i = 0; i < extra_bytes.size(); ++i) {
      image.Io({absl::StrCat("write -P ", i, " 0 64k")});
      image.TakeSnapshot(absl::StrCat("sn", i));
    }
    const uint64_t table = image.Peek64(64);
    std::string entries;
    uint64_t at = table;
    for (const uint32_t extra : extra_bytes) {
      const uint32_t old_extra = image.Peek32(at + 36);
      const uint32_t texts = image.Peek32(at + 12);  // id and name lengths, 16 bits each
      const uint64_t text_bytes = (texts >> 16) + (texts & 0xffff);
      const std::string fixed = image.Bytes(at, 36);
      std::string entry = fixed;
      for (int shift = 24; shift >= 0; shift -= 8)
        entry.push_back(static_cast<char>(extra >> shift));
      std::string kept = image.Bytes(at + 40, old_extra);
      kept.resize(extra, '\0');
      entry += kept + image.Bytes(at + 40 + old_extra, text_bytes);
      entry.resize((entry.size() + 7) / 8 * 8, '\0');
      entries += entry;
      at += (40 + old_extra + text_bytes + 7) / 8 * 8;
    }
    image.PokeBytes(table, entries);
  }
  static void MakeVersion3(const DiskImage& image) {
    image.Poke32(4, 3);
    image.Poke32(100, 104);
    image.Poke32(96, 4);
  }
};

TEST_F(Iotest261, IncompleteEntriesMatterOnlyInVersion3) {
  const DiskImage image("64M", "compat=0.10");
  MakeSnapshots(image, {0, 50, 8});
  EXPECT_TRUE(AllNumbersAgree(Check(image)));
  MakeVersion3(image);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(BothCount(both, 2, 0));
  EXPECT_THAT(both.ours.codes(), ElementsAre("snapshot-entry-incomplete"));
}

TEST_F(Iotest261, TooMuchExtraData) {
  const DiskImage image("64M", "compat=0.10");
  MakeSnapshots(image, {0, 50, 8});
  image.Poke32(image.Peek64(64) + 36, 0x10000);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(QemuGivesUp(both));
  EXPECT_EQ(both.ours.exit_code, 2);
  EXPECT_GT(both.ours.held_back_clusters(), 0) << "the snapshots' clusters";
}

TEST_F(Iotest261, TableOfMoreThan64Mebibytes) {
  const DiskImage image("64M");
  image.Io({"write 0 64k"});
  image.TakeSnapshot("sn0");
  const std::string l1 = image.Bytes(image.Peek64(64), 12);
  constexpr uint64_t kTable = 1 << 20;
  constexpr uint64_t kEntryBytes = (40 + 16 + 65535 * 2 + 7) / 8 * 8;
  constexpr uint64_t kEntries = (64 << 20) / kEntryBytes + 2;
  image.Truncate(kTable + kEntries * kEntryBytes);
  for (uint64_t i = 0; i < kEntries; ++i) {
    image.PokeBytes(kTable + i * kEntryBytes, l1);
    image.Poke(kTable + i * kEntryBytes + 12, "ffff ffff");
    image.Poke32(kTable + i * kEntryBytes + 36, 16);
  }
  image.Poke64(64, kTable);
  image.Poke32(60, kEntries);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(QemuGivesUp(both));
  EXPECT_TRUE(both.ours.Has("snapshot-table-invalid"));
  EXPECT_LT(both.ours.bytes_read(), 4 << 20) << "the names are not read";
}

TEST_F(Iotest261, MoreThan65536Snapshots) {
  const DiskImage image("64M", "compat=0.10");
  image.Io({"write 0 64k"});
  image.Truncate((1 << 20) + 131072 * 40);
  image.Poke64(64, 1 << 20);
  image.Poke32(60, 131072);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(QemuGivesUp(both));
  EXPECT_TRUE(both.ours.Has("snapshot-too-many"));
  EXPECT_EQ(both.ours.json["coverage"]["snapshots"], 65536);
}

// --- 271, 272: extended L2 entries, compressed clusters far behind ---

class Iotest271 : public QemuRecipe {
 protected:
  static constexpr const char* kOptions = "extended_l2=on";
};

TEST_F(Iotest271, Bit0MeansNothing) {
  const DiskImage image("1M", kOptions);
  image.Io({"write 0 64k"});
  image.Poke(0x40007, "01");
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(AllNumbersAgree(both));
  EXPECT_THAT(both.ours.codes(), ElementsAre("stray-l2-flag"));  // M10
}

TEST_F(Iotest271, SubclusterAllocatedAndZero) {
  const DiskImage image("1M", kOptions);
  image.Io({"write 0 128k"});
  image.Poke32(0x40018, 1);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(BothCount(both, 1, 0));
  EXPECT_THAT(both.ours.codes(), ElementsAre("subcluster-conflict"));
}

TEST_F(Iotest271, SubclusterWithoutCluster) {
  const DiskImage image("1M", kOptions);
  image.Io({"write 128k 64k"});
  image.Poke(0x4000f, "01");
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(BothCount(both, 1, 0));
  EXPECT_THAT(both.ours.codes(), ElementsAre("subcluster-without-cluster"));
}

// D4: QEMU reads such a cluster, but its check does not count it and its repair frees it.
TEST_F(Iotest271, CompressedWithBitmap) {
  const DiskImage image("1M", kOptions);
  image.Io({"write -c -P 1 0 64k"});
  image.Poke(0x4000b, "0180");
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(QemuCounts(both, 1, 1));
  EXPECT_TRUE(OursCounts(both, 1, 0));
  EXPECT_THAT(both.ours.codes(), ElementsAre("compressed-subclusters"));
  EXPECT_EQ(both.ours.data_state(), "intact");
}

TEST_F(Iotest271, MisalignedWithData) {
  const DiskImage image("1M", kOptions);
  image.Io({"write 0 64k"});
  image.Poke(0x40006, "02");
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(both.ours.Has("data-misaligned"));
  EXPECT_EQ(both.ours.corruptions(), both.qemu.corruptions);
  EXPECT_EQ(both.ours.leaks(), both.qemu.leaks);
}

TEST_F(Iotest271, MisalignedWithoutData) {
  const DiskImage image("1M", kOptions);
  image.Io({"write 0 64k"});
  image.Poke(0x40006, "02");
  image.Poke64(0x40008, 0xffffffff00000000);
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(both.ours.Has("zero-cluster-misaligned"));
  EXPECT_EQ(both.ours.corruptions(), both.qemu.corruptions);
  EXPECT_EQ(both.ours.leaks(), both.qemu.leaks);
}

class Iotest272 : public QemuRecipe {};

TEST_F(Iotest272, CompressedBeyond4Gibibytes) {
  const DiskImage image("8G", "cluster_size=2M,preallocation=metadata");
  QemuImg({"resize", "-q", image.path(), "9G"});
  image.Io({"write -c -P 1 8G 2M", "write -c -P 2 8194M 2M"});
  const CheckedTwice both = Check(image);
  EXPECT_TRUE(AllNumbersAgree(both));
  EXPECT_EQ(both.ours.corruptions(), 0);
  EXPECT_EQ(both.ours.Number("compressed-clusters"), 2);
}

// --- 284 and the encryption test: LUKS ---

class Iotest284 : public QemuRecipe {};

TEST_F(Iotest284, LuksImageSoundUntilItsExtensionIsDeleted) {
  const DiskImage image;
  if (!CreateLuks(image, "", "64M")) GTEST_SKIP() << "no LUKS on this machine";
  const auto check = [&image] {
    return CheckedTwice{
        CheckWithProgram(image.path()),
        QemuCheck(LuksImageOptions(image), {"--object", kLuksSecret, "--image-opts"})};
  };
  EXPECT_TRUE(AllNumbersAgree(check()));
  image.Poke32(image.ExtensionData(0x0537be77) - 8, 0x77777777);
  const CheckedTwice both = check();
  EXPECT_TRUE(QemuGivesUp(both));
  EXPECT_TRUE(both.ours.Has("encryption-invalid"));
  EXPECT_GT(both.ours.held_back_clusters(), 0) << "the LUKS header, which nothing points to now";
}

// --- 287: compression types ---

class Iotest287 : public QemuRecipe {};

TEST_F(Iotest287, BitAndTypeContradictEachOther) {
  const DiskImage zstd("64M", "compression_type=zstd");
  zstd.Poke64(72, 0);
  const DiskImage zlib("64M", "compression_type=zlib");
  zlib.Poke64(72, 8);
  for (const DiskImage* image : {&zstd, &zlib}) {
    const CheckedTwice both = Check(*image);
    EXPECT_TRUE(QemuGivesUp(both));
    EXPECT_THAT(both.ours.codes(), ElementsAre("compression-type-invalid"));
  }
}

// --- 290, 305, 313 and snapshots with VM state ---

class Iotest290 : public QemuRecipe {};

TEST_F(Iotest290, Discard) {
  for (const char* compat : {"0.10", "1.1"}) {
    const DiskImage base("1M");
    base.Io({"write 0 1M"});
    const DiskImage image;
    QemuImg({"create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base.path(), "-o",
             absl::StrCat("compat=", compat), image.path()});
    image.Io({"write 0 512k", "discard 0 128k", "discard 512k 64k", "discard 192k 64k"});
    EXPECT_TRUE(AllNumbersAgree(Check(image))) << compat;
  }
}

class Iotest305 : public QemuRecipe {};

TEST_F(Iotest305, RefcountCacheOfOneBlock) {
  const DiskImage image("8M", "cluster_size=1k");
  RunCommand({"qemu-io", "-c", "write 0 4M", "-c", "discard 100k 1M", "-c", "write 5M 1M",
              "--image-opts",
              absl::StrCat("driver=qcow2,refcount-cache-size=4096,file.filename=", image.path())});
  EXPECT_TRUE(AllNumbersAgree(Check(image)));
}

class Iotest313 : public QemuRecipe {};

TEST_F(Iotest313, SecondRefcountBlockMisalignedWhileWriting) {
  const DiskImage image("8M", "cluster_size=512");
  image.Io({"write 0 256k"});
  const uint64_t table = image.Peek64(48);
  const uint64_t block = image.Peek64(table + 8);
  ASSERT_NE(block, 0);
  image.Poke64(table + 8, block + 0x200 / 2);
  RunCommand({"qemu-io", "-f", "qcow2", "-c", "write 1M 64k", image.path()});
  const CheckedTwice both = Check(image);
  EXPECT_EQ(both.ours.exit_code, 2);
  EXPECT_TRUE(both.ours.Has("refcount-table-entry-reserved-bits"));
}

class InternalSnapshots : public QemuRecipe {};

TEST_F(InternalSnapshots, SaveLoadDelete) {
  const DiskImage image("64M");
  image.Io({"write 0 1M", "write -b 0 3M"});
  image.TakeSnapshot("snap0");
  image.Io({"write 512k 1M", "write -b 0 1M"});
  image.TakeSnapshot("snap1");
  EXPECT_TRUE(AllNumbersAgree(Check(image)));
  QemuImg({"snapshot", "-a", "snap0", image.path()});
  EXPECT_TRUE(AllNumbersAgree(Check(image)));
  QemuImg({"snapshot", "-d", "snap0", image.path()});
  EXPECT_TRUE(AllNumbersAgree(Check(image)));
}

// --- The image fuzzer: any field, any extreme value. No crash, always a verdict. ---

class ImageFuzzer : public QemuRecipe {};

TEST_F(ImageFuzzer, ExtremeValuesInEveryField) {
  const DiskImage image("10M");
  image.Io({"write 0 256k"});
  struct Field {
    uint64_t offset;
    int width;
  };
  const std::vector<Field> fields = {
      {4, 4},   {8, 8},   {16, 4},  {20, 4},      {24, 8},      {32, 4},      {36, 4},     {40, 8},
      {48, 8},  {56, 4},  {60, 4},  {64, 8},      {72, 8},      {80, 8},      {88, 8},     {96, 4},
      {100, 4}, {112, 4}, {116, 4}, {0x10000, 8}, {0x20000, 8}, {0x30000, 8}, {0x40000, 8}};
  for (const Field& field : fields) {
    const std::string good = image.Bytes(field.offset, static_cast<uint64_t>(field.width));
    const uint64_t max = ~uint64_t{0} >> (64 - field.width * 8);
    for (const uint64_t value : {uint64_t{0}, uint64_t{8}, max / 4, max / 2, max / 2 + 1, max}) {
      if (field.width == 4) {
        image.Poke32(field.offset, value);
      } else {
        image.Poke64(field.offset, value);
      }
      const CheckedImage ours = CheckWithProgram(image.path());
      EXPECT_THAT((std::vector<int>{0, 1, 2, 3, 63}), Contains(ours.exit_code))
          << field.offset << " = " << value << ": " << ours.err;
      EXPECT_LT(ours.bytes_read(), 16 << 20) << field.offset << " = " << value;
    }
    image.PokeBytes(field.offset, good);
  }
  EXPECT_EQ(CheckWithProgram(image.path()).verdict(), "clean");
}

}  // namespace
}  // namespace qcow2check::testing

// Images made to harm whoever opens them: names that lead elsewhere, and claims that cost time and
// memory. The work must follow the bytes that are there, which the report counts.
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "gtest/gtest.h"
#include "tests/checked_program.h"
#include "tests/disk_image.h"
#include "tests/qemu.h"

namespace qcow2check::testing {
namespace {

constexpr uint64_t kCluster = 65536;
constexpr uint64_t kKibibyte = 1024;
constexpr uint64_t kMebibyte = 1024 * kKibibyte;

class HostileImage : public ::testing::Test {
 protected:
  void SetUp() override { QCOW2CHECK_SKIP_WITHOUT_QEMU(); }

  // The name goes behind the header extensions, where QEMU puts it.
  static void SetBackingName(const DiskImage& image, const std::string& name) {
    image.Poke64(8, 0x400);
    image.Poke32(16, name.size());
    image.PokeBytes(0x400, name);
  }
  // A data file name extension in place of the feature name table.
  static void SetDataFileName(const DiskImage& image, std::string name) {
    image.Poke64(72, 4);
    image.Poke32(112, 0x44415441);
    image.Poke32(116, name.size());
    name.resize((name.size() + 7) / 8 * 8, '\0');
    image.Zero(120, 512);
    image.PokeBytes(120, name);
  }
};

TEST_F(HostileImage, UnsafeBackingNames) {
  const DiskImage image("64M");
  for (const char* name : {"json:{\"driver\":\"nbd\",\"host\":\"attacker\"}",
                           "nbd://attacker/export", "http://attacker/file", "ssh:host", "/dev/sda",
                           "/proc/self/mem", "../../etc/passwd", "images/../../secret"}) {
    SetBackingName(image, name);
    const CheckedImage ours = CheckWithProgram(image.path());
    EXPECT_TRUE(ours.Has("backing-name-unsafe")) << name;
    EXPECT_EQ(ours.exit_code, 0) << "a warning: the metadata is consistent";
    EXPECT_EQ(ours.json["image"]["backing-file"], name);
  }
  for (const char* name : {"base.qcow2", "folder/base.qcow2", "./a:b"}) {
    SetBackingName(image, name);
    EXPECT_FALSE(CheckWithProgram(image.path()).Has("backing-name-unsafe")) << name;
  }
}

// qemu-img check opens whatever the image names, and says that all is well.
TEST_F(HostileImage, NothingThatTheImageNamesIsOpened) {
  const DiskImage image("64M");
  // Nobody writes to this pipe: who opens it for reading waits for ever.
  ASSERT_EQ(RunCommand({"mkfifo", image.Beside("pipe")}).exit_code, 0);
  SetBackingName(image, "pipe");
  EXPECT_EQ(CheckWithProgram(image.path()).exit_code, 0);
  SetBackingName(image, "no such file");
  EXPECT_EQ(CheckWithProgram(image.path()).exit_code, 0);
}

TEST_F(HostileImage, UnsafeDataFileNames) {
  const DiskImage image("64M");
  for (const char* name : {"/dev/sda", "../secret", "json:{}", "nbd:host:10809"}) {
    SetDataFileName(image, name);
    const CheckedImage ours = CheckWithProgram(image.path());
    EXPECT_TRUE(ours.Has("data-file-name-unsafe")) << name;
    EXPECT_EQ(ours.json["image"]["data-file"], name);
  }
  SetDataFileName(image, "disk.raw");
  EXPECT_FALSE(CheckWithProgram(image.path()).Has("data-file-name-unsafe"));
}

TEST_F(HostileImage, BackingFormatMissing) {
  const DiskImage image("64M");
  SetBackingName(image, "base");
  EXPECT_TRUE(CheckWithProgram(image.path()).Has("backing-format-missing"));
}

TEST_F(HostileImage, BackingNameOutsideTheFirstCluster) {
  const DiskImage image("64M");
  image.Io({"write 0 64k"});
  image.Poke64(8, 0x50000);
  image.Poke32(16, 8);
  EXPECT_TRUE(CheckWithProgram(image.path()).Has("backing-name-invalid"));
}

// 40,960 L1 entries that lead to one full L2 table: 335 million mappings in a small file.
TEST_F(HostileImage, ManyL1EntriesToOneL2Table) {
  constexpr uint64_t kEntries = 40960;
  const DiskImage image("64M");
  image.Poke32(36, kEntries);
  image.Poke64(24, kEntries * 512 * kMebibyte);
  image.Poke64(40, 0x40000);
  std::string l1, l2;
  for (uint64_t i = 0; i < kEntries; ++i) l1 += std::string("\x80\0\0\0\0\x0a\0\0", 8);
  for (uint64_t i = 0; i < kCluster / 8; ++i) {
    const uint64_t entry = 0xb0000 + i * kCluster;
    for (int shift = 56; shift >= 0; shift -= 8) l2.push_back(static_cast<char>(entry >> shift));
  }
  image.PokeBytes(0x40000, l1);
  image.PokeBytes(0xa0000, l2);
  image.Truncate(0xb0000 + 8192 * kCluster);
  const CheckedImage ours = CheckWithProgram(image.path());
  EXPECT_EQ(ours.json["coverage"]["l2-tables"], 1);
  EXPECT_LT(ours.bytes_read(), 8 * kMebibyte);
  EXPECT_LT(ours.reads(), 2000);
  EXPECT_TRUE(ours.Has("cross-linked-l2-table"));
  EXPECT_EQ(ours.Number("allocated-clusters"), kEntries * 8192);
  EXPECT_LE(ours.Findings("cross-linked-l2-table").size(), 1000);
}

// A smaller one that qemu-img finishes: the same numbers.
TEST_F(HostileImage, SomeL1EntriesToOneL2Table) {
  const DiskImage image("32G");
  image.Io({"write 0 1M"});
  for (uint64_t i = 1; i < 64; ++i) image.Poke64(0x30000 + i * 8, 0x40000);
  EXPECT_TRUE(AllNumbersAgree(CheckWithBoth(image.path())));
}

// `count` snapshots that share the L1 table at `l1`, in a table at the end of the file.
void AddSnapshots(const DiskImage& image, uint64_t count, uint64_t l1, uint64_t l1_entries) {
  const uint64_t table = (image.size_bytes() + kCluster - 1) / kCluster * kCluster;
  std::string entries;
  const auto put = [&entries](uint64_t value, int bytes) {
    for (int shift = (bytes - 1) * 8; shift >= 0; shift -= 8) {
      entries.push_back(static_cast<char>(shift < 64 ? value >> shift : 0));
    }
  };
  for (uint64_t i = 0; i < count; ++i) {
    const std::string id = absl::StrFormat("%08d", i);
    put(l1, 8);
    put(l1_entries, 4);
    put(id.size(), 2);
    put(0, 2);
    put(0, 20);
    put(16, 4);
    put(0, 8);
    put(image.Peek64(24), 8);
    entries += id;
  }
  image.PokeBytes(table, entries);
  image.Truncate((table + entries.size() + kCluster - 1) / kCluster * kCluster);
  image.Poke64(64, table);
  image.Poke32(60, count);
}

// 448 KiB that keep qemu-img busy for 40 seconds and make it print 273 MB.
TEST_F(HostileImage, SnapshotMultiplier) {
  const DiskImage image("2048G");
  image.Io({"write 0 64k"});
  for (uint64_t i = 1; i < 4096; ++i) image.Poke64(0x30000 + i * 8, 0x40000);
  AddSnapshots(image, 200, 0x30000, 4096);
  EXPECT_EQ(image.size_bytes(), 448 * kKibibyte);
  const CheckedImage ours = CheckWithProgram(image.path());
  EXPECT_EQ(ours.json["coverage"]["snapshots"], 200);
  EXPECT_EQ(ours.json["coverage"]["l1-tables"], 1);
  EXPECT_EQ(ours.json["coverage"]["l2-tables"], 1);
  EXPECT_LT(ours.bytes_read(), 2 * kMebibyte);
  EXPECT_LT(ours.reads(), 2000);
  EXPECT_LT(ours.json.dump().size(), 4 * kMebibyte);
  // 201 L1 tables of 4,096 slots for the L2 table and for the data cluster under it; the L1
  // table itself has 201 references.
  EXPECT_EQ(ours.CountOf("refcount-overflow"), 2 * (201 * 4096 - 65535));
}

// Fewer, so that qemu-img can finish and the numbers can be compared.
TEST_F(HostileImage, SnapshotMultiplierInSmall) {
  const DiskImage image("32G");
  image.Io({"write 0 64k"});
  for (uint64_t i = 1; i < 64; ++i) image.Poke64(0x30000 + i * 8, 0x40000);
  AddSnapshots(image, 10, 0x30000, 64);
  EXPECT_TRUE(AllNumbersAgree(CheckWithBoth(image.path())));
}

TEST_F(HostileImage, RefcountOverflow) {
  const DiskImage image("2G", "refcount_bits=2");
  image.Io({"write 0 64k"});
  AddSnapshots(image, 5, 0x30000, 4);
  const CheckedTwice both = CheckWithBoth(image.path());
  EXPECT_TRUE(AllNumbersAgree(both));
  EXPECT_TRUE(both.ours.Has("refcount-overflow"));
}

TEST_F(HostileImage, RefcountBlockAtOffset0) {
  const DiskImage image("64M");
  image.Io({"write 0 64k"});
  image.Poke64(0x10000, 1);  // reserved bits alone: a block at offset 0
  const CheckedImage reserved = CheckWithProgram(image.path());
  EXPECT_EQ(reserved.exit_code, 2);
  EXPECT_TRUE(reserved.Has("refcount-table-entry-reserved-bits"));
  image.Poke64(0x10000, 0x20000);
  image.Poke64(48, 0);  // the refcount table itself at offset 0
  const CheckedImage table = CheckWithProgram(image.path());
  EXPECT_EQ(table.exit_code, 2);
  EXPECT_TRUE(table.Has("refcount-table-invalid"));
}

TEST_F(HostileImage, HugeTables) {
  struct Claim {
    const char* what;
    uint64_t offset;
    uint64_t value;
    const char* code;
  };
  const std::vector<Claim> claims = {
      {"4 GiB of L1 table", 36, 0x20000000, "l1-too-large"},
      {"1 TiB of refcount table", 56, 1 << 24, "refcount-table-invalid"},
      {"65,535 snapshots", 60, 65535, "snapshot-table-invalid"}};
  for (const Claim& claim : claims) {
    const DiskImage image("64M");
    image.Io({"write 0 64k"});
    image.Poke64(64, 0x50000);
    image.Poke32(claim.offset, claim.value);
    const CheckedImage ours = CheckWithProgram(image.path());
    EXPECT_TRUE(ours.Has(claim.code)) << claim.what;
    EXPECT_LT(ours.bytes_read(), 4 * kMebibyte) << claim.what;
  }
}

// A sparse file makes the claims true. Holes cost nothing.
TEST_F(HostileImage, HugeTablesInASparseFile) {
  const DiskImage image("64M");
  image.Io({"write 0 64k"});
  image.Truncate(uint64_t{3} << 40);
  image.Poke32(36, 0x20000000);
  image.Poke64(40, uint64_t{1} << 40);
  image.Poke32(56, 1 << 23);
  image.Poke64(48, uint64_t{2} << 40);
  const CheckedImage ours = CheckWithProgram(image.path());
  EXPECT_NE(ours.exit_code, 0);
  EXPECT_LT(ours.bytes_read(), 8 * kMebibyte);
}

// KubeVirt and OpenStack give tools 1 GiB of address space and 30 seconds.
TEST_F(HostileImage, FitsTheLimitsOfCloudManagers) {
  if (!HaveProgram("prlimit")) GTEST_SKIP() << "prlimit not found";
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the address sanitizer reserves more than the limit for itself";
#endif
  const DiskImage image("2T");
  image.Io({"write 0 1M", "write 1T 64k"});
  const CommandResult result =
      RunCommand({"prlimit", "--as=1073741824", "--cpu=30", QCOW2CHECK_PROGRAM, image.path()});
  EXPECT_EQ(result.exit_code, 0) << result.err;
}

TEST_F(HostileImage, BackingChainLoop) {
  const DiskImage image("64M");
  SetBackingName(image, "t.qcow2");
  EXPECT_EQ(CheckWithProgram(image.path()).exit_code, 0);
  const CheckedImage chain = CheckWithProgram(image.path(), {"--chain"});
  EXPECT_TRUE(chain.Has("chain-cycle"));
  EXPECT_EQ(chain.exit_code, 2);
}

}  // namespace
}  // namespace qcow2check::testing

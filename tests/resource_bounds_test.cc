// Images that claim much and have little: disks of exbibytes, tables of gibibytes in holes, tables
// that are named many times, pointers that are far from each other. Memory and reads of a check
// follow what the file has, not what it says, and so do those of a plan.
//
// The table that it prints is the one in docs/checking.md.
#include <fcntl.h>
#include <unistd.h>

#include <cctype>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "checker/check.h"
#include "common/byte_order.h"
#include "common/check.h"
#include "common/header.h"
#include "gtest/gtest.h"
#include "repair/repair.h"
#include "tests/damage.h"
#include "tests/fault_file.h"
#include "tests/image_builder.h"
#include "tests/program.h"
#include "tests/sparse_file.h"
#include "tests/traced_program.h"

namespace qcow2check::testing {
namespace {

using Words = std::vector<std::string>;

constexpr uint64_t kKibibyte = 1024, kMebibyte = 1024 * kKibibyte;
constexpr uint64_t kTebibyte = uint64_t{1} << 40;
constexpr uint64_t kCluster = 64 * kKibibyte;
constexpr uint64_t kEntries = kCluster / 8;  // of a table of one cluster
constexpr uint64_t kCopied = uint64_t{1} << 63;
// More than a page of the maps covers: each such place takes a page of its own.
constexpr uint64_t kFar = 4096 * kCluster;

void Put32(SparseFile& file, uint64_t offset, uint32_t value) {
  uint8_t bytes[4];
  Store32(bytes, value);
  QCOW2CHECK_CHECK(file.WriteAt(HostOffset{offset}, bytes).ok());
}
void Put64(SparseFile& file, uint64_t offset, uint64_t value) {
  uint8_t bytes[8];
  Store64(bytes, value);
  QCOW2CHECK_CHECK(file.WriteAt(HostOffset{offset}, bytes).ok());
}
void Fill(SparseFile& file, uint64_t offset, uint64_t length, uint8_t byte) {
  QCOW2CHECK_CHECK(file.WriteAt(HostOffset{offset}, std::vector<uint8_t>(length, byte)).ok());
}

// The places of what every image here has, a cluster each unless it says otherwise.
constexpr uint64_t kRefcountTable = kCluster, kRefcountBlock = 2 * kCluster, kL1 = 3 * kCluster;
constexpr uint64_t kFree = 4 * kCluster;  // and on

// An empty disk, in a file of that length.
SparseFile EmptyDisk(uint64_t file_bytes, uint32_t refcount_order = 4) {
  SparseFile file(file_bytes);
  Put32(file, 0, 0x514649fb);
  Put32(file, 4, 3);
  Put32(file, 20, 16);
  Put64(file, 24, kTebibyte);
  Put32(file, 36, kTebibyte / kCluster / kEntries);
  Put64(file, 40, kL1);
  Put64(file, 48, kRefcountTable);
  Put32(file, 56, 1);
  Put32(file, 96, refcount_order);
  Put32(file, 100, 104);
  Put64(file, kRefcountTable, kRefcountBlock);
  Fill(file, kRefcountBlock, 4, 0xff);
  return file;
}

void SetDiskSize(SparseFile& file, uint64_t l1_entries) {
  Put64(file, 24, l1_entries * kEntries * kCluster);
  Put32(file, 36, static_cast<uint32_t>(l1_entries));
}

// L2 tables from kFree on, one for each L1 entry, with the entries that `entry` gives by number.
void AddTables(SparseFile& file, uint64_t tables, const std::function<uint64_t(uint64_t)>& entry) {
  for (uint64_t table = 0; table < tables; ++table) {
    const uint64_t place = kFree + table * kCluster;
    Put64(file, kL1 + 8 * table, place | kCopied);
    for (uint64_t i = 0; i < kEntries; ++i) Put64(file, place + 8 * i, entry(table * kEntries + i));
  }
}

SparseFile HugeDisk() {
  SparseFile file = EmptyDisk(kFree);
  Put64(file, 24, (uint64_t{1} << 63) - 512);
  Put32(file, 36, 0xffffffff);
  return file;
}
SparseFile HugeL1() {
  SparseFile file = EmptyDisk(3 * kTebibyte);
  SetDiskSize(file, uint64_t{1} << 29);
  Put64(file, 40, kTebibyte);
  return file;
}
SparseFile HugeRefcountTable() {
  SparseFile file = EmptyDisk(3 * kTebibyte);
  Put64(file, 48, kTebibyte);
  Put32(file, 56, uint32_t{1} << 24);
  return file;
}
SparseFile SnapshotsInHole() {
  SparseFile file = EmptyDisk(3 * kTebibyte);
  Put32(file, 60, 65535);
  Put64(file, 64, kTebibyte);
  return file;
}
// As many snapshots as an image may have, whose entries are at `table`; their L1 tables are where
// `place` says by number.
void AddSnapshots(SparseFile& file, uint64_t table, uint32_t l1_entries,
                  const std::function<uint64_t(uint64_t)>& place) {
  constexpr uint64_t kSnapshots = 65535, kEntryBytes = 64;
  for (uint64_t i = 0; i < kSnapshots; ++i) {
    const uint64_t at = table + i * kEntryBytes;
    Put64(file, at, place(i));
    Put32(file, at + 8, l1_entries);
    Put32(file, at + 12, 8 << 16);  // an id of 8 bytes
    Put32(file, at + 36, 16);       // of extra data
    const std::string id = absl::StrFormat("%08d", i);
    QCOW2CHECK_CHECK(
        file.WriteAt(HostOffset{at + 56}, std::vector<uint8_t>(id.begin(), id.end())).ok());
  }
  Put32(file, 60, kSnapshots);
  Put64(file, 64, table);
}
// Each with the active L1 table, which leads from every slot to one full L2 table.
SparseFile ManySnapshots() {
  constexpr uint64_t kTable = kFree;
  SparseFile file = EmptyDisk(kTebibyte);
  SetDiskSize(file, kEntries);
  for (uint64_t i = 0; i < kEntries; ++i) {
    Put64(file, kL1 + 8 * i, kTable);
    Put64(file, kTable + 8 * i, kFree + (1 + i) * kCluster);
  }
  AddSnapshots(file, kTebibyte / 2, kEntries, [](uint64_t) { return kL1; });
  return file;
}
// Each with an L1 table of its own, of 2^22 entries in a hole, a cluster behind the one before.
SparseFile OverlappingL1Tables() {
  SparseFile file = EmptyDisk(kTebibyte);
  AddSnapshots(file, kTebibyte / 2, 1 << 22,
               [](uint64_t i) { return kTebibyte / 4 + i * kCluster; });
  return file;
}
// Each with the same table, of 2^20 entries in a hole.
SparseFile ManyBitmaps() {
  constexpr uint64_t kBitmaps = 65535, kEntryBytes = 32;
  SparseFile file = EmptyDisk(kTebibyte);
  const uint64_t directory = kFree;
  for (uint64_t i = 0; i < kBitmaps; ++i) {
    const uint64_t at = directory + i * kEntryBytes;
    Put64(file, at, kTebibyte / 2);
    Put32(file, at + 8, 1 << 20);
    Put32(file, at + 16, 1 << 24 | 16 << 16 | 8);  // dirty tracking, 64 KiB, a name of 8 bytes
    const std::string name = absl::StrFormat("%08d", i);
    QCOW2CHECK_CHECK(
        file.WriteAt(HostOffset{at + 24}, std::vector<uint8_t>(name.begin(), name.end())).ok());
  }
  Put64(file, 88, 1);  // autoclear: bitmaps
  Put32(file, 104, 0x23852875);
  Put32(file, 108, 24);
  Put32(file, 112, kBitmaps);
  Put64(file, 120, kBitmaps * kEntryBytes);
  Put64(file, 128, directory);
  return file;
}
SparseFile OneTableForAll() {
  SparseFile file = EmptyDisk(kTebibyte);
  SetDiskSize(file, kEntries);
  AddTables(file, 1, [](uint64_t i) { return kFree + (1 + i) * kCluster; });
  for (uint64_t i = 0; i < kEntries; ++i) Put64(file, kL1 + 8 * i, kFree);
  return file;
}
SparseFile ScatteredData() {
  SparseFile file = EmptyDisk(2 * kEntries * kFar + kTebibyte);
  AddTables(file, 2, [](uint64_t i) { return kCopied | (kTebibyte / 2 + i * kFar); });
  return file;
}
SparseFile ScatteredTables() {
  SparseFile file = EmptyDisk(kEntries * kFar + kTebibyte);
  SetDiskSize(file, kEntries);
  for (uint64_t i = 0; i < kEntries; ++i) {
    Put64(file, kL1 + 8 * i, kCopied | (kTebibyte / 2 + i * kFar));
  }
  return file;
}
SparseFile ScatteredBlocks() {
  SparseFile file = EmptyDisk(kEntries * kFar + kTebibyte);
  for (uint64_t i = 1; i < kEntries; ++i) {
    Put64(file, kRefcountTable + 8 * i, kTebibyte / 2 + i * kFar);
  }
  return file;
}
// Every second cluster has a refcount of one bit, and nothing uses it.
SparseFile OrphansOfOneBit() {
  constexpr uint64_t kBlocks = 8, kClustersOfBlock = 8 * kCluster;
  SparseFile file = EmptyDisk(kBlocks * kClustersOfBlock * kCluster, /*refcount_order=*/0);
  for (uint64_t i = 0; i < kBlocks; ++i) {
    Put64(file, kRefcountTable + 8 * i, kFree + i * kCluster);
    Fill(file, kFree + i * kCluster, kCluster, 0x55);
  }
  Fill(file, kFree, 2, 0xff);
  return file;
}
// Of 2^19 refcounts, every fourth one not 0, most of them for clusters behind the end of the file.
SparseFile OneBlockForAll() {
  SparseFile file = EmptyDisk(kTebibyte, /*refcount_order=*/0);
  for (uint64_t i = 1; i < kEntries; ++i) Put64(file, kRefcountTable + 8 * i, kFree);
  Fill(file, kFree, kCluster, 0x11);
  return file;
}
SparseFile BadEntries() {
  SparseFile file = EmptyDisk(kTebibyte);
  AddTables(file, 16, [](uint64_t i) { return (i + 100) * kCluster | 0x1fe; });
  return file;
}
SparseFile ScatteredCompressed() {
  SparseFile file = EmptyDisk(2 * kEntries * kFar + kTebibyte);
  AddTables(file, 2, [](uint64_t i) {
    return uint64_t{1} << 62 | uint64_t{0xff} << 54 | (kTebibyte / 2 + i * kFar + 0x8000);
  });
  return file;
}
SparseFile OneClusterForAll() {
  SparseFile file = EmptyDisk(kTebibyte);
  AddTables(file, 2, [](uint64_t) { return kTebibyte / 2; });
  return file;
}
SparseFile NothingButLength() { return EmptyDisk(uint64_t{1} << 53); }

struct Case {
  const char* name;
  SparseFile (*build)();
};
constexpr Case kCases[] = {
    {"a disk of 8 EiB", HugeDisk},
    {"a file of 8 PiB", NothingButLength},
    {"4 GiB of L1 table in a hole", HugeL1},
    {"1 TiB of refcount table in a hole", HugeRefcountTable},
    {"65,535 snapshots in a hole", SnapshotsInHole},
    {"65,535 snapshots with one L1 table", ManySnapshots},
    {"65,535 snapshots with L1 tables that overlap", OverlappingL1Tables},
    {"65,535 bitmaps with one table in a hole", ManyBitmaps},
    {"8,192 L1 entries to one L2 table", OneTableForAll},
    {"16,384 entries to one cluster", OneClusterForAll},
    {"8,192 L2 tables in holes, far apart", ScatteredTables},
    {"8,191 refcount blocks in holes, far apart", ScatteredBlocks},
    {"8,191 ranges with one refcount block", OneBlockForAll},
    {"16,384 clusters far apart", ScatteredData},
    {"16,384 compressed clusters far apart", ScatteredCompressed},
    {"2 million orphans, each alone", OrphansOfOneBit},
    {"131,072 entries that make no sense", BadEntries},
};

// Sparse, too; false if the file system has no files of that length.
bool Store(const SparseFile& image, const std::string& path) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL, 0600);
  QCOW2CHECK_CHECK(fd >= 0);
  bool stored = ftruncate(fd, static_cast<off_t>(image.size_bytes())) == 0;
  for (Extent data = image.NextData(HostOffset{0}); stored && !data.empty();
       data = image.NextData(HostOffset{data.end_bytes})) {
    const std::vector<uint8_t> bytes =
        image.Bytes(data.begin_bytes, data.end_bytes - data.begin_bytes);
    stored = pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(data.begin_bytes)) ==
             static_cast<ssize_t>(bytes.size());
  }
  close(fd);
  return stored;
}

// What a run of the program takes at most; nothing if it cannot be run here.
std::optional<uint64_t> PeakMemory(const SparseFile& image, const Words& options) {
  const TempDir dir;
  const std::string path = dir.Path("image");
  if (!Store(image, path)) return std::nullopt;
  Words argv = {QCOW2CHECK_PROGRAM, "--threads=1", "--json", path};
  argv.insert(argv.end(), options.begin(), options.end());
  const TracedEnd end = RunTraced(argv, [](const TracedCall&) { return CallFate{}; });
  if (end.no_ptrace) return std::nullopt;
  EXPECT_LE(end.result.exit_code, 3) << end.result.err;
  return end.peak_memory_bytes;
}

std::string InMebibytes(std::optional<uint64_t> bytes) {
  return bytes ? absl::StrFormat("%.1f MiB", static_cast<double>(*bytes) / kMebibyte) : "-";
}

// What is taken at most: some whatever the image is, and some for each pointer of 8 bytes that the
// file may hold.
struct Bounds {
  uint64_t reads = 0;
  uint64_t bytes_read = 0;
  uint64_t memory = 0;
};

// Each pointer may lead to a page of the maps, of 1 KiB, that no other leads to; every second bit
// may be an orphan by itself.
Bounds BoundsOfCheck(uint64_t stored) {
  return {.reads = 200 + stored / 512,
          .bytes_read = 4 * kMebibyte + 2 * stored,
          .memory = 32 * kMebibyte + 320 * stored};
}

// A check for each kind of damage. Each pointer may need a refcount block of its own, which is read
// again once a sector of it is written, and of which a page is kept; all of it twice if the note
// turns out to be needed.
Bounds BoundsOfPlan(uint64_t stored) {
  constexpr uint64_t kChecks = 12;
  const uint64_t pointers = stored / 8;
  const Bounds check = BoundsOfCheck(stored);
  return {.reads = kChecks * check.reads + 8 * pointers,
          .bytes_read = kChecks * check.bytes_read + 20 * kKibibyte * pointers,
          .memory = 48 * kMebibyte + check.memory + 6 * kKibibyte * pointers};
}

class ResourceBounds : public ::testing::TestWithParam<Case> {
 protected:
  static void ExpectBounded(const char* what, const SparseFile& image, const FaultFile& file,
                            const Words& options, const Bounds& most) {
    const std::optional<uint64_t> memory = PeakMemory(image, options);
    std::printf("| %s | %s | %llu KiB | %llu | %llu KiB | %s |\n", GetParam().name, what,
                static_cast<unsigned long long>(image.stored_bytes() / kKibibyte),
                static_cast<unsigned long long>(file.reads()),
                static_cast<unsigned long long>(file.bytes_read() / kKibibyte),
                InMebibytes(memory).c_str());
    EXPECT_LE(file.reads(), most.reads);
    EXPECT_LE(file.bytes_read(), most.bytes_read);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    EXPECT_LE(memory.value_or(0), most.memory);
#endif
  }
};

TEST_P(ResourceBounds, FollowWhatTheFileHas) {
  const SparseFile image = GetParam().build();
  const FaultFile checked(image);
  CheckImage(checked, {.threads = 1});
  ExpectBounded("check", image, checked, {}, BoundsOfCheck(image.stored_bytes()));
  const FaultFile planned(image);
  PlanRepair(planned, {.threads = 1}, {});
  ExpectBounded("plan", image, planned, {"--repair", "-n"}, BoundsOfPlan(image.stored_bytes()));
}

// 8,192 entries name one stream with 64 lengths: it is read and decompressed once for each of
// these, and no more often than its length fits twice into the file.
TEST(ResourceBoundsOfData, FollowTheLengthOfTheFile) {
  BuiltImage image =
      BuildImage({.virtual_size = 512 * kMebibyte, .steps = {WriteCompressed{.count = 1}}});
  const uint64_t entry = GetL2Entry(image, 0);
  for (uint64_t i = 1; i < kEntries; ++i) {
    SetL2Entry(image, i * kCluster, entry + ((i % 64) << 54));
  }
  const FaultFile without_data(image.bytes);
  CheckImage(without_data, {.threads = 1});
  const FaultFile file(image.bytes);
  const Report report = CheckImage(file, {.threads = 1, .verify_data = true});
  EXPECT_LE(file.reads(), without_data.reads() + 100);
  EXPECT_EQ(report.coverage.compressed_clusters_decompressed, kEntries);
}

INSTANTIATE_TEST_SUITE_P(Images, ResourceBounds, ::testing::ValuesIn(kCases), [](const auto& test) {
  std::string name = test.param.name;
  std::erase_if(name, [](char c) { return !std::isalnum(c); });
  return name;
});

}  // namespace
}  // namespace qcow2check::testing

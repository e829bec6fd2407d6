// Every image of four clusters whose table entries take a small set of values: the real checker and
// the reference checker must agree on each, and the real one must say the same twice.
//
// The tables lie in clusters 1 to 3 and are filled with every combination of nothing, pointers to
// each cluster (of the file, and the one behind its end) with and without COPIED, zero flags,
// compressed descriptors, reserved bits and misaligned pointers. Small as they are, these images
// have every way in which structures can overlap.
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/byte_order.h"
#include "common/header.h"
#include "common/refcount_block.h"
#include "common/table_entry.h"
#include "gtest/gtest.h"
#include "tests/damage.h"
#include "tests/image_metadata.h"
#include "tests/reference_checker.h"
#include "tests/reference_compare.h"

namespace qcow2check::testing {
namespace {

constexpr uint64_t kClusters = 4;
constexpr uint64_t kMostFailuresShown = 5;
// Images on which the check runs a second time; all of them would take too long.
constexpr uint64_t kAgainEvery = 16;

// A word of a table that takes every value of a list.
struct Slot {
  uint64_t offset = 0;
  std::vector<uint64_t> values;
};

// Refcounts of clusters 0, 1, ...
using Refcounts = std::vector<uint64_t>;

struct Family {
  Header header;
  uint64_t file_bytes = 0;
  std::vector<Slot> slots;
  uint64_t block_offset = 0;
  std::vector<Refcounts> refcounts;  // every one of them
};

class Exhaustive {
 public:
  explicit Exhaustive(Family family) : family_(std::move(family)) {
    bytes_ = EncodeHeader(family_.header);
    bytes_.resize(family_.file_bytes);
  }

  void Run() {
    Fill(0);
    std::printf("%d images, %d of them not comparable\n", static_cast<int>(images_),
                static_cast<int>(skipped_));
    EXPECT_EQ(failures_, 0u) << "of " << images_ << " images";
    EXPECT_LT(skipped_ * 5, images_) << "too few images could be compared";
    EXPECT_GT(images_, 1000u);
  }

 private:
  void Fill(size_t slot) {
    if (slot < family_.slots.size()) {
      for (const uint64_t value : family_.slots[slot].values) {
        Store64(&bytes_[family_.slots[slot].offset], value);
        Fill(slot + 1);
      }
      return;
    }
    for (const Refcounts& refcounts : family_.refcounts) {
      std::vector<uint8_t> image = bytes_;
      for (size_t i = 0; i < refcounts.size(); ++i) {
        // A slot in the same cluster has the last word.
        StoreRefcount(&image[family_.block_offset], i,
                      static_cast<int>(family_.header.refcount_order), refcounts[i]);
      }
      Check(image);
    }
  }

  void Check(const std::vector<uint8_t>& image) {
    ++images_;
    const Report report = CheckBytes(image);
    if (images_ % kAgainEvery == 0 && Digest(report, true) != Digest(CheckBytes(image), true)) {
      Fail(image, "two runs differ");
    }
    if (!WhyNotComparable(report).empty()) {
      ++skipped_;
      return;
    }
    const std::string differences = Differences(report, ReferenceCheck(image));
    if (!differences.empty()) Fail(image, differences);
  }

  void Fail(const std::vector<uint8_t>& image, const std::string& why) {
    if (++failures_ > kMostFailuresShown) return;
    std::string words;
    for (uint64_t at = family_.header.cluster_size(); at + 8 <= image.size(); at += 8) {
      const uint64_t word = Peek64(image, at);
      if (word != 0) absl::StrAppendFormat(&words, "  0x%x: %016x\n", at, word);
    }
    ADD_FAILURE() << why << "L1 at " << family_.header.l1_table_offset << ", refcount table at "
                  << family_.header.refcount_table_offset << ", words:\n"
                  << words;
  }

  const Family family_;
  std::vector<uint8_t> bytes_;
  uint64_t images_ = 0;
  uint64_t skipped_ = 0;
  uint64_t failures_ = 0;
};

// A version 3 image with its tables in these clusters, and an L1 table of `l1_size` entries.
Family FamilyWith(int cluster_bits, uint64_t l1_cluster, uint64_t table_cluster, uint64_t l1_size) {
  Family family;
  Header& header = family.header;
  header.magic = kMagic;
  header.version = 3;
  header.cluster_bits = static_cast<uint32_t>(cluster_bits);
  const uint64_t cluster_size = header.cluster_size();
  header.size = l1_size * (cluster_size / 8) * cluster_size;
  header.l1_size = static_cast<uint32_t>(l1_size);
  header.l1_table_offset = l1_cluster * cluster_size;
  header.refcount_table_offset = table_cluster * cluster_size;
  header.refcount_table_clusters = 1;
  header.header_length = kHeaderBytesV3;
  family.file_bytes = kClusters * cluster_size;
  return family;
}

constexpr uint64_t kSize = 512;

// What an L1 entry can be: nothing, any cluster or the one behind the end, with and without COPIED,
// no offset but a flag, reserved bits.
std::vector<uint64_t> L1Values() {
  return {0,
          1 * kSize | kCopiedBit,
          2 * kSize | kCopiedBit,
          3 * kSize | kCopiedBit,
          3 * kSize,
          4 * kSize | kCopiedBit,
          kCopiedBit,
          3 * kSize | kCopiedBit | 1};
}

// What an L2 entry can be. Compressed clusters lie inside cluster 2, across the end of the file,
// and behind it.
std::vector<uint64_t> L2Values() {
  return {0,
          kZeroBit,
          0 * kSize | kCopiedBit,
          1 * kSize | kCopiedBit,
          2 * kSize,
          2 * kSize | kCopiedBit | kZeroBit,
          3 * kSize | kCopiedBit,
          4 * kSize | kCopiedBit,
          4 * kSize | kZeroBit,
          2 * kSize | kCopiedBit | 2,
          EncodeCompressed({2 * kSize + 40, 60}, 9),
          EncodeCompressed({3 * kSize + 500, 400}, 9),
          EncodeCompressed({4 * kSize, 60}, 9) | kCopiedBit};
}

// What a refcount table entry can be: nothing, any cluster, behind the end, reserved bits.
std::vector<uint64_t> TableValues() {
  return {0, 1 * kSize, 2 * kSize, 3 * kSize, 4 * kSize, 3 * kSize | 1, uint64_t{1} << 60};
}

std::vector<Refcounts> SomeRefcounts() {
  return {{1, 1, 1, 1}, {1, 1, 1, 0}, {1, 1, 2, 1}, {1, 2, 1, 1, 1}, {0, 1, 1, 3}};
}

// Header, L1 table, refcount table and refcount block fill the file, so that every mapping is an
// overlap: the L2 table is one of them, or behind the end.
TEST(ReferenceExhaustive, MappingsWithoutRoom) {
  Family family = FamilyWith(9, 1, 2, 1);
  family.block_offset = 3 * kSize;
  family.refcounts = SomeRefcounts();
  family.slots = {{1 * kSize, L1Values()},
                  {2 * kSize, {3 * kSize}},
                  {2 * kSize + 8, {0, 3 * kSize, 4 * kSize}},
                  {3 * kSize + 8 * 3, L2Values()},
                  {3 * kSize + 8 * 4, L2Values()}};
  Exhaustive(family).Run();
}

// The L1 table and the refcount table in every place, also the same one.
TEST(ReferenceExhaustive, TablesAnywhere) {
  for (uint64_t l1 = 1; l1 < kClusters; ++l1) {
    for (uint64_t table = 1; table < kClusters; ++table) {
      Family family = FamilyWith(9, l1, table, 2);
      family.block_offset = 2 * kSize;
      family.refcounts = {{1, 1, 1, 1}, {1, 2, 1, 1}};
      family.slots = {{l1 * kSize + 8, L1Values()},
                      {l1 * kSize, L1Values()},
                      {table * kSize, TableValues()},
                      {3 * kSize + 8 * 5, L2Values()}};
      Exhaustive(family).Run();
    }
  }
}

// The L1 table in the header's unused end makes room for an L2 table and data in cluster 3: with
// the table and its block in 1 and 2 there are sound images among these.
TEST(ReferenceExhaustive, ThreeEntriesOfOneL2Table) {
  Family family = FamilyWith(9, 3, 1, 1);
  family.file_bytes = 5 * kSize;
  family.block_offset = 2 * kSize;
  family.refcounts = {{1, 1, 1, 1, 1}, {1, 1, 1, 1, 0}, {1, 1, 1, 2, 2, 1}};
  family.slots = {{3 * kSize, {4 * kSize | kCopiedBit, 4 * kSize}},
                  {1 * kSize, {2 * kSize}},
                  {4 * kSize, L2Values()},
                  {4 * kSize + 8, L2Values()},
                  {4 * kSize + 8 * 63, L2Values()}};
  Exhaustive(family).Run();
}

// Pointers into the middle of a cluster need clusters larger than 512 bytes.
TEST(ReferenceExhaustive, MisalignedPointers) {
  constexpr uint64_t kLarge = 1024;
  const std::vector<uint64_t> entries = {0,
                                         1 * kLarge | kCopiedBit,
                                         1 * kLarge | 512,
                                         2 * kLarge | 512 | kCopiedBit,
                                         2 * kLarge | 512 | kCopiedBit | kZeroBit,
                                         3 * kLarge | kCopiedBit,
                                         3 * kLarge | 512 | kCopiedBit,
                                         4 * kLarge | 512 | kZeroBit,
                                         uint64_t{1} << 55 | 512 | kCopiedBit};
  for (const uint64_t file_bytes : {4 * kLarge, 4 * kLarge - 512, 4 * kLarge - 1000}) {
    Family family = FamilyWith(10, 1, 2, 1);
    family.file_bytes = file_bytes;
    family.block_offset = 2 * kLarge;
    family.refcounts = {{1, 1, 1, 1}, {1, 1, 2, 1, 1}};
    family.slots = {{1 * kLarge, entries},
                    {2 * kLarge + 8 * 2, {0, 2 * kLarge, 2 * kLarge | 512, 3 * kLarge}},
                    {3 * kLarge, entries},
                    {3 * kLarge + 8, entries}};
    Exhaustive(family).Run();
  }
}

// A snapshot whose L1 table can be anywhere, also the active one with another length.
TEST(ReferenceExhaustive, SnapshotTables) {
  for (const uint64_t l1_size : {1, 64, 65, 300}) {
    Family family = FamilyWith(9, 1, 2, l1_size);
    family.header.nb_snapshots = 1;
    family.header.snapshots_offset = 3 * kSize;
    family.block_offset = 2 * kSize;
    family.refcounts = {{0, 0, 0, 0}};  // cluster 2 is the table and its own block
    std::vector<uint64_t> l1_offsets = {256};
    for (uint64_t cluster = 0; cluster <= kClusters; ++cluster) {
      l1_offsets.push_back(cluster * kSize);
    }
    std::vector<uint64_t> l1_sizes;
    for (const uint64_t entries : {0, 1, 64, 65, 191, 192, 193, 256, 257, 1 << 23}) {
      l1_sizes.push_back(entries << 32);
    }
    family.slots = {{1 * kSize, L1Values()},
                    {2 * kSize, TableValues()},
                    {3 * kSize, l1_offsets},
                    {3 * kSize + 8, l1_sizes},
                    {3 * kSize + 32, {0, 16, 24, 2000}}};
    Exhaustive(family).Run();
  }
}

// Every refcount width, as it is and with lazy refcounts left behind.
TEST(ReferenceExhaustive, RefcountsOfEveryWidth) {
  for (uint32_t order = 0; order <= 6; ++order) {
    for (const bool lazy : {false, true}) {
      Family family = FamilyWith(9, 1, 2, 1);
      family.header.refcount_order = order;
      family.header.incompatible_features = lazy ? uint64_t{kDirty} : 0;
      family.header.compatible_features = lazy ? uint64_t{kLazyRefcounts} : 0;
      family.block_offset = 2 * kSize;
      family.slots = {{1 * kSize, {0, 3 * kSize, 3 * kSize | kCopiedBit}},
                      {3 * kSize, {0, 2 * kSize | kCopiedBit, 2 * kSize, 3 * kSize}},
                      {3 * kSize + 8, {0, 2 * kSize | kCopiedBit, 1 * kSize, 3 * kSize}},
                      {3 * kSize + 16, {0, 2 * kSize}},
                      // The table's second word, among the refcounts of the block that it is in.
                      {2 * kSize + 8, {0, 2 * kSize}}};
      for (uint64_t mask = 0; mask < 32; ++mask) {
        Refcounts refcounts;
        for (int cluster = 0; cluster < 5; ++cluster) refcounts.push_back((mask >> cluster) & 1);
        family.refcounts.push_back(refcounts);
      }
      Exhaustive(family).Run();
    }
  }
}

// Version 2, an external data file and extended L2 entries give other meanings to the same words.
TEST(ReferenceExhaustive, OtherMeaningsOfEntries) {
  for (const bool data_file : {false, true}) {
    Family family = FamilyWith(9, 1, 2, 1);
    family.header.version = data_file ? 3 : 2;
    family.header.header_length = data_file ? kHeaderBytesV3 : kHeaderBytesV2;
    family.header.incompatible_features = data_file ? uint64_t{kExternalDataFile} : 0;
    family.block_offset = 2 * kSize;
    family.refcounts = SomeRefcounts();
    family.slots = {{1 * kSize, L1Values()},
                    {2 * kSize + 8 * 2, {0, 2 * kSize}},
                    {3 * kSize, L2Values()},
                    {3 * kSize + 8, L2Values()}};
    Exhaustive(family).Run();
  }
}

TEST(ReferenceExhaustive, ExtendedL2Entries) {
  constexpr uint64_t kLarge = uint64_t{1} << 14;
  const std::vector<uint64_t> bitmaps = {
      0, 1, uint64_t{1} << 32, uint64_t{1} << 32 | 1, uint64_t{1} << 33 | 1, ~uint64_t{0}};
  const std::vector<uint64_t> entries = {0,
                                         kZeroBit,
                                         kCopiedBit,
                                         2 * kLarge | kCopiedBit,
                                         2 * kLarge | 512,
                                         4 * kLarge | kCopiedBit,
                                         3 * kLarge | kCopiedBit | kZeroBit,
                                         EncodeCompressed({2 * kLarge + 40, 60}, 14)};
  for (const bool data_file : {false, true}) {
    Family family = FamilyWith(14, 1, 2, 1);
    family.header.incompatible_features =
        kExtendedL2 | (data_file ? uint64_t{kExternalDataFile} : 0);
    family.header.size /= 2;
    family.block_offset = 2 * kLarge;
    family.refcounts = {{1, 1, 1, 1}};
    family.slots = {{1 * kLarge, {3 * kLarge | kCopiedBit}},
                    {2 * kLarge + 8, {2 * kLarge}},
                    {3 * kLarge, entries},
                    {3 * kLarge + 8, bitmaps},
                    {3 * kLarge + 16, entries},
                    {3 * kLarge + 24, {0, 1, uint64_t{1} << 32 | 1}}};
    Exhaustive(family).Run();
  }
}

}  // namespace
}  // namespace qcow2check::testing

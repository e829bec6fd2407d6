// Every image of four or five clusters whose table entries take a small set of values: the real
// checker and the reference checker must agree on each, and the real one must say the same twice.
//
// The tables lie behind the header and are filled with every combination of nothing, pointers to
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

  // The number of images that are sound.
  uint64_t Run() {
    Fill(0);
    std::printf("%d images, %d sound, %d not comparable\n", static_cast<int>(images_),
                static_cast<int>(sound_), static_cast<int>(skipped_));
    EXPECT_EQ(failures_, 0u) << "of " << images_ << " images";
    EXPECT_LT(skipped_ * 5, images_) << "too few images could be compared";
    EXPECT_GT(images_, 1000u);
    return sound_;
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
    if (report.verdict == Verdict::kClean) ++sound_;
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
  uint64_t sound_ = 0;
  uint64_t skipped_ = 0;
  uint64_t failures_ = 0;
};

// A version 3 image of so many clusters with its tables in these, and an L1 table of `l1_size`
// entries.
Family FamilyWith(int cluster_bits, uint64_t clusters, uint64_t l1_cluster, uint64_t table_cluster,
                  uint64_t l1_size) {
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
  family.file_bytes = clusters * cluster_size;
  return family;
}

constexpr uint64_t kSize = 512;

// Five clusters, a structure in each: L1 table in 1, refcount table in 2, L2 table in 3, refcount
// block in 4. There are sound images among these.
Family FiveClusters(int cluster_bits, uint64_t l1_size) {
  Family family = FamilyWith(cluster_bits, 5, 1, 2, l1_size);
  const uint64_t cluster_size = family.header.cluster_size();
  family.block_offset = 4 * cluster_size;
  family.slots = {{2 * cluster_size, {4 * cluster_size}}};
  return family;
}

void AddSlots(Family& family, const std::vector<Slot>& slots) {
  family.slots.insert(family.slots.end(), slots.begin(), slots.end());
}

// What an L1 entry can be: nothing, any cluster or the one behind the end, with and without COPIED,
// no offset but a flag, reserved bits.
std::vector<uint64_t> L1Values(uint64_t end_cluster) {
  return {0,
          1 * kSize | kCopiedBit,
          2 * kSize | kCopiedBit,
          3 * kSize | kCopiedBit,
          3 * kSize,
          end_cluster * kSize | kCopiedBit,
          kCopiedBit,
          3 * kSize | kCopiedBit | 1};
}

// What an L2 entry can be. Compressed clusters lie inside cluster 2, across the end of the file,
// and behind it.
std::vector<uint64_t> L2Values(uint64_t end_cluster) {
  const uint64_t end = end_cluster * kSize;
  return {0,
          kZeroBit,
          0 * kSize | kCopiedBit,
          1 * kSize | kCopiedBit,
          2 * kSize,
          2 * kSize | kCopiedBit | kZeroBit,
          3 * kSize | kCopiedBit,
          end | kCopiedBit,
          end | kZeroBit,
          2 * kSize | kCopiedBit | 2,
          EncodeCompressed({2 * kSize + 40, 60}, 9),
          EncodeCompressed({end - 12, 400}, 9),
          EncodeCompressed({end, 60}, 9) | kCopiedBit};
}

// What a refcount table entry can be: nothing, any cluster, behind the end, reserved bits.
std::vector<uint64_t> TableValues() {
  return {0, 1 * kSize, 2 * kSize, 3 * kSize, 4 * kSize, 3 * kSize | 1, uint64_t{1} << 60};
}

std::vector<Refcounts> SomeRefcounts() {
  return {{1, 1, 1, 1}, {1, 1, 1, 1, 1}, {1, 1, 2, 1, 1}, {1, 2, 1, 0, 1, 1}, {0, 1, 1, 3}};
}

// Four clusters: header, L1 table, refcount table and refcount block fill the file, so that every
// mapping is an overlap: the L2 table is one of them, or behind the end.
TEST(ReferenceExhaustive, MappingsWithoutRoom) {
  Family family = FamilyWith(9, 4, 1, 2, 1);
  family.block_offset = 3 * kSize;
  family.refcounts = SomeRefcounts();
  family.slots = {{1 * kSize, L1Values(4)},
                  {2 * kSize, {3 * kSize}},
                  {2 * kSize + 8, {0, 3 * kSize, 4 * kSize}},
                  {3 * kSize + 8 * 3, L2Values(4)},
                  {3 * kSize + 8 * 4, L2Values(4)}};
  Exhaustive(family).Run();
}

// Four clusters, and the L1 table and the refcount table in every place, also the same one.
TEST(ReferenceExhaustive, TablesAnywhere) {
  for (uint64_t l1 = 1; l1 < 4; ++l1) {
    for (uint64_t table = 1; table < 4; ++table) {
      Family family = FamilyWith(9, 4, l1, table, 2);
      family.block_offset = 2 * kSize;
      family.refcounts = {{1, 2, 1, 1}};
      family.slots = {{l1 * kSize + 8, L1Values(4)},
                      {l1 * kSize, L1Values(4)},
                      {table * kSize, TableValues()},
                      {3 * kSize + 8 * 5, L2Values(4)}};
      Exhaustive(family).Run();
    }
  }
}

TEST(ReferenceExhaustive, ThreeEntriesOfOneL2Table) {
  Family family = FiveClusters(9, 1);
  family.refcounts = SomeRefcounts();
  AddSlots(family, {{1 * kSize, {3 * kSize | kCopiedBit, 3 * kSize}},
                    {3 * kSize, L2Values(5)},
                    {3 * kSize + 8, L2Values(5)},
                    {3 * kSize + 8 * 63, L2Values(5)}});
  EXPECT_GT(Exhaustive(family).Run(), 0u) << "no sound image";
}

// Pointers into the middle of a cluster need clusters larger than 512 bytes.
TEST(ReferenceExhaustive, MisalignedPointers) {
  constexpr uint64_t kLarge = 1024;
  const std::vector<uint64_t> entries = {0,
                                         1 * kLarge | kCopiedBit,
                                         1 * kLarge | 512,
                                         3 * kLarge | kCopiedBit,
                                         3 * kLarge | 512 | kCopiedBit,
                                         3 * kLarge | 512 | kCopiedBit | kZeroBit,
                                         4 * kLarge | 512 | kCopiedBit,
                                         5 * kLarge | 512 | kZeroBit,
                                         uint64_t{1} << 55 | 512 | kCopiedBit};
  for (const uint64_t missing : {0, 512, 1000}) {
    Family family = FiveClusters(10, 1);
    family.file_bytes -= missing;
    family.refcounts = {{1, 1, 1, 1, 1}, {1, 1, 1, 2, 1, 1}};
    AddSlots(family, {{1 * kLarge, entries},
                      {2 * kLarge + 8, {0, 2 * kLarge, 4 * kLarge | 512, 3 * kLarge}},
                      {3 * kLarge, entries},
                      {3 * kLarge + 8, entries}});
    Exhaustive(family).Run();
  }
}

// A snapshot whose L1 table can be anywhere, also the active one with another length. Its table is
// in cluster 3, which may be taken for an L2 table, too.
TEST(ReferenceExhaustive, SnapshotTables) {
  // A longer table would reach into the refcount table, and take its block for an L2 table.
  for (const uint64_t l1_size : {1, 64}) {
    Family family = FiveClusters(9, l1_size);
    family.header.nb_snapshots = 1;
    family.header.snapshots_offset = 3 * kSize;
    family.refcounts = {{1, 1, 1, 1, 1}, {1, 2, 1, 2, 1}};
    std::vector<uint64_t> l1_offsets = {256};
    for (uint64_t cluster = 0; cluster <= 5; ++cluster) l1_offsets.push_back(cluster * kSize);
    std::vector<uint64_t> l1_sizes;
    for (const uint64_t entries : {0, 1, 64, 65, 256, 257, 319, 320, 1 << 23}) {
      l1_sizes.push_back(entries << 32);
    }
    AddSlots(family, {{1 * kSize, L1Values(5)},
                      {2 * kSize + 8, {0, 4 * kSize}},
                      {3 * kSize, l1_offsets},
                      {3 * kSize + 8, l1_sizes},
                      {3 * kSize + 32, {0, 16, 24, 2000}}});
    Exhaustive(family).Run();
  }
}

// Every refcount width, as it is and with lazy refcounts left behind.
TEST(ReferenceExhaustive, RefcountsOfEveryWidth) {
  for (uint32_t order = 0; order <= 6; ++order) {
    for (const bool lazy : {false, true}) {
      if (lazy && order % 3 != 1) continue;
      Family family = FiveClusters(9, 1);
      family.header.refcount_order = order;
      family.header.incompatible_features = lazy ? uint64_t{kDirty} : 0;
      family.header.compatible_features = lazy ? uint64_t{kLazyRefcounts} : 0;
      AddSlots(family, {{1 * kSize, {0, 3 * kSize, 3 * kSize | kCopiedBit}},
                        {3 * kSize, {0, 2 * kSize | kCopiedBit, 2 * kSize, 3 * kSize}},
                        {3 * kSize + 8, {0, 2 * kSize | kCopiedBit, 1 * kSize, 3 * kSize}},
                        {3 * kSize + 16, {0, 2 * kSize}}});
      for (uint64_t mask = 0; mask < 64; ++mask) {
        Refcounts refcounts;
        for (int cluster = 0; cluster < 6; ++cluster) refcounts.push_back((mask >> cluster) & 1);
        family.refcounts.push_back(refcounts);
      }
      if (order > 0) family.refcounts.push_back({1, 2, 3, 3, 1});
      EXPECT_GT(Exhaustive(family).Run(), 0u) << "no sound image";
    }
  }
}

// Version 2 and an external data file give other meanings to the same words.
TEST(ReferenceExhaustive, OtherMeaningsOfEntries) {
  for (const bool data_file : {false, true}) {
    Family family = FiveClusters(9, 1);
    family.header.version = data_file ? 3 : 2;
    family.header.header_length = data_file ? kHeaderBytesV3 : kHeaderBytesV2;
    family.header.incompatible_features = data_file ? uint64_t{kExternalDataFile} : 0;
    family.refcounts = SomeRefcounts();
    AddSlots(family,
             {{1 * kSize, L1Values(5)}, {3 * kSize, L2Values(5)}, {3 * kSize + 8, L2Values(5)}});
    EXPECT_GT(Exhaustive(family).Run(), 0u) << "no sound image";
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
                                         5 * kLarge | kCopiedBit,
                                         3 * kLarge | kCopiedBit | kZeroBit,
                                         EncodeCompressed({2 * kLarge + 40, 60}, 14)};
  for (const bool data_file : {false, true}) {
    Family family = FiveClusters(14, 1);
    family.header.incompatible_features =
        kExtendedL2 | (data_file ? uint64_t{kExternalDataFile} : 0);
    family.header.size /= 2;
    family.refcounts = {{1, 1, 1, 1, 1}};
    AddSlots(family, {{1 * kLarge, {3 * kLarge | kCopiedBit}},
                      {3 * kLarge, entries},
                      {3 * kLarge + 8, bitmaps},
                      {3 * kLarge + 16, entries},
                      {3 * kLarge + 24, {0, 1, uint64_t{1} << 32 | 1}}});
    EXPECT_GT(Exhaustive(family).Run(), 0u) << "no sound image";
  }
}

}  // namespace
}  // namespace qcow2check::testing

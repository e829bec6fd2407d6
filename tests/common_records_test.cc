// The small records of common/: bytes in, values out, at the edges.
#include <cstdint>
#include <vector>

#include "common/bitmap_entry.h"
#include "common/checked_math.h"
#include "common/guest_ranges.h"
#include "common/header.h"
#include "common/header_extension.h"
#include "common/limits.h"
#include "common/refcount_block.h"
#include "common/snapshot_entry.h"
#include "common/table_entry.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qcow2check {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(CheckedMath, SaturatesInsteadOfWrapping) {
  EXPECT_EQ(SaturatingAdd(kSaturated, 1), kSaturated);
  EXPECT_EQ(SaturatingMultiply(uint64_t{1} << 33, uint64_t{1} << 31), kSaturated);
  EXPECT_EQ(RoundUp(kSaturated - 3, 512), kSaturated);
  EXPECT_EQ(RoundUp(513, 512), 1024u);
  EXPECT_EQ(DivideRoundingUp(kSaturated, 2), uint64_t{1} << 63);
}

class RefcountWidth : public ::testing::TestWithParam<int> {};

TEST_P(RefcountWidth, StoredValuesComeBackAndNeighboursStay) {
  const int order = GetParam();
  const uint64_t max = Geometry{.refcount_order = order}.refcount_max();
  for (const uint64_t value : {uint64_t{0}, uint64_t{1}, max / 2, max}) {
    std::vector<uint8_t> block(512, 0xa5);
    const std::vector<uint8_t> before = block;
    const uint64_t index = 512 * 8 / (uint64_t{1} << order) - 2;
    StoreRefcount(block.data(), index, order, value);
    EXPECT_EQ(LoadRefcount(block.data(), index, order), value);
    EXPECT_EQ(LoadRefcount(block.data(), index - 1, order),
              LoadRefcount(before.data(), index - 1, order));
    EXPECT_EQ(LoadRefcount(block.data(), index + 1, order),
              LoadRefcount(before.data(), index + 1, order));
  }
}
INSTANTIATE_TEST_SUITE_P(AllWidths, RefcountWidth, ::testing::Range(0, 7));

TEST(RefcountBlock, LowestBitsOfAByteComeFirst) {
  const uint8_t block[] = {0x02, 0x80};
  EXPECT_EQ(LoadRefcount(block, 1, 0), 1u);
  EXPECT_EQ(LoadRefcount(block, 15, 0), 1u);
  EXPECT_EQ(LoadRefcount(block, 0, 1), 2u);
}

class CompressedDescriptor : public ::testing::TestWithParam<int> {};

TEST_P(CompressedDescriptor, EncodingAndDecodingAgree) {
  const int cluster_bits = GetParam();
  for (const uint64_t offset : {uint64_t{0x50000}, uint64_t{0x50001}, uint64_t{0x501ff}}) {
    const CompressedRange range =
        DecodeCompressed(EncodeCompressed({offset, 400}, cluster_bits), cluster_bits);
    EXPECT_EQ(range.offset_bytes, offset);
    EXPECT_GE(range.length_bytes, 400u);
    EXPECT_EQ(range.end_bytes() % kSectorBytes, 0u);
    EXPECT_LT(range.length_bytes, 400u + kSectorBytes);
  }
}
INSTANTIATE_TEST_SUITE_P(ClusterSizes, CompressedDescriptor, ::testing::Range(9, 22));

TEST(CompressedDescriptor, LargestFieldIsTwoClustersOfSectors) {
  const uint64_t all_sectors = kCompressedBit | (uint64_t{0xff} << 54) | 0x10000;
  EXPECT_EQ(DecodeCompressed(all_sectors, 16).length_bytes, 2u << 16);
}

TEST(L2Entry, KindsFollowVersionSubclustersAndDataFile) {
  const Geometry standard = {};
  const Geometry extended = {.extended_l2 = true};
  const Geometry data_file = {.data_file = true};
  EXPECT_EQ(KindOfL2Entry(0, standard), L2EntryKind::kUnallocated);
  EXPECT_EQ(KindOfL2Entry(kZeroBit, standard), L2EntryKind::kZeroPlain);
  EXPECT_EQ(KindOfL2Entry(0x50000 | kZeroBit, standard), L2EntryKind::kZeroAllocated);
  EXPECT_EQ(KindOfL2Entry(0x50000 | kZeroBit, extended), L2EntryKind::kNormal);
  EXPECT_EQ(KindOfL2Entry(kCopiedBit, standard), L2EntryKind::kUnallocated);
  EXPECT_EQ(KindOfL2Entry(kCopiedBit, data_file), L2EntryKind::kNormal);
  EXPECT_EQ(KindOfL2Entry(kCompressedBit | 1, standard), L2EntryKind::kCompressed);
}

TEST(Geometry, LargestClustersDoNotOverflow) {
  const Geometry geometry = {.cluster_bits = static_cast<int>(kMaxClusterBits)};
  EXPECT_EQ(geometry.l2_guest_bytes(), uint64_t{1} << 57);
  EXPECT_EQ(geometry.GuestOffsetOf(kSaturated, 5).bytes, kSaturated);
}

TEST(Header, Version2ImpliesWhatItDoesNotStore) {
  std::vector<uint8_t> bytes(112, 0xff);  // garbage behind byte 71 must not be read
  Store32(&bytes[0], kMagic);
  Store32(&bytes[4], 2);
  const Header header = DecodeHeader(bytes);
  EXPECT_EQ(header.refcount_order, 4u);
  EXPECT_EQ(header.header_length, kHeaderBytesV2);
  EXPECT_EQ(header.incompatible_features, 0u);
}

TEST(Header, FieldTableAgreesWithTheDecoder) {
  std::vector<uint8_t> bytes(112);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i + 1);
  Store32(&bytes[4], 3);
  Store32(&bytes[100], 112);
  const Header header = DecodeHeader(bytes);
  const auto field = [&](size_t i) { return LoadHeaderField(kHeaderFields[i], bytes).value(); };
  const std::vector<uint64_t> decoded = {header.magic,
                                         header.version,
                                         header.backing_file_offset,
                                         header.backing_file_size,
                                         header.cluster_bits,
                                         header.size,
                                         header.crypt_method,
                                         header.l1_size,
                                         header.l1_table_offset,
                                         header.refcount_table_offset,
                                         header.refcount_table_clusters,
                                         header.nb_snapshots,
                                         header.snapshots_offset,
                                         header.incompatible_features,
                                         header.compatible_features,
                                         header.autoclear_features,
                                         header.refcount_order,
                                         header.header_length,
                                         header.compression_type};
  ASSERT_EQ(decoded.size(), kHeaderFields.size());
  for (size_t i = 0; i < decoded.size(); ++i) {
    EXPECT_EQ(decoded[i], field(i)) << kHeaderFields[i].name;
  }
}

TEST(HeaderExtensions, StopAtTheEndMarkerAndAtTheFirstThatIsTooLarge) {
  std::vector<uint8_t> cluster(512);
  Store32(&cluster[104], kExtensionBackingFormat);
  Store32(&cluster[108], 5);
  HeaderExtensionList list = ParseHeaderExtensions(cluster, 104, 512);
  ASSERT_EQ(list.extensions.size(), 1u);
  EXPECT_TRUE(list.has_end_marker);
  EXPECT_EQ(list.end_bytes, 104u + 8 + 8 + 8);

  Store32(&cluster[108], 512 - 112);
  EXPECT_FALSE(ParseHeaderExtensions(cluster, 104, 512).overflow.has_value());
  Store32(&cluster[108], 512 - 112 + 1);
  list = ParseHeaderExtensions(cluster, 104, 512);
  EXPECT_TRUE(list.overflow.has_value());
  EXPECT_THAT(list.extensions, IsEmpty());
}

TEST(BitmapEntry, DataBytesRoundUpTwice) {
  const BitmapEntry entry = {.granularity_bits = 16};
  EXPECT_EQ(entry.DataBytes(0), 0u);
  EXPECT_EQ(entry.DataBytes(1), 1u);
  EXPECT_EQ(entry.DataBytes(uint64_t{8} << 16), 1u);
  EXPECT_EQ(entry.DataBytes((uint64_t{8} << 16) + 1), 2u);
}

TEST(SnapshotEntry, VmStateSizeOf64BitsWins) {
  SnapshotEntry entry = {.vm_state_size_32 = 7};
  EXPECT_EQ(entry.vm_state_bytes(), 7u);
  std::vector<uint8_t> extra(8);
  Store64(extra.data(), uint64_t{5} << 32);
  DecodeSnapshotExtra(extra, entry);
  EXPECT_EQ(entry.vm_state_bytes(), uint64_t{5} << 32);
  EXPECT_FALSE(entry.disk_size.has_value());
}

TEST(GuestRanges, MergesSortsAndCutsAtTheEndOfTheDisk) {
  GuestRanges ranges;
  ranges.Add(300, 100);
  ranges.Add(0, 100);
  ranges.Add(50, 100);
  ranges.Add(kSaturated - 1, 100);
  EXPECT_THAT(ranges.Merged(350), ElementsAre(GuestRange{0, 150}, GuestRange{300, 50}));
}

}  // namespace
}  // namespace qcow2check

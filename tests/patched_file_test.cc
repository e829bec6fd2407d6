// A patched file reads as a file to which the same was written, however it is read.
#include "repair/patched_file.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/memory_file.h"
#include "gtest/gtest.h"
#include "repair/extent_set.h"
#include "tests/dice.h"
#include "tests/fault_file.h"

namespace qcow2check::testing {
namespace {

using Bytes = std::vector<uint8_t>;

constexpr uint64_t kPage = 4096;

// Few different bytes, and long stretches of zeros.
Bytes RandomBytes(Dice& dice, uint64_t length) {
  Bytes bytes(length);
  for (uint64_t at = 0; at < length; at += kPage / 2) {
    std::fill_n(bytes.begin() + static_cast<int64_t>(at), std::min(kPage / 2, length - at),
                static_cast<uint8_t>(dice.Below(3)));
  }
  return bytes;
}

Bytes Read(const ImageFile& file, uint64_t offset, uint64_t length) {
  Bytes bytes(length, 0xee);
  EXPECT_TRUE(file.ReadAt(HostOffset{offset}, absl::MakeSpan(bytes)).ok());
  return bytes;
}

bool IsZero(const Bytes& bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](uint8_t byte) { return byte == 0; });
}

class RandomPatchesTest : public ::testing::TestWithParam<uint64_t> {};

TEST_P(RandomPatchesTest, ReadsLikeAFileThatWasWritten) {
  Dice dice(GetParam());
  const uint64_t size = dice.Between(1, 20 * kPage);
  MemoryFile base(RandomBytes(dice, size));
  PatchedFile patched(base);
  MemoryFile written(base.bytes());
  const uint64_t grown = size + dice.Below(10 * kPage);
  patched.Grow(grown);
  ASSERT_TRUE(written.Resize(grown).ok());
  for (int i = 0; i < 20; ++i) {
    const uint64_t offset = dice.Below(grown);
    const uint64_t length = dice.Between(1, std::min(grown - offset, 3 * kPage));
    const Bytes bytes = RandomBytes(dice, length);
    ASSERT_TRUE(patched.Patch(offset, bytes).ok());
    ASSERT_TRUE(written.WriteAt(HostOffset{offset}, bytes).ok());
  }
  EXPECT_EQ(Read(patched, 0, grown + kPage), Read(written, 0, grown + kPage));
  std::vector<Bytes> dst;
  std::vector<ReadRequest> requests;
  for (int i = 0; i < 20; ++i) dst.emplace_back(dice.Between(1, 3 * kPage));
  for (Bytes& bytes : dst) {
    requests.push_back({HostOffset{dice.Below(grown)}, absl::MakeSpan(bytes), {}});
  }
  patched.ReadMany(absl::MakeSpan(requests));
  for (const ReadRequest& request : requests) {
    ASSERT_TRUE(request.status.ok());
    EXPECT_EQ(Bytes(request.dst.begin(), request.dst.end()),
              Read(written, request.offset.bytes, request.dst.size()));
  }
  ZeroSearch zeros(patched);
  for (uint64_t at = 0; at + 512 <= grown; at += 512) {
    const bool is_zero = IsZero(Read(written, at, 512));
    EXPECT_EQ(ReadsAsZeros(patched, at, 512), is_zero);
    EXPECT_EQ(zeros.ReadsAsZeros(at, 512), is_zero);
    EXPECT_TRUE(is_zero || !patched.IsHole({at, at + 512}));
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, RandomPatchesTest, ::testing::Range<uint64_t>(0, 50));

// Pages that a patch made equal are one until one of them changes.
TEST(PatchedFileTest, EqualPagesStayApart) {
  const MemoryFile base(Bytes(8 * kPage));
  PatchedFile patched(base);
  ASSERT_TRUE(patched.Patch(kPage, Bytes(6 * kPage, 7)).ok());
  ASSERT_TRUE(patched.Patch(3 * kPage + 5, Bytes{9}).ok());
  Bytes expected(8 * kPage);
  std::fill_n(expected.begin() + kPage, 6 * kPage, uint8_t{7});
  expected[3 * kPage + 5] = 9;
  EXPECT_EQ(Read(patched, 0, 8 * kPage), expected);
}

TEST(PatchedFileTest, WhatWasPatchedAsAWholeNeedsNoDisk) {
  FaultFile base(Bytes(8 * kPage));
  base.Break(2 * kPage, 2 * kPage);
  PatchedFile patched(base);
  Bytes bytes(2 * kPage);
  EXPECT_FALSE(patched.Patch(2 * kPage, Bytes{1}).ok());
  ASSERT_TRUE(patched.Patch(2 * kPage, Bytes(2 * kPage, 5)).ok());
  EXPECT_EQ(Read(patched, 2 * kPage, 2 * kPage), Bytes(2 * kPage, 5));
  std::vector<ReadRequest> requests = {{HostOffset{2 * kPage}, absl::MakeSpan(bytes), {}}};
  patched.ReadMany(absl::MakeSpan(requests));
  EXPECT_TRUE(requests[0].status.ok());
  EXPECT_EQ(bytes, Bytes(2 * kPage, 5));
  EXPECT_FALSE(patched.ReadAt(HostOffset{2 * kPage - 1}, absl::MakeSpan(bytes)).ok());
}

TEST(ExtentSetTest, KnowsEveryByteThatWasAdded) {
  Dice dice(1);
  ExtentSet set;
  std::vector<bool> in_set(300);
  for (int i = 0; i < 60; ++i) {
    const uint64_t begin = dice.Below(290);
    const uint64_t end = begin + dice.Between(1, 9);
    set.Add(begin, end);
    std::fill(in_set.begin() + static_cast<int64_t>(begin),
              in_set.begin() + static_cast<int64_t>(end), true);
    for (uint64_t at = 0; at < 300; ++at) {
      const uint64_t until = std::min<uint64_t>(300, at + 1 + i % 7);
      EXPECT_EQ(set.Touches(at, until),
                std::find(in_set.begin() + static_cast<int64_t>(at),
                          in_set.begin() + static_cast<int64_t>(until),
                          true) != in_set.begin() + static_cast<int64_t>(until));
    }
  }
}

}  // namespace
}  // namespace qcow2check::testing

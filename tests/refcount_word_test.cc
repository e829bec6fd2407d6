// 64 refcounts at a time say what each says alone.
#include "common/refcount_word.h"

#include <cstdint>
#include <vector>

#include "gtest/gtest.h"
#include "tests/dice.h"

namespace qcow2check::testing {
namespace {

TEST(RefcountWordTest, MasksSayWhatEachEntrySays) {
  Dice dice(1);
  for (int round = 0; round < 2000; ++round) {
    const int order = static_cast<int>(dice.Below(7));
    std::vector<uint8_t> entries(kWordClusters << order >> 3);
    std::vector<uint8_t> counts(kWordClusters);
    const uint64_t max = order == 6 ? ~uint64_t{0} : (uint64_t{1} << (1 << order)) - 1;
    const std::vector<uint64_t> values = {0,   1,      2,      255,     256,
                                          257, 0x8000, 0xffff, 0x10001, ~uint64_t{0}};
    uint64_t zeros = 0, ones = 0, differing = 0;
    for (uint64_t i = 0; i < kWordClusters; ++i) {
      const uint64_t value = dice.OneOf(values) & max;
      StoreRefcount(entries.data(), i, order, value);
      counts[i] = static_cast<uint8_t>(dice.Percent(50) ? value : dice.OneOf(values));
      zeros |= uint64_t{value == 0} << i;
      ones |= uint64_t{value == 1} << i;
      differing |= uint64_t{value != counts[i]} << i;
    }
    const RefcountWord word = LoadRefcountWord(entries.data(), order);
    EXPECT_EQ(word.is_zero, zeros);
    EXPECT_EQ(word.is_one, ones);
    EXPECT_EQ(DifferingRefcounts(entries.data(), order, counts.data()), differing);
    if (order != 4) continue;
    const RefcountWord word16 = LoadRefcountWord16(entries.data());
    EXPECT_EQ(word16.is_zero, zeros);
    EXPECT_EQ(word16.is_one, ones);
    EXPECT_EQ(DifferingRefcounts16(entries.data(), counts.data()), differing);
  }
}

}  // namespace
}  // namespace qcow2check::testing

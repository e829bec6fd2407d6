// Each accident is what it says: qemu-img counts in the damaged images what was counted when the
// accidents were first rebuilt by hand. And the verbs change the bytes that they name.
#include "tests/damage.h"

#include <ostream>
#include <set>
#include <string>
#include <vector>

#include "common/header.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/program.h"
#include "tests/qemu.h"

namespace qcow2check::testing {
namespace {

using ::testing::ElementsAre;

struct Accident {
  absl::string_view name;
  void (*apply)(BuiltImage& image);
  int exit_code;
  uint64_t corruptions;
  uint64_t leaks;
};

void PrintTo(const Accident& accident, std::ostream* out) { *out << accident.name; }

class QemuCounts : public ::testing::TestWithParam<Accident> {};

TEST_P(QemuCounts, WhatTheFieldSaw) {
  QCOW2CHECK_SKIP_WITHOUT_QEMU();
  static const BuiltImage& healthy = *new BuiltImage(BuildImage(FieldImageOptions()));
  BuiltImage image = healthy;
  GetParam().apply(image);
  const TempDir dir;
  const QemuCheckResult check = QemuCheck(dir.Write("image.qcow2", image.bytes));
  EXPECT_EQ(check.exit_code, GetParam().exit_code);
  EXPECT_EQ(check.corruptions, GetParam().corruptions) << check.err.substr(0, 2000);
  EXPECT_EQ(check.leaks, GetParam().leaks);
}

INSTANTIATE_TEST_SUITE_P(
    Accidents, QemuCounts,
    ::testing::Values(Accident{"L1Zeroed", L1Zeroed, 3, 0, 514},
                      Accident{"L2Zeroed", L2Zeroed, 3, 0, 256},
                      Accident{"L2HasRefcountBlock", L2HasRefcountBlock, 2, 130, 256},
                      Accident{"HeaderText", HeaderText, 63, 0, 0},
                      Accident{"HeaderZeroed4k", HeaderZeroed4k, 63, 0, 0},
                      Accident{"TwoGuestOneHost", TwoGuestOneHost, 2, 1, 1},
                      Accident{"DataEntryIsLiveL2", DataEntryIsLiveL2, 2, 1, 1},
                      Accident{"DataEntryIsRefcountBlock", DataEntryIsRefcountBlock, 2, 2, 1},
                      Accident{"RefcountBlockZeroed", RefcountBlockZeroed, 2, 1032, 0},
                      Accident{"RefcountTableZeroed", RefcountTableZeroed, 2, 1031, 0},
                      Accident{"LiveL2RefcountZero", LiveL2RefcountZero, 2, 2, 0},
                      Accident{"TruncatedTail", TruncatedTail, 2, 64, 0},
                      Accident{"EntryOnePastEnd", EntryOnePastEnd, 2, 2, 1},
                      Accident{"EntryMisaligned", EntryMisaligned, 2, 2, 0},
                      Accident{"DataClusterZeroed", DataClusterZeroed, 0, 0, 0},
                      Accident{"CopiedFlagsClearedInL1", CopiedFlagsClearedInL1, 2, 2, 0},
                      Accident{"TwoL1SameL2", TwoL1SameL2, 2, 257, 0},
                      Accident{"TornL2SecondHalfZero", TornL2SecondHalfZero, 3, 0, 128},
                      Accident{"SnapshotTableGarbage", SnapshotTableGarbage, 1, 0, 0},
                      Accident{"VirtualSizeGrown", VirtualSizeGrown, 1, 0, 0},
                      Accident{"LazyRefcountsStale", LazyRefcountsStale, 2, 1028, 0}),
    [](const ::testing::TestParamInfo<Accident>& one) { return std::string(one.param.name); });

TEST(DamageTest, EveryAccidentDamagesAnyImageItFits) {
  const BuiltImage healthy =
      BuildImage({.cluster_bits = 12,
                  .virtual_size = 8 << 20,
                  .steps = {WriteClusters{.count = 20, .stride = 50}, TakeSnapshot{},
                            WriteClusters{.first = 100, .count = 3}}});
  std::set<absl::string_view> names;
  for (const FieldDamage& damage : AllFieldDamages()) {
    BuiltImage image = healthy;
    damage.apply(image);
    EXPECT_NE(image.bytes, healthy.bytes) << damage.name;
    EXPECT_TRUE(names.insert(damage.name).second) << damage.name;
  }
}

TEST(DamageTest, BytesAndBits) {
  std::vector<uint8_t> bytes(8);
  Poke(bytes, 1, "0a 0b0C");
  EXPECT_THAT(bytes, ElementsAre(0, 10, 11, 12, 0, 0, 0, 0));
  FlipBit(bytes, 0, 7);
  FlipBit64(bytes, 0, 0);
  EXPECT_EQ(Peek64(bytes, 0), 0x800a0b0c00000001u);
  Fill(bytes, 0, 6, 0);
  Poke16(bytes, 2, 0x1234);
  Poke32(bytes, 4, 0x56789abc);
  EXPECT_EQ(Peek64(bytes, 0), 0x0000123456789abcu);
  Truncate(bytes, 3);
  Extend(bytes, 5, 9);
  EXPECT_THAT(bytes, ElementsAre(0, 0, 0x12, 9, 9));
  FillWithText(bytes, 0, 4);
  EXPECT_EQ(std::string(bytes.begin(), bytes.begin() + 4), "Nov ");
}

TEST(DamageTest, FieldsAndEntriesByName) {
  BuiltImage image = BuildImage({.refcount_order = 2, .steps = {WriteClusters{.count = 3}}});
  for (const HeaderField& field : kHeaderFields) {
    const uint64_t old = GetField(image, field.name);
    PokeField(image, field.name, 0x5a);
    EXPECT_EQ(GetField(image, field.name), 0x5au);
    PokeField(image, field.name, old);
  }
  const uint64_t l2_table = image.L2At(0).host_offset;
  EXPECT_EQ(GetL1Entry(image, 0), l2_table | kCopiedBit);
  SetL1Entry(image, 0, 17);
  EXPECT_EQ(GetL1Entry(image, 0), 17u);
  SetL2Entry(image, 2 * 65536 + 5, 18);
  EXPECT_EQ(Peek64(image.bytes, l2_table + 16), 18u);
  const uint64_t cluster = image.ClusterOf(image.At(65536).host_offset);
  EXPECT_EQ(GetRefcount(image, cluster), 1u);
  SetRefcount(image, cluster, 15);
  EXPECT_EQ(GetRefcount(image, cluster), 15u);
  EXPECT_EQ(GetRefcount(image, cluster - 1), 1u);
  EXPECT_EQ(GetRefcount(image, cluster + 1), 1u);
}

}  // namespace
}  // namespace qcow2check::testing

// Repaired images are used (tests/used_image.h): images of every kind, damaged at random.
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/qemu.h"
#include "tests/repair_corpus.h"
#include "tests/used_image.h"

namespace qcow2check::testing {
namespace {

constexpr uint64_t kSeeds = 60;
constexpr uint64_t kDamagedPerSeed = 2;
constexpr uint64_t kLeastTried = 40;

TEST(RepairUse, BuiltImages) {
  QCOW2CHECK_SKIP_WITHOUT_QEMU();
  uint64_t tried = 0;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    const CorpusImage image = MakeCorpusImage(seed);
    Dice dice(seed);
    for (uint64_t i = 0; i < kDamagedPerSeed; ++i) {
      const DamagedImage damaged = DamageImage(image, dice);
      SCOPED_TRACE(absl::StrCat(image.name, ", image ", i, ": ", damaged.damage));
      tried += RepairAndUse(image, damaged.bytes) ? 1 : 0;
    }
  }
  EXPECT_GE(tried, kLeastTried);
}

TEST(RepairUse, QemusImages) {
  QCOW2CHECK_SKIP_WITHOUT_QEMU();
  uint64_t tried = 0;
  for (const CorpusImage& image : MakeQemuImages()) {
    Dice dice(1);
    for (int i = 0; i < 4; ++i) {
      const DamagedImage damaged = DamageImage(image, dice);
      SCOPED_TRACE(absl::StrCat(image.name, ", image ", i, ": ", damaged.damage));
      tried += RepairAndUse(image, damaged.bytes) ? 1 : 0;
    }
  }
  EXPECT_GE(tried, 10);
}

}  // namespace
}  // namespace qcow2check::testing

// Field x verb, and then the image is used: a sample of the pairs that a repair sets right;
// QCOW2CHECK_ALL_IMAGES=1 takes all.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/field_images.h"
#include "tests/field_verbs.h"
#include "tests/qemu.h"
#include "tests/repair_promises.h"
#include "tests/used_image.h"

namespace qcow2check::testing {
namespace {

constexpr uint64_t kOneIn = 37;
constexpr uint64_t kLeastTried = 40;

TEST(FieldVerbsQemu, RepairedImagesCanBeUsed) {
  QCOW2CHECK_SKIP_WITHOUT_QEMU();
  uint64_t number = 0, tried = 0;
  for (const FieldImage& image : FieldImages()) {
    const BuiltImage built = BuildImage(image.options);
    const CorpusImage sound = CorpusImageOf(std::string(image.name), image.options, built);
    for (const FieldPair& pair : PairsOf(image.name, built)) {
      if (number++ % kOneIn != 0 && std::getenv("QCOW2CHECK_ALL_IMAGES") == nullptr) continue;
      SCOPED_TRACE(pair.Words());
      const std::vector<uint8_t> damaged = Damaged(built, pair);
      // What no repair changes is used as it was.
      if (!Repair(damaged).result.changed) continue;
      tried += RepairAndUse(sound, damaged) ? 1 : 0;
    }
  }
  EXPECT_GE(tried, kLeastTried);
  std::printf("%d images were used\n", static_cast<int>(tried));
}

}  // namespace
}  // namespace qcow2check::testing

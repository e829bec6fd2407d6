// The report does not depend on how many threads made it: one and many say the same, to the byte.
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "checker/check.h"
#include "cli/json_report.h"
#include "common/memory_file.h"
#include "gtest/gtest.h"
#include "tests/dice.h"
#include "tests/reference_compare.h"
#include "tests/repair_corpus.h"

namespace qcow2check::testing {
namespace {

// Under the thread sanitizer a check takes fifty times as long.
#ifdef __SANITIZE_THREAD__
constexpr uint64_t kSeeds = 8;
#else
constexpr uint64_t kSeeds = 100;
#endif
constexpr int kDamagedPerSeed = 4;

// Parts of one table or block each, so that small images have many.
Report CheckWith(const MemoryFile& file, uint64_t threads, uint64_t max_findings = 1000,
                 uint64_t part_bytes = 1) {
  return CheckImage(file,
                    {.max_findings = max_findings, .threads = threads, .part_bytes = part_bytes});
}

std::string Json(const Report& report) { return JsonReport("x", report, nullptr, {}, "", true); }

void ExpectSameReports(const std::vector<uint8_t>& bytes, const std::string& what) {
  const MemoryFile file(bytes);
  // With few listed, it matters which findings come first.
  for (const uint64_t max_findings : {0, 1, 1000}) {
    const std::string one = Json(CheckWith(file, 1, max_findings));
    for (const uint64_t threads : {2, 5}) {
      EXPECT_EQ(one, Json(CheckWith(file, threads, max_findings))) << what;
    }
  }
  // How much is read at a time changes the number of reads and nothing else.
  EXPECT_EQ(Digest(CheckWith(file, 1), /*findings=*/true),
            Digest(CheckWith(file, 3, 1000, 512u << 10), /*findings=*/true))
      << what;
}

TEST(ThreadsTest, OneAndManySayTheSame) {
  for (uint64_t seed = 0; seed < kSeeds && !HasFailure(); ++seed) {
    const CorpusImage image = MakeCorpusImage(seed);
    ExpectSameReports(image.bytes, image.name);
    Dice dice(seed + 1);
    for (int i = 0; i < kDamagedPerSeed; ++i) {
      const DamagedImage damaged = DamageImage(image, dice);
      ExpectSameReports(damaged.bytes, absl::StrCat(image.name, ", ", damaged.damage));
    }
  }
}

}  // namespace
}  // namespace qcow2check::testing

// The inputs that once broke a property (corpora/regressions/), each tried again as the fuzzers try
// it (fuzz/properties.h). The first lines of a file say what was wrong.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "fuzz/input.h"
#include "fuzz/properties.h"
#include "gtest/gtest.h"
#include "tests/image_text.h"

namespace qcow2check::testing {
namespace {

std::string BrokenByRecordsOf(const SparseFile& image) { return BrokenByRecords(image.Bytes()); }
std::string BrokenByUndoOf(const SparseFile& image) {
  return BrokenByUndo(UndoInputOf(image.Bytes()));
}

struct Target {
  std::string name;
  std::string (*broken_by)(const SparseFile& image);
};
void PrintTo(const Target& target, std::ostream* out) { *out << target.name; }

std::vector<std::filesystem::path> InputsOf(const std::string& target) {
  const std::filesystem::path directory =
      absl::StrCat(QCOW2CHECK_SOURCE_DIR, "/corpora/regressions/", target);
  std::vector<std::filesystem::path> paths;
  if (!std::filesystem::exists(directory)) return paths;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

class RegressionCorpus : public ::testing::TestWithParam<Target> {};

TEST_P(RegressionCorpus, NoPropertyIsBrokenAgain) {
  for (const std::filesystem::path& path : InputsOf(GetParam().name)) {
    std::ifstream file(path, std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    const absl::StatusOr<SparseFile> image = ParseSparseImage(text);
    ASSERT_TRUE(image.ok()) << path << ": " << image.status();
    EXPECT_EQ(GetParam().broken_by(*image), "") << path;
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, RegressionCorpus,
                         ::testing::Values(Target{"header", BrokenByRecordsOf},
                                           Target{"check", BrokenByCheck},
                                           Target{"repair", BrokenByRepair},
                                           Target{"undo", BrokenByUndoOf}),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace qcow2check::testing

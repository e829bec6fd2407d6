// Field x verb: every field of every record of the format, damaged in every way of the list. The
// check finds each, but those on the reviewed list; and the repair keeps what every repair promises
// (tests/repair_promises.h).
#include "tests/field_verbs.h"

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "checker/check.h"
#include "common/header.h"
#include "common/memory_file.h"
#include "gtest/gtest.h"
#include "tests/repair_corpus.h"
#include "tests/repair_promises.h"

namespace qcow2check::testing {
namespace {

Report CheckBytes(const std::vector<uint8_t>& bytes, const CheckOptions& options = {}) {
  return CheckImage(MemoryFile(bytes), options);
}

// Whether the report says anything that is not true of the sound image as well.
bool IsDetected(const Report& sound, const Report& damaged) {
  const auto says_it_too = [&sound](const Finding& finding) {
    return std::any_of(sound.findings.begin(), sound.findings.end(), [&](const Finding& other) {
      return other.code == finding.code && other.host_offset == finding.host_offset &&
             MessageOf(other) == MessageOf(finding);
    });
  };
  return !std::all_of(damaged.findings.begin(), damaged.findings.end(), says_it_too);
}

const ReviewedPairs* ReviewOf(const FieldPair& pair) {
  const absl::Span<const ReviewedPairs> list = ReviewedList();
  const auto found = std::find_if(
      list.begin(), list.end(), [&pair](const ReviewedPairs& line) { return Matches(line, pair); });
  return found == list.end() ? nullptr : &*found;
}

class FieldVerbs : public ::testing::TestWithParam<FieldImage> {
 protected:
  FieldVerbs()
      : image_(BuildImage(GetParam().options)),
        sound_(CorpusImageOf(std::string(GetParam().name), GetParam().options, image_)),
        sound_report_(CheckBytes(image_.bytes)) {}

  const BuiltImage image_;
  const CorpusImage sound_;
  const Report sound_report_;
};

TEST_P(FieldVerbs, TheImageIsSound) { EXPECT_EQ(sound_report_.verdict, Verdict::kClean); }

TEST_P(FieldVerbs, EveryBitOfARecordIsInTheTable) {
  for (const RecordPlace& record : RecordsOf(GetParam().name)) {
    SCOPED_TRACE(record.name);
    const Region region = record.find(image_);
    std::vector<uint8_t> covered(region.length);
    for (FormatField field : FieldsOf(record.record)) {
      if (region.length != 0) StoreField(covered, 0, field, ~uint64_t{0});
      const auto more =
          covered.begin() + static_cast<int64_t>(field.offset_bytes) + field.word_bytes;
      std::fill_n(more, field.more_bytes, uint8_t{0xff});
    }
    EXPECT_EQ(covered, std::vector<uint8_t>(region.length, 0xff));
  }
}

TEST_P(FieldVerbs, AreFoundUnlessReviewed) {
  const CheckOptions verify = {.verify_data = true,
                               .data_file_opened = sound_.places.geometry.data_file,
                               .data_file_size_bytes = sound_.data_file.size()};
  const Report verified = CheckBytes(image_.bytes, verify);
  int pairs = 0, found = 0, found_in_data = 0;
  for (const FieldPair& pair : PairsOf(GetParam().name, image_)) {
    ++pairs;
    const ReviewedPairs* review = ReviewOf(pair);
    const std::vector<uint8_t> damaged = Damaged(image_, pair);
    const bool is_found = IsDetected(sound_report_, CheckBytes(damaged));
    EXPECT_EQ(is_found, review == nullptr) << pair.Words();
    if (is_found) ++found;
    if (is_found || review == nullptr) continue;
    const bool is_found_in_data = IsDetected(verified, CheckBytes(damaged, verify));
    EXPECT_EQ(is_found_in_data, review->found_by_verify_data) << pair.Words();
    if (is_found_in_data) ++found_in_data;
  }
  std::printf("%d pairs: %d found, %d more with --verify-data, %d on the reviewed list\n", pairs,
              found, found_in_data, pairs - found - found_in_data);
}

TEST_P(FieldVerbs, AreRepairedAsPromised) {
  const bool sound_is_left = Repair(image_.bytes).result.plan.empty();
  int pairs = 0, clean = 0, leaks = 0, in_part = 0, declined = 0, nothing_to_do = 0;
  for (const FieldPair& pair : PairsOf(GetParam().name, image_)) {
    const RepairOutcome outcome = TryRepair(sound_, Damaged(image_, pair));
    const RepairResult& result = outcome.repaired.result;
    EXPECT_EQ(outcome.broken_promises, "") << pair.Words();
    if (sound_is_left && ReviewOf(pair) != nullptr) {
      EXPECT_TRUE(result.plan.empty()) << pair.Words();
    }
    ++pairs;
    if (result.before.verdict == Verdict::kClean) {
      ++nothing_to_do;
    } else if (!result.changed) {
      ++declined;
    } else if (result.after.verdict == Verdict::kClean) {
      ++clean;
    } else if (result.after.verdict == Verdict::kLeaks) {
      ++leaks;
    } else {
      ++in_part;
    }
  }
  std::printf(
      "%d pairs: %d repaired, %d repaired and keep leaks, %d repaired in part, %d declined, %d "
      "with "
      "nothing to repair\n",
      pairs, clean, leaks, in_part, declined, nothing_to_do);
}

// A line that nothing needs would hide what comes to match it.
TEST(FieldVerbsReviewed, EveryLineIsNeeded) {
  std::vector<bool> needed(ReviewedList().size());
  for (const FieldImage& image : FieldImages()) {
    for (const FieldPair& pair : PairsOf(image.name, BuildImage(image.options))) {
      const ReviewedPairs* review = ReviewOf(pair);
      if (review != nullptr) needed[static_cast<size_t>(review - ReviewedList().data())] = true;
    }
  }
  for (size_t i = 0; i < needed.size(); ++i) {
    const ReviewedPairs& line = ReviewedList()[i];
    EXPECT_TRUE(needed[i]) << line.images << ", " << line.records << ", " << line.field << ", "
                           << line.verbs << ": " << line.why;
  }
}

std::string NameOfImage(const ::testing::TestParamInfo<FieldImage>& info) {
  std::string name(info.param.name);
  std::replace_if(
      name.begin(), name.end(), [](char c) { return c == ' ' || c == '-'; }, '_');
  return name;
}
INSTANTIATE_TEST_SUITE_P(Images, FieldVerbs, ::testing::ValuesIn(FieldImages()), NameOfImage);

}  // namespace
}  // namespace qcow2check::testing

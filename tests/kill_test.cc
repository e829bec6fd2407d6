// The program itself, killed (SIGKILL) at each system call of a repair, and of an undo, that
// changes a file or makes it durable: before the call is carried out, and behind it. Started again
// it ends where it would have ended; or an undo gives back the damaged image.
//
// Needs ptrace. One run of the program for each call.
#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/damage.h"
#include "tests/image_builder.h"
#include "tests/program.h"
#include "tests/traced_program.h"

namespace qcow2check::testing {
namespace {

using Bytes = std::vector<uint8_t>;
using Words = std::vector<std::string>;

enum class Moment { kBefore, kBehind };

enum class End { kKilled, kFinished, kNoPtrace };

// Runs the program until its call number `count` (from 0) that changes files, and kills it there.
End RunAndKill(const Words& arguments, int count, Moment moment) {
  Words argv = {QCOW2CHECK_PROGRAM};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  const TracedEnd end = RunTraced(argv, [&](const TracedCall& call) -> CallFate {
    if (!ChangesFiles(call) || count-- != 0) return {};
    return {moment == Moment::kBefore ? Fate::kKilledBefore : Fate::kKilledBehind};
  });
  if (end.no_ptrace) return End::kNoPtrace;
  return end.killed ? End::kKilled : End::kFinished;
}

// Repaired in several steps, with one more cluster in the file; and with new refcount structures.
Bytes CrossLinked() {
  BuiltImage image = BuildImage({.virtual_size = 4 << 20, .steps = {WriteClusters{.count = 8}}});
  SetL2Entry(image, 1 << 16, GetL2Entry(image, 0));
  SetRefcount(image, image.ClusterOf(image.L2At(0).host_offset), 0);
  return image.bytes;
}
Bytes WithoutRefcounts() {
  BuiltImage image = BuildImage({.virtual_size = 4 << 20, .steps = {WriteClusters{.count = 8}}});
  PokeField(image, "refcount_table_offset", 0);
  return image.bytes;
}

class KillTest : public ::testing::TestWithParam<Moment> {
 protected:
  CommandResult Program(const Words& arguments) const {
    Words argv = {"timeout", "60", QCOW2CHECK_PROGRAM};
    argv.insert(argv.end(), arguments.begin(), arguments.end());
    return RunCommand(argv);
  }
  // The image anew, and no undo file.
  void Restart(const Bytes& bytes) const {
    for (const auto& entry : std::filesystem::directory_iterator(dir_.path())) {
      std::filesystem::remove(entry.path());
    }
    WriteFile(image_, bytes);
  }

  TempDir dir_;
  const std::string image_ = dir_.Path("disk.qcow2");
  const std::string undo_ = image_ + ".undo";
};

TEST_P(KillTest, RepairsAreStartedAgainOrTakenBack) {
  for (const Bytes& damaged : {CrossLinked(), WithoutRefcounts()}) {
    Restart(damaged);
    ASSERT_EQ(Program({"--repair", image_}).exit_code, 0);
    const Bytes repaired = ReadFile(image_);
    int calls = 0;
    for (;; ++calls) {
      SCOPED_TRACE(absl::StrCat("killed at call ", calls));
      Restart(damaged);
      const End end = RunAndKill({"--repair", image_}, calls, GetParam());
      if (end == End::kNoPtrace) GTEST_SKIP() << "ptrace is not allowed here";
      if (end == End::kFinished) break;
      const Bytes left = ReadFile(image_);
      if (left != damaged) {
        const CommandResult undo = Program({"undo", undo_, image_});
        EXPECT_EQ(undo.exit_code, 0) << undo.err;
        EXPECT_TRUE(ReadFile(image_) == damaged);
        WriteFile(image_, left);
      }
      EXPECT_EQ(Program({"--repair", image_}).exit_code, 0);
      EXPECT_TRUE(ReadFile(image_) == repaired);
      EXPECT_EQ(Program({image_}).exit_code, 0);
    }
    EXPECT_GT(calls, 10) << "the repair changed files at fewer calls than its steps need";
  }
}

TEST_P(KillTest, AnUndoIsStartedAgain) {
  const Bytes damaged = CrossLinked();
  Restart(damaged);
  ASSERT_EQ(Program({"--repair", image_}).exit_code, 0);
  const Bytes repaired = ReadFile(image_);
  int calls = 0;
  for (;; ++calls) {
    SCOPED_TRACE(absl::StrCat("killed at call ", calls));
    WriteFile(image_, repaired);
    const End end = RunAndKill({"undo", undo_, image_}, calls, GetParam());
    if (end == End::kNoPtrace) GTEST_SKIP() << "ptrace is not allowed here";
    if (end == End::kFinished) break;
    EXPECT_EQ(Program({"undo", undo_, image_}).exit_code, 0);
    EXPECT_TRUE(ReadFile(image_) == damaged);
  }
  EXPECT_GT(calls, 2);
}

INSTANTIATE_TEST_SUITE_P(Moments, KillTest, ::testing::Values(Moment::kBefore, Moment::kBehind),
                         [](const ::testing::TestParamInfo<Moment>& moment) {
                           return moment.param == Moment::kBefore ? "BeforeTheCall"
                                                                  : "BehindTheCall";
                         });

}  // namespace
}  // namespace qcow2check::testing

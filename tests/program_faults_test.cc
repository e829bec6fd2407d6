// The program itself on a system that fails it: each system call by which a repair changes files or
// an image is read fails in turn (a full disk, a broken one), is interrupted, or does less than was
// asked for; the image changes its length meanwhile; no file may become longer; nobody reads what
// is printed. Every run ends with a report or a sentence, and a repair can be taken back or started
// again.
//
// Needs ptrace. One run of the program for each call.
#include <errno.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "cli/watch.h"
#include "common/memory_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "repair/undo.h"
#include "tests/damage.h"
#include "tests/image_builder.h"
#include "tests/program.h"
#include "tests/traced_program.h"

namespace qcow2check::testing {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

using Bytes = std::vector<uint8_t>;
using Words = std::vector<std::string>;

// Repaired in several steps, with one more cluster in the file.
Bytes CrossLinked() {
  BuiltImage image = BuildImage({.virtual_size = 4 << 20, .steps = {WriteClusters{.count = 8}}});
  SetL2Entry(image, 1 << 16, GetL2Entry(image, 0));
  SetRefcount(image, image.ClusterOf(image.L2At(0).host_offset), 0);
  return image.bytes;
}

bool ChangesBytes(const TracedCall& call) {
  return ChangesFiles(call) && call.number != SYS_openat && call.number != SYS_unlink &&
         call.number != SYS_unlinkat;
}

class ProgramFaultsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!CanFailCalls()) GTEST_SKIP() << "calls cannot be changed on this machine";
    Restart();
    const TracedEnd end =
        RunTraced({QCOW2CHECK_PROGRAM, image_}, [](const TracedCall&) { return CallFate{}; });
    if (end.no_ptrace) GTEST_SKIP() << "ptrace is not allowed here";
    ASSERT_EQ(Program({"--repair", image_}).exit_code, 0);
    repaired_ = ReadFile(image_);
    Restart();
  }

  // The damaged image anew, and no undo file.
  void Restart() const {
    for (const auto& entry : std::filesystem::directory_iterator(dir_.path())) {
      std::filesystem::remove(entry.path());
    }
    WriteFile(image_, damaged_);
  }
  CommandResult Program(const Words& arguments) const {
    Words argv = {"timeout", "60", QCOW2CHECK_PROGRAM};
    argv.insert(argv.end(), arguments.begin(), arguments.end());
    return RunCommand(argv);
  }

  // Starts anew for each of the calls that `is_one` names, lets `meet` say what becomes of it, and
  // looks at the end.
  void ForEachCall(const Words& arguments, const std::function<bool(const TracedCall&)>& is_one,
                   const std::function<CallFate()>& meet,
                   const std::function<void(const CommandResult&)>& look_at) const {
    Words argv = {QCOW2CHECK_PROGRAM, "--threads=1"};
    argv.insert(argv.end(), arguments.begin(), arguments.end());
    argv.push_back(image_);
    int calls = 0;
    for (bool reached = true; reached && !HasFailure(); ++calls) {
      SCOPED_TRACE(absl::StrCat("call ", calls));
      Restart();
      reached = false;
      int left = calls;
      const TracedEnd end = RunTraced(argv, [&](const TracedCall& call) -> CallFate {
        if (!is_one(call) || left-- != 0) return {};
        reached = true;
        return meet();
      });
      if (reached) look_at(end.result);
    }
    EXPECT_GT(calls, 5) << "fewer calls than the work needs";
  }

  // The repair came to its end, or said in one line why it did not; and what is left can be taken
  // back, and repaired.
  void ExpectDoneOrStopped(const CommandResult& result) const {
    const Bytes left = ReadFile(image_);
    if (result.exit_code == 0) {
      EXPECT_TRUE(left == repaired_);
      return;
    }
    EXPECT_EQ(result.exit_code, 1) << result.err;
    EXPECT_THAT(result.err, StartsWith("qcow2check: "));
    EXPECT_EQ(absl::c_count(result.err, '\n'), 1) << result.err;
    if (left != damaged_) {
      MemoryFile image(left);
      ASSERT_TRUE(UndoRepair(image, MemoryFile(ReadFile(image_ + ".undo")), {}).ok());
      EXPECT_TRUE(image.bytes() == damaged_);
    }
    EXPECT_EQ(Program({"--repair", image_}).exit_code, 0);
    EXPECT_TRUE(ReadFile(image_) == repaired_);
  }

  bool ReadsImage(const TracedCall& call) const { return Reads(call, image_); }

  const Bytes damaged_ = CrossLinked();
  Bytes repaired_;
  TempDir dir_;
  const std::string image_ = dir_.Path("disk.qcow2");
};

TEST_F(ProgramFaultsTest, ARepairOnAFullOrBrokenDisk) {
  for (const int error : {ENOSPC, EIO}) {
    int stopped = 0;
    ForEachCall(
        {"--repair"}, ChangesFiles,
        [&] {
          return CallFate{Fate::kFails, error};
        },
        [&](const CommandResult& result) {
          ExpectDoneOrStopped(result);
          if (result.exit_code != 0) ++stopped;
        });
    EXPECT_GT(stopped, 10);
  }
}

TEST_F(ProgramFaultsTest, ARepairWhoseReadsFail) {
  ForEachCall(
      {"--repair"}, [this](const TracedCall& call) { return ReadsImage(call); },
      [] {
        return CallFate{Fate::kFails, EIO};
      },
      [&](const CommandResult& result) {
        const Bytes left = ReadFile(image_);
        // Without what could not be read at first less may have been repaired, or otherwise.
        EXPECT_EQ(result.exit_code, result.err.empty() ? Program({image_}).exit_code : 1);
        EXPECT_NE(result.out + result.err, "");
        if (left == damaged_) return;
        MemoryFile image(left);
        ASSERT_TRUE(UndoRepair(image, MemoryFile(ReadFile(image_ + ".undo")), {}).ok());
        EXPECT_TRUE(image.bytes() == damaged_);
      });
}

// As signals and some file systems have it.
TEST_F(ProgramFaultsTest, InterruptedAndShortCallsAreGoneOnWith) {
  const auto is_one = [this](const TracedCall& call) {
    return ChangesBytes(call) || ReadsImage(call);
  };
  for (const CallFate fate : {CallFate{Fate::kFails, EINTR}, CallFate{Fate::kIsShorter}}) {
    ForEachCall(
        {"--repair"}, is_one, [&] { return fate; },
        [&](const CommandResult& result) {
          EXPECT_EQ(result.exit_code, 0) << result.err;
          EXPECT_TRUE(ReadFile(image_) == repaired_);
        });
  }
}

TEST_F(ProgramFaultsTest, ACheckWhoseReadsFail) {
  const CommandResult whole = Program({image_});
  ASSERT_EQ(whole.exit_code, 2);
  ForEachCall(
      {}, [this](const TracedCall& call) { return ReadsImage(call); },
      [] {
        return CallFate{Fate::kFails, EIO};
      },
      [&](const CommandResult& result) {
        if (result.exit_code == 2) {
          EXPECT_EQ(result.out, whole.out);
        } else {
          EXPECT_EQ(result.exit_code, 1);
          EXPECT_THAT(result.out, HasSubstr("Input/output error"));
        }
      });
}

TEST_F(ProgramFaultsTest, AnImageThatChangesItsLength) {
  for (const uint64_t size : {uint64_t{4096}, damaged_.size() / 2, damaged_.size() * 2}) {
    for (const Words& words : {Words{}, Words{"--repair", "-n"}, Words{"--repair"}}) {
      const auto resize = [&] {
        std::filesystem::resize_file(image_, size);
        return CallFate{};
      };
      ForEachCall(
          words, [this](const TracedCall& call) { return ReadsImage(call); }, resize,
          [&](const CommandResult& result) {
            EXPECT_EQ(result.exit_code, 1) << result.out;
            // A repair may have begun.
            EXPECT_THAT(result.err, AnyOf(HasSubstr("another program is writing it"),
                                          StartsWith("qcow2check: the repair of")));
            EXPECT_EQ(absl::c_count(result.err, '\n'), 1) << result.err;
          });
    }
  }
}

// --- What is printed ---

TEST(OutputFaultsTest, AReportThatDoesNotFitIsAnError) {
  TempDir dir;
  dir.Write("disk.qcow2", CrossLinked());
  const CommandResult result =
      RunCommand({"sh", "-c",
                  absl::StrCat("cd ", dir.path(), "; ulimit -f 0; ", QCOW2CHECK_PROGRAM,
                               " --json disk.qcow2 >report")});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_EQ(result.err, "qcow2check: cannot write the report\n");
}

// A watch that shows its line once, to nobody.
[[noreturn]] void WatchWithoutReader() {
  int ends[2];
  if (pipe(ends) != 0) std::abort();
  close(ends[0]);
  dup2(ends[1], STDERR_FILENO);
  Progress progress;
  {
    Watch watch(progress, 1, Watch::Show::kLines);
    kill(getpid(), SIGUSR1);
    sigset_t waiting;
    do {
      sigpending(&waiting);
    } while (sigismember(&waiting, SIGUSR1) != 0);
  }
  std::_Exit(0);
}

TEST(OutputFaultsTest, ProgressThatNobodyReadsEndsNoRepair) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(WatchWithoutReader(), ::testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace qcow2check::testing

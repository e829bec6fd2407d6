// Limits and interruptions: a check that may not go on ends with a report that says so.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "checker/check.h"
#include "checker/progress.h"
#include "common/memory_file.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "repair/repair.h"
#include "tests/damage.h"
#include "tests/image_builder.h"
#include "tests/nbd_server.h"
#include "tests/program.h"
#include "tests/reference_compare.h"

namespace qcow2check::testing {
namespace {

// A few hundred L2 tables of 512 bytes, with a cluster each.
BuiltImage ManyTables() {
  return BuildImage({.cluster_bits = 9,
                     .virtual_size = uint64_t{8} << 20,
                     .steps = {WriteClusters{.count = 256, .stride = 64}}});
}

bool SaysWhatIsMissing(const Report& report) {
  return !report.coverage.complete() && report.totals.check_errors == 1 && ExitCodeOf(report) == 1;
}

TEST(LimitsTest, TimeThatIsOver) {
  const MemoryFile file(ManyTables().bytes);
  const Report report = CheckImage(file, {.deadline = absl::Now() - absl::Seconds(1)});
  EXPECT_EQ(report.verdict, Verdict::kLimitExceeded);
  EXPECT_TRUE(SaysWhatIsMissing(report));
  EXPECT_EQ(report.totals.leaks, 0u);  // what is not examined is not guessed
}

TEST(LimitsTest, ProcessorTimeThatIsUsedUp) {
  const MemoryFile file(ManyTables().bytes);
  const Report report = CheckImage(file, {.processor_time_end = absl::ZeroDuration()});
  EXPECT_EQ(report.verdict, Verdict::kLimitExceeded);
  EXPECT_TRUE(SaysWhatIsMissing(report));
}

// With any amount of memory the check either says all or says that it could not.
TEST(LimitsTest, MemoryThatIsNotEnough) {
  const BuiltImage image = ManyTables();
  const MemoryFile file(image.bytes);
  const std::string whole = Digest(CheckImage(file, {}), /*findings=*/true);
  bool ended = false, finished = false;
  for (uint64_t bytes = 1; bytes < 1 << 20; bytes *= 2) {
    const Report report = CheckImage(file, {.max_memory_bytes = bytes});
    if (report.verdict == Verdict::kLimitExceeded) {
      EXPECT_FALSE(finished) << bytes;
      EXPECT_TRUE(SaysWhatIsMissing(report)) << bytes;
      EXPECT_EQ(report.totals.corruptions + report.totals.leaks, 0u) << bytes;
      ended = true;
    } else {
      EXPECT_EQ(Digest(report, true), whole) << bytes;
      finished = true;
    }
  }
  EXPECT_TRUE(ended);
  EXPECT_TRUE(finished);
}

// A plan is made from whole checks or not at all.
TEST(LimitsTest, NoRepairOfWhatWasNotExamined) {
  BuiltImage image = ManyTables();
  for (uint64_t i = 0; i < 20; ++i) SetRefcount(image, image.At(i).host_offset / 512, 0);
  int refused = 0, planned = 0;
  for (uint64_t bytes = 1; bytes < 1 << 20; bytes += bytes / 4 + 1) {
    MemoryFile file(image.bytes);
    const RepairResult result =
        RepairImage(file, {.max_memory_bytes = bytes}, {.mode = RepairMode::kAll}, nullptr);
    ++(result.plan.empty() ? refused : planned);
    if (result.plan.empty()) {
      EXPECT_FALSE(result.plan.refused.empty()) << bytes;
      EXPECT_EQ(file.bytes(), image.bytes) << bytes;
    } else {
      EXPECT_EQ(result.after.verdict, Verdict::kClean) << bytes;
    }
  }
  EXPECT_GT(refused, 0);
  EXPECT_GT(planned, 0);
}

TEST(LimitsTest, ProgressEndsWhereItWasExpected) {
  const MemoryFile file(ManyTables().bytes);
  Progress progress;
  const Report report = CheckImage(file, {.progress = &progress});
  EXPECT_EQ(report.verdict, Verdict::kClean);
  EXPECT_EQ(progress.bytes_read, report.coverage.bytes_read);
  EXPECT_EQ(progress.bytes_expected, progress.bytes_read);
}

TEST(LimitsTest, InsideTheLimitsThatCloudsSet) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "a sanitizer needs more address space than that for itself";
#endif
  TempDir dir;
  const std::string path = dir.Write("image.qcow2", ManyTables().bytes);
  const CommandResult result = RunCommand(
      {"prlimit", "--as=1073741824", "--cpu=30", QCOW2CHECK_PROGRAM, "--threads=64", path});
  EXPECT_EQ(result.exit_code, 0) << result.out << result.err;
}

TEST(LimitsTest, OptionsOfTheProgram) {
  TempDir dir;
  const std::string path = dir.Write("image.qcow2", ManyTables().bytes);
  const CommandResult result =
      RunCommand({QCOW2CHECK_PROGRAM, "--json", "--max-time=0.000001", path});
  EXPECT_EQ(result.exit_code, 1);
  const nlohmann::json report = nlohmann::json::parse(result.out);
  EXPECT_EQ(report["verdict"], "limit-exceeded");
  EXPECT_FALSE(report["coverage"]["complete"]);
  EXPECT_EQ(report["data"]["state"], "unknown");
  EXPECT_EQ(RunCommand({QCOW2CHECK_PROGRAM, "--max-memory=1G", "--max-time=3600", path}).exit_code,
            0);
  for (const char* wrong : {"--max-memory=x", "--max-time=0", "--max-time=-1", "--max-memory="}) {
    EXPECT_EQ(RunCommand({QCOW2CHECK_PROGRAM, wrong, path}).exit_code, 1) << wrong;
  }
}

// A program that waits for a server which answers late, so that it can be signalled meanwhile.
class SlowCheck {
 public:
  explicit SlowCheck(const BuiltImage& image)
      : server_({"nbdkit", "--filter=delay", "file", dir_.Write("image.qcow2", image.bytes),
                 "rdelay=300ms"}) {
    const std::string uri = server_.uri();
    pid_ = fork();
    if (pid_ != 0) return;
    std::freopen(dir_.Path("out").c_str(), "w", stdout);
    std::freopen(dir_.Path("err").c_str(), "w", stderr);
    execl(QCOW2CHECK_PROGRAM, QCOW2CHECK_PROGRAM, "--json", "--threads=1", uri.c_str(), nullptr);
    _exit(127);
  }

  void Signal(int signal) { kill(pid_, signal); }
  std::string err() const {
    const std::vector<uint8_t> bytes = ReadFile(dir_.Path("err"));
    return std::string(bytes.begin(), bytes.end());
  }
  nlohmann::json report() const {
    const std::vector<uint8_t> bytes = ReadFile(dir_.Path("out"));
    return nlohmann::json::parse(bytes.begin(), bytes.end());
  }
  // Of the program, when it has ended; -1 if a signal ended it.
  int Wait() {
    int status = 0;
    waitpid(pid_, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

 private:
  TempDir dir_;
  NbdServer server_;
  pid_t pid_ = 0;
};

void WaitFor(auto condition) {
  while (!condition()) std::this_thread::sleep_for(std::chrono::milliseconds(10));
}

TEST(LimitsTest, SignalsAskForProgressAndForAnEnd) {
  QCOW2CHECK_SKIP_WITHOUT_NBDKIT();
  SlowCheck check(ManyTables());
  // Until the program has made its watch, SIGUSR1 would end it.
  std::this_thread::sleep_for(std::chrono::milliseconds(150));
  check.Signal(SIGUSR1);
  WaitFor([&check] { return absl::StrContains(check.err(), "of metadata"); });
  check.Signal(SIGINT);
  EXPECT_EQ(check.Wait(), 1);
  const nlohmann::json report = check.report();
  EXPECT_EQ(report["verdict"], "incomplete");
  EXPECT_FALSE(report["coverage"]["complete"]);
  EXPECT_EQ(report["diagnostics"][0]["code"], "interrupted");
}

}  // namespace
}  // namespace qcow2check::testing

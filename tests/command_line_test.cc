// The program as somebody meets it at a shell: what it refuses and in which words, exit codes,
// JSON in every case.
#include <fcntl.h>
#include <pty.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/finding.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/damage.h"
#include "tests/image_builder.h"
#include "tests/program.h"

namespace qcow2check::testing {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;
using Json = nlohmann::json;

// Bounded, so that a program that hangs is a failure and not a test that never ends.
CommandResult Program(const std::vector<std::string>& arguments) {
  std::vector<std::string> argv = {"timeout", "20", QCOW2CHECK_PROGRAM};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  return RunCommand(argv);
}

BuiltImage SmallImage() {
  return BuildImage({.virtual_size = 4 << 20, .steps = {WriteClusters{.count = 8}}});
}

class CommandLineTest : public ::testing::Test {
 protected:
  CommandLineTest() {
    BuiltImage image = SmallImage();
    good_ = dir_.Write("good.qcow2", image.bytes);
    SetL2Entry(image, 0, 0);
    leaky_ = dir_.Write("leaky.qcow2", image.bytes);
    image = SmallImage();
    SetRefcount(image, image.ClusterOf(image.L2At(0).host_offset), 0);
    broken_ = dir_.Write("broken.qcow2", image.bytes);
    raw_ = dir_.Write("raw.img", std::vector<uint8_t>(4096, 0x5a));
  }

  // That the arguments lead to one sentence on stderr that contains `words`, to no report, and
  // with --json to a report with the same sentence.
  void ExpectRefused(std::vector<std::string> arguments, int exit_code, const std::string& words) {
    SCOPED_TRACE(words);
    const CommandResult text = Program(arguments);
    EXPECT_EQ(text.exit_code, exit_code);
    EXPECT_THAT(text.out, IsEmpty());
    EXPECT_THAT(text.err, StartsWith("qcow2check: "));
    EXPECT_THAT(text.err, HasSubstr(words));
    EXPECT_EQ(absl::c_count(text.err, '\n'), 1) << text.err;

    const bool command = !arguments.empty() && arguments[0] == "check";
    arguments.insert(arguments.begin() + (command ? 1 : 0), "--json");
    const CommandResult json = Program(arguments);
    EXPECT_EQ(json.exit_code, exit_code);
    EXPECT_EQ(json.err, text.err);
    const Json report = Json::parse(json.out, nullptr, false);
    ASSERT_TRUE(report.is_object()) << json.out;
    EXPECT_EQ(absl::StrCat("qcow2check: ", report.value("error", ""), "\n"), text.err);
    EXPECT_EQ(report.value("check-errors", 0), 1);
    EXPECT_EQ(report.value("corruptions", -1), 0);
    EXPECT_EQ(report["data"]["state"], "unknown");
  }

  TempDir dir_;
  std::string good_, leaky_, broken_, raw_;
};

TEST_F(CommandLineTest, ExitCodesSayWhatWasFound) {
  EXPECT_EQ(Program({good_}).exit_code, 0);
  EXPECT_EQ(Program({"check", good_}).exit_code, 0);
  EXPECT_EQ(Program({leaky_}).exit_code, 3);
  EXPECT_EQ(Program({broken_}).exit_code, 2);
  EXPECT_EQ(Program({raw_}).exit_code, 63);
}

TEST_F(CommandLineTest, AReportGoesToStdoutAlone) {
  for (const std::string& image : {good_, leaky_, broken_}) {
    for (const std::string output : {"human", "json"}) {
      const CommandResult result = Program({"--output", output, image});
      EXPECT_THAT(result.out, Not(IsEmpty()));
      EXPECT_THAT(result.err, IsEmpty());
    }
  }
}

TEST_F(CommandLineTest, NotQcow2IsSaidInOneSentence) {
  for (const std::vector<std::string>& options :
       {std::vector<std::string>{}, {"-q"}, {"--json"}, {"--json", "-q"}}) {
    std::vector<std::string> arguments = options;
    arguments.push_back(raw_);
    const CommandResult result = Program(arguments);
    EXPECT_EQ(result.exit_code, 63);
    EXPECT_EQ(result.err, absl::StrCat("qcow2check: '", raw_, "' is not a qcow2 image\n"));
  }
  const Json report = Json::parse(Program({"--json", raw_}).out);
  EXPECT_EQ(report["verdict"], "not-qcow2");
  EXPECT_EQ(report["data"]["state"], "unknown");
}

TEST_F(CommandLineTest, MissingFile) {
  ExpectRefused({dir_.Path("none.qcow2")}, 1, "No such file or directory");
  ExpectRefused({""}, 1, "cannot open ''");
}

TEST_F(CommandLineTest, Directory) { ExpectRefused({dir_.path()}, 1, "is a directory"); }

TEST_F(CommandLineTest, EmptyFile) {
  ExpectRefused({dir_.Write("empty.qcow2", {})}, 1, "empty.qcow2' is empty");
}

TEST_F(CommandLineTest, PipeDoesNotHang) {
  const std::string pipe = dir_.Path("pipe");
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  ExpectRefused({pipe}, 1, "not a regular file or block device");
}

TEST_F(CommandLineTest, CharacterDevice) {
  ExpectRefused({"/dev/null"}, 1, "not a regular file or block device");
  ExpectRefused({"/dev/zero"}, 1, "not a regular file or block device");
}

TEST_F(CommandLineTest, FileWithoutPermission) {
  if (geteuid() == 0) GTEST_SKIP() << "root may read everything";
  ASSERT_EQ(chmod(good_.c_str(), 0), 0);
  ExpectRefused({good_}, 1, "Permission denied");
}

TEST_F(CommandLineTest, ImageInUse) {
  const int fd = open(good_.c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  struct flock lock = {};
  lock.l_type = F_RDLCK;
  lock.l_start = 101;  // "I write it"
  lock.l_len = 1;
  ASSERT_EQ(fcntl(fd, F_OFD_SETLK, &lock), 0);
  ExpectRefused({good_}, 1, "is in use by");
  EXPECT_EQ(Json::parse(Program({"--json", good_}).out)["verdict"], "locked");
  EXPECT_EQ(Program({"-U", good_}).exit_code, 0);
  close(fd);
  EXPECT_EQ(Program({good_}).exit_code, 0);
}

TEST_F(CommandLineTest, NoArguments) {
  ExpectRefused({}, 1, "IMAGE is required");
  ExpectRefused({"check"}, 1, "IMAGE is required");
}

TEST_F(CommandLineTest, WrongArguments) {
  ExpectRefused({"--bogus", good_}, 1, "--bogus");
  ExpectRefused({"-Z", good_}, 1, "-Z");
  ExpectRefused({"--output=xml", good_}, 1, "--output");
  ExpectRefused({"--max-findings=many", good_}, 1, "--max-findings");
  ExpectRefused({"--max-findings=-1", good_}, 1, "--max-findings");
  ExpectRefused({"--max-time=nan", good_}, 1, "--max-time");
  ExpectRefused({"-f"}, 1, "-f");
  ExpectRefused({"--image-opts", "driver=qcow2"}, 1, "file.filename");
}

TEST_F(CommandLineTest, OfImageOptionsTheLastCounts) {
  const std::string image =
      absl::StrCat("driver=qcow2,file.filename=", good_, ",file.filename=", broken_);
  EXPECT_EQ(Program({"--image-opts", image}).exit_code, 2);
}

TEST_F(CommandLineTest, OtherFormat) {
  ExpectRefused({"-f", "raw", good_}, 63, "the format 'raw' does not support checks");
}

TEST_F(CommandLineTest, WrongArgumentsOfARepairChangeNothing) {
  const std::vector<uint8_t> before = ReadFile(broken_);
  ExpectRefused({"--repair=some", broken_}, 1, "--repair");
  ExpectRefused({"-r", broken_}, 1, "--repair");
  ExpectRefused({"--repair", "-U", broken_}, 1, "-U cannot be used with --repair");
  ExpectRefused({"--repair", "--no-undo", "--undo-file=x", broken_}, 1, "contradict");
  ExpectRefused({"--repair", "--undo-file=x", broken_, good_}, 1, "for one image, but 2 are named");
  ExpectRefused({"--repair", "--undo-file"}, 1, "--undo-file");
  for (const std::string option :
       {"--dry-run", "--undo-file=x", "--no-undo", "--free-orphans", "--discard"}) {
    ExpectRefused({option, broken_}, 1, "it needs --repair");
  }
  ExpectRefused({"-n", broken_}, 1, "--dry-run is for a repair");
  ExpectRefused({"--repair", "-f", "raw", broken_}, 63, "the format 'raw' does not support checks");
  EXPECT_EQ(ReadFile(broken_), before);
}

TEST_F(CommandLineTest, RepairDoesNotSwallowTheNextArgument) {
  // That would be "--repair leaks" of qemu-img, or a repair of an image of that name.
  for (const std::string mode : {"leaks", "all"}) {
    ExpectRefused({"--repair", mode, broken_}, 1, absl::StrCat("write --repair=", mode, " (or ./"));
    ExpectRefused({"--rep", mode, broken_}, 1, absl::StrCat("write --repair=", mode));
  }
  EXPECT_EQ(Program({"--repair", "-q", broken_}).exit_code, 0);
}

TEST_F(CommandLineTest, ACheckLeavesBytesAndTimesAlone) {
  const std::vector<uint8_t> before = ReadFile(broken_);
  // A time of access in the past, which any read that is noted down would change.
  const std::array<timespec, 2> past = {{{1000000000, 0}, {1000000000, 0}}};
  ASSERT_EQ(utimensat(AT_FDCWD, broken_.c_str(), past.data(), 0), 0);
  struct stat old_info;
  ASSERT_EQ(stat(broken_.c_str(), &old_info), 0);
  Program({"--verify-data", "--chain", broken_});
  struct stat info;
  ASSERT_EQ(stat(broken_.c_str(), &info), 0);
  EXPECT_EQ(info.st_atim.tv_sec, old_info.st_atim.tv_sec);
  EXPECT_EQ(info.st_mtim.tv_sec, old_info.st_mtim.tv_sec);
  EXPECT_EQ(info.st_ctim.tv_sec, old_info.st_ctim.tv_sec);
  EXPECT_EQ(info.st_ctim.tv_nsec, old_info.st_ctim.tv_nsec);
  EXPECT_EQ(ReadFile(broken_), before);
}

TEST_F(CommandLineTest, OfSeveralImagesTheWorstExitCodeCounts) {
  const std::string none = dir_.Path("none.qcow2");
  EXPECT_EQ(Program({good_, good_}).exit_code, 0);
  EXPECT_EQ(Program({good_, leaky_}).exit_code, 3);
  EXPECT_EQ(Program({leaky_, raw_}).exit_code, 63);
  EXPECT_EQ(Program({raw_, none, leaky_}).exit_code, 1);
  EXPECT_EQ(Program({broken_, none, good_}).exit_code, 2);
}

TEST_F(CommandLineTest, SeveralImagesAreALineOfJsonEach) {
  const std::vector<std::string> images = {leaky_, raw_, good_, dir_.Path("none.qcow2"), broken_};
  std::vector<std::string> arguments = {"--json"};
  arguments.insert(arguments.end(), images.begin(), images.end());
  std::vector<std::string> lines = absl::StrSplit(Program(arguments).out, '\n', absl::SkipEmpty());
  ASSERT_EQ(lines.size(), images.size());
  for (size_t i = 0; i < images.size(); ++i) {
    EXPECT_EQ(Json::parse(lines[i])["filename"], images[i]);
  }
}

TEST_F(CommandLineTest, SeveralImagesAreNamedInText) {
  const CommandResult result = Program({good_, leaky_});
  EXPECT_THAT(result.out, HasSubstr(absl::StrCat(good_, ": clean.")));
  EXPECT_THAT(result.out, HasSubstr(absl::StrCat(leaky_, ": leaks.")));
}

TEST_F(CommandLineTest, QuietSaysNothingButErrors) {
  for (const std::string& image : {good_, leaky_, broken_}) {
    const CommandResult result = Program({"-q", image});
    EXPECT_EQ(result.exit_code, Program({image}).exit_code);
    EXPECT_THAT(result.out, IsEmpty());
    EXPECT_THAT(result.err, IsEmpty());
  }
  EXPECT_THAT(Program({"-q", dir_.Path("none.qcow2")}).err, HasSubstr("No such file"));
}

TEST_F(CommandLineTest, UnusualFileNames) {
  const std::vector<uint8_t> bytes = ReadFile(good_);
  for (const std::string name : {"[a,b]", "a b", "-U", "--json", "a,b=c", "\xff\xfe", "%s%n"}) {
    const std::string path = dir_.Write(name, bytes);
    EXPECT_EQ(Program({path}).exit_code, 0) << name;
    const CommandResult result = RunCommand(
        {"sh", "-c", "cd \"$1\" && exec \"$0\" -- \"$2\"", QCOW2CHECK_PROGRAM, dir_.path(), name});
    EXPECT_EQ(result.exit_code, 0) << name << result.err;
  }
}

TEST_F(CommandLineTest, SentencesHoldNoControlCharacters) {
  const CommandResult result = Program({dir_.Path("none\x1b[2J\n.qcow2")});
  EXPECT_THAT(result.err, HasSubstr("none\\x1b[2J\\x0a.qcow2"));
  EXPECT_THAT(result.err, Not(HasSubstr("\x1b")));
}

TEST_F(CommandLineTest, HelpAndVersion) {
  for (const std::vector<std::string>& help :
       {std::vector<std::string>{"--help"}, {"-h"}, {"check", "--help"}, {"--help", good_}}) {
    const CommandResult result = Program(help);
    EXPECT_EQ(result.exit_code, 0);
    EXPECT_THAT(result.out, HasSubstr("Usage: qcow2check"));
    EXPECT_THAT(result.out, HasSubstr("Exit codes: 0 consistent"));
    EXPECT_THAT(result.out, HasSubstr("-n,--dry-run"));
  }
  const CommandResult version = Program({"--version"});
  EXPECT_EQ(version.exit_code, 0);
  EXPECT_THAT(version.out, ContainsRegex("^qcow2check [0-9]+\\.[0-9]+\\.[0-9]+\n$"));
}

TEST_F(CommandLineTest, EveryCodeIsListedAndExplained) {
  const CommandResult list = Program({"--list-codes"});
  EXPECT_EQ(list.exit_code, 0);
  EXPECT_EQ(absl::c_count(list.out, '\n'), static_cast<int64_t>(AllFindingCodes().size()));
  for (const FindingCodeInfo& info : AllFindingCodes()) {
    EXPECT_THAT(list.out, HasSubstr(absl::StrCat(" ", info.name, " ")));
  }
  const CommandResult explained = Program({"explain", "refcount-zero-in-use"});
  EXPECT_EQ(explained.exit_code, 0);
  EXPECT_THAT(explained.out, StartsWith("refcount-zero-in-use (corruption"));
}

TEST_F(CommandLineTest, WrongUseOfExplain) {
  const CommandResult unknown = Program({"explain", "no-such-code"});
  EXPECT_EQ(unknown.exit_code, 1);
  EXPECT_THAT(unknown.err, HasSubstr("no finding code 'no-such-code'"));
  EXPECT_EQ(Program({"explain"}).exit_code, 1);
}

TEST_F(CommandLineTest, AReportThatCannotBeWrittenIsNoSuccess) {
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{good_}, {"--json", good_}, {"--list-codes"}, {"--help"}}) {
    std::vector<std::string> argv = {"sh", "-c", "exec \"$0\" \"$@\" >/dev/full",
                                     QCOW2CHECK_PROGRAM};
    argv.insert(argv.end(), arguments.begin(), arguments.end());
    const CommandResult result = RunCommand(argv);
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_EQ(result.err, "qcow2check: cannot write the report\n");
  }
}

// The output of the program if its standard output is a terminal.
std::string OutputOnTerminal(const std::string& image, const char* variable, const char* value) {
  int terminal = -1;
  const pid_t child = forkpty(&terminal, nullptr, nullptr, nullptr);
  if (child == 0) {
    unsetenv("NO_COLOR");
    setenv("TERM", "xterm", 1);
    if (variable != nullptr) setenv(variable, value, 1);
    execl(QCOW2CHECK_PROGRAM, QCOW2CHECK_PROGRAM, image.c_str(), nullptr);
    _exit(127);
  }
  std::string output;
  std::array<char, 4096> buffer;
  // A terminal whose other side is closed gives EIO.
  for (ssize_t n = 1; n > 0;) {
    n = read(terminal, buffer.data(), buffer.size());
    if (n > 0) output.append(buffer.data(), static_cast<size_t>(n));
  }
  close(terminal);
  waitpid(child, nullptr, 0);
  return output;
}

TEST_F(CommandLineTest, ColourOnlyOnATerminalThatWantsIt) {
  EXPECT_THAT(Program({broken_}).out, Not(HasSubstr("\x1b")));
  int ours = -1, its = -1;
  if (openpty(&ours, &its, nullptr, nullptr, nullptr) != 0) {
    GTEST_SKIP() << "no terminals here (/dev/pts is not mounted)";
  }
  close(ours);
  close(its);
  EXPECT_THAT(OutputOnTerminal(broken_, nullptr, nullptr), HasSubstr("\x1b[31mcorrupt"));
  EXPECT_THAT(OutputOnTerminal(broken_, "NO_COLOR", "1"), Not(HasSubstr("\x1b")));
  EXPECT_THAT(OutputOnTerminal(broken_, "TERM", "dumb"), Not(HasSubstr("\x1b")));
}

}  // namespace
}  // namespace qcow2check::testing

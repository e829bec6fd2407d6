// Many images in one run of the program: the same bytes whatever the number of threads, one bad
// image stops nothing, and lists of names.
#include <unistd.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/check.h"
#include "common/image_lock.h"
#include "common/writable_posix_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/damage.h"
#include "tests/image_builder.h"
#include "tests/program.h"

namespace qcow2check::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Json = nlohmann::json;

using Words = std::vector<std::string>;

CommandResult Program(const Words& options, const Words& images = {}) {
  Words argv = {QCOW2CHECK_PROGRAM};
  argv.insert(argv.end(), options.begin(), options.end());
  argv.insert(argv.end(), images.begin(), images.end());
  return RunCommand(argv);
}

// With its standard input from `path`.
CommandResult ProgramReading(const std::string& path, const std::string& option) {
  return RunCommand({"sh", "-c", "exec \"$0\" --json --files-from=- $2 <\"$1\"", QCOW2CHECK_PROGRAM,
                     path, option});
}

// Both streams in one, as in a log.
std::string LogOf(const Words& options, const Words& images) {
  Words argv = {"sh", "-c", "exec \"$0\" \"$@\" 2>&1", QCOW2CHECK_PROGRAM};
  argv.insert(argv.end(), options.begin(), options.end());
  argv.insert(argv.end(), images.begin(), images.end());
  return RunCommand(argv).out;
}

Words NamesIn(const CommandResult& result) {
  Words names;
  for (const std::string& line : Words(absl::StrSplit(result.out, '\n', absl::SkipEmpty()))) {
    names.push_back(Json::parse(line)["filename"]);
  }
  return names;
}

// A folder with images of every kind: clean, damaged in every way seen in the field, in use, and
// things that are no images.
class FleetTest : public ::testing::Test {
 protected:
  FleetTest() : clean_(dir_.Write("clean.qcow2", Small().bytes)) {
    kinds_.push_back(clean_);
    for (const FieldDamage& damage : AllFieldDamages()) {
      BuiltImage image = Small();
      damage.apply(image);
      kinds_.push_back(dir_.Write(absl::StrCat(damage.name, ".qcow2"), image.bytes));
    }
    kinds_.push_back(dir_.Path("missing.qcow2"));
    kinds_.push_back(dir_.path());
    kinds_.push_back(dir_.Write("empty", {}));
    kinds_.push_back(dir_.Write("raw.img", std::vector<uint8_t>(4096, 0x5a)));
    kinds_.push_back(dir_.Write("in-use.qcow2", Small().bytes));
    in_use_ = *WritablePosixFile::Open(kinds_.back());
    QCOW2CHECK_CHECK(LockForRepair(in_use_->fd(), kinds_.back()).ok());
  }

  static BuiltImage Small() {
    return BuildImage(
        {.cluster_bits = 12,
         .virtual_size = 8 << 20,
         .steps = {WriteClusters{.count = 50}, WriteClusters{.first = 1024, .count = 50}}});
  }

  // `count` names, the kinds in turn.
  Words Fleet(size_t count) const {
    Words images;
    for (size_t i = 0; i < count; ++i) images.push_back(kinds_[i % kinds_.size()]);
    return images;
  }
  std::string List(absl::string_view text) const {
    return dir_.Write("list", std::vector<uint8_t>(text.begin(), text.end()));
  }

  TempDir dir_;
  std::string clean_;
  Words kinds_;
  std::unique_ptr<WritablePosixFile> in_use_;
};

TEST_F(FleetTest, TheSameBytesWithAnyNumberOfThreads) {
  const Words images = Fleet(300);
  for (const std::string output : {"--output=json", "--output=human", "--quiet"}) {
    const CommandResult one = Program({output, "--threads=1"}, images);
    EXPECT_EQ(one.exit_code, 2);
    for (const Words& threads :
         {Words{"--threads=2"}, Words{"--threads=8"}, Words{"--threads=256"}, Words{}}) {
      Words options = threads;
      options.push_back(output);
      const CommandResult many = Program(options, images);
      EXPECT_EQ(many.exit_code, 2);
      EXPECT_TRUE(many.out == one.out) << absl::StrJoin(options, " ");
      EXPECT_EQ(many.err, one.err);
    }
  }
}

TEST_F(FleetTest, ALineForEachImageInTheOrderGiven) {
  const Words images = Fleet(300);
  EXPECT_EQ(NamesIn(Program({"--json"}, images)), images);
}

TEST_F(FleetTest, WhatIsSaidAboutAnImageStaysTogether) {
  std::string one_by_one;
  for (const std::string& image : kinds_) {
    absl::StrAppend(&one_by_one, LogOf({"--json", "--files-from", List(image)}, {}));
  }
  EXPECT_EQ(LogOf({"--json", "--threads=8"}, kinds_), one_by_one);
}

TEST_F(FleetTest, TheWorstExitCodeCountsWhereverItIs) {
  const std::string corrupt = dir_.Path("two-guest-one-host.qcow2");
  ASSERT_EQ(Program({}, {corrupt}).exit_code, 2);
  const std::string missing = dir_.Path("missing.qcow2");
  for (const size_t place : {0, 1, 99, 198, 199}) {
    Words images(200, clean_);
    images[place] = missing;
    EXPECT_EQ(Program({"-q", "--threads=8"}, images).exit_code, 1);
    images[199 - place] = corrupt;
    EXPECT_EQ(Program({"-q", "--threads=8"}, images).exit_code, 2);
  }
}

TEST_F(FleetTest, OneFileUnderManyNames) {
  const std::string link = dir_.Path("link.qcow2");
  const std::string symlink_path = dir_.Path("symlink.qcow2");
  ASSERT_EQ(::link(clean_.c_str(), link.c_str()), 0);
  ASSERT_EQ(symlink(clean_.c_str(), symlink_path.c_str()), 0);
  Words images;
  for (int i = 0; i < 100; ++i) images.insert(images.end(), {clean_, link, symlink_path});
  const CommandResult result = Program({"--json", "--threads=8"}, images);
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.err, IsEmpty());
  EXPECT_EQ(NamesIn(result), images);
}

TEST_F(FleetTest, OverlaysOfOneBackingFile) {
  Words overlays;
  for (int i = 0; i < 40; ++i) {
    overlays.push_back(dir_.Write(
        absl::StrCat("overlay", i),
        BuildImage({.virtual_size = 256 << 10, .backing = {{.file = "clean.qcow2"}}}).bytes));
  }
  const CommandResult one = Program({"--json", "--chain", "--threads=1"}, overlays);
  EXPECT_EQ(one.exit_code, 0) << one.out;
  EXPECT_EQ(Program({"--json", "--chain", "--threads=8"}, overlays).out, one.out);
}

TEST_F(FleetTest, ARepairOfOneFileUnderTwoNames) {
  const std::string broken = dir_.Path("live-l2-refcount-zero.qcow2");
  const std::string link = dir_.Path("link.qcow2");
  ASSERT_EQ(::link(broken.c_str(), link.c_str()), 0);
  const CommandResult result =
      Program({"--json", "--repair", "--threads=8"}, {broken, link, broken});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  Words verdicts;
  for (const std::string& line : Words(absl::StrSplit(result.out, '\n', absl::SkipEmpty()))) {
    verdicts.push_back(Json::parse(line)["verdict"]);
  }
  EXPECT_EQ(verdicts, (Words{"repaired", "clean", "clean"}));
}

TEST_F(FleetTest, NamesFromAFileComeBehindThoseOnTheCommandLine) {
  const Words listed = {clean_, dir_.Path("missing.qcow2"), dir_.Path(" two  words ")};
  const std::string text = absl::StrCat("\n", absl::StrJoin(listed, "\n\n"));
  Words all = {dir_.Path("first"), clean_};
  all.insert(all.end(), listed.begin(), listed.end());
  const CommandResult result =
      Program({"--json", "--files-from", List(text)}, {dir_.Path("first"), clean_});
  EXPECT_EQ(NamesIn(result), all);
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_EQ(NamesIn(ProgramReading(List(text), "")), listed);
  EXPECT_EQ(NamesIn(ProgramReading(List(text + "\n"), "")), listed);
}

TEST_F(FleetTest, NamesThatEndInANul) {
  const Words listed = {clean_, dir_.Path("two\nlines"), dir_.Path("last")};
  const std::string text = absl::StrJoin(listed, std::string(1, '\0'));
  EXPECT_EQ(NamesIn(ProgramReading(List(text), "-0")), listed);
  EXPECT_EQ(NamesIn(ProgramReading(List(text + '\0'), "--null")), listed);
}

TEST_F(FleetTest, MoreNamesThanACommandLineHolds) {
  Words images;
  for (int i = 0; i < 20000; ++i) images.push_back(dir_.Path(absl::StrCat("missing", i)));
  const CommandResult result =
      Program({"--json", "--files-from", List(absl::StrJoin(images, "\n"))});
  EXPECT_EQ(NamesIn(result), images);
}

// A list that happens to hold one name gives what the others give.
TEST_F(FleetTest, AListOfOneNameIsAListToo) {
  const CommandResult json = Program({"--json", "--files-from", List(clean_)});
  EXPECT_EQ(NamesIn(json), Words{clean_});
  const CommandResult text = Program({"--files-from", List(clean_)});
  EXPECT_THAT(text.out, HasSubstr("clean.qcow2: clean."));
}

TEST_F(FleetTest, ListsThatAreRefused) {
  struct Case {
    Words options;
    std::string words;
  };
  for (const auto& [options, words] : std::vector<Case>{
           {{"--files-from", dir_.Path("none")}, "none': No such file or directory"},
           {{"--files-from", dir_.path()}, "Is a directory"},
           {{"--files-from", clean_}, "not a list of names: it holds a NUL"},
           {{"--files-from", List("\n\n")}, "list' names no image"},
           {{"--files-from", "-"}, "'-' names no image"},
           {{"--files-from"}, "--files-from"},
           {{"-0", clean_}, "it needs --files-from"},
           {{"--threads=0", clean_}, "--threads"},
           {{"--threads=257", clean_}, "--threads"},
           {{"--threads=two", clean_}, "--threads"},
       }) {
    const CommandResult result = Program(options);
    EXPECT_EQ(result.exit_code, 1) << words;
    EXPECT_THAT(result.out, IsEmpty());
    EXPECT_THAT(result.err, HasSubstr(words));
  }
}

}  // namespace
}  // namespace qcow2check::testing

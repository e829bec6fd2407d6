// `qcow2check --repair` as somebody meets them at a shell: what is written and where,
// what is refused and in which words, and what is said when it goes wrong in the middle.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/checked_program.h"
#include "tests/damage.h"
#include "tests/image_builder.h"
#include "tests/program.h"

namespace qcow2check::testing {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;
using Json = nlohmann::json;
using Bytes = std::vector<uint8_t>;
using Words = std::vector<std::string>;

CommandResult Program(const Words& arguments) {
  Words argv = {"timeout", "60", QCOW2CHECK_PROGRAM};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  return RunCommand(argv);
}

// In a shell, behind `setting`, in the folder `folder`.
CommandResult RunBehind(const std::string& setting, const std::string& folder,
                        const Words& arguments) {
  Words argv = {"sh", "-c", absl::StrCat("cd \"$1\" && shift && ", setting, "exec \"$0\" \"$@\""),
                QCOW2CHECK_PROGRAM, folder};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  return RunCommand(argv);
}

BuiltImage SmallImage() {
  return BuildImage({.virtual_size = 4 << 20, .steps = {WriteClusters{.count = 8}}});
}

// A refcount that is too low, and two guest clusters on one host cluster without an orphan that
// could be the other one's: repaired in several steps, with one more cluster in the file.
BuiltImage DamagedImage() {
  BuiltImage image = BuildImage(FieldImageOptions());
  SetL2Entry(image, 1 << 16, GetL2Entry(image, 0));
  SetRefcount(image, image.ClusterOf(image.L2At(0).host_offset), 0);
  return image;
}

// An L2 table full of something else: its range is lost, what it mapped is held back.
BuiltImage LostTable() {
  BuiltImage image = BuildImage(FieldImageOptions());
  const uint64_t table = image.L2At(0).host_offset;
  for (uint64_t i = 0; i < 65536; i += 2) {
    image.bytes[table + i] = 0;
    image.bytes[table + i + 1] = 1;
  }
  return image;
}

class RepairCommandTest : public ::testing::Test {
 protected:
  RepairCommandTest() {
    BuiltImage image = SmallImage();
    good_ = dir_.Write("good.qcow2", image.bytes);
    SetL2Entry(image, 0, 0);
    leaky_bytes_ = image.bytes;
    leaky_ = dir_.Write("leaky.qcow2", leaky_bytes_);
    damaged_bytes_ = DamagedImage().bytes;
    damaged_ = dir_.Write("damaged.qcow2", damaged_bytes_);
  }

  // All files in the folder but the images of the fixture.
  Words NewFiles() const {
    Words names;
    for (const auto& entry : std::filesystem::directory_iterator(dir_.path())) {
      const std::string name = entry.path().filename();
      if (name != "good.qcow2" && name != "leaky.qcow2" && name != "damaged.qcow2") {
        names.push_back(name);
      }
    }
    absl::c_sort(names);
    return names;
  }

  // Exit code 1, one sentence with `words`, nothing on stdout, nothing changed, no file left.
  void ExpectRefused(const CommandResult& result, const std::string& words) {
    EXPECT_EQ(result.exit_code, 1) << result.err;
    EXPECT_THAT(result.out, IsEmpty());
    EXPECT_THAT(result.err, AllOf(StartsWith("qcow2check: "), HasSubstr(words)));
    EXPECT_EQ(absl::c_count(result.err, '\n'), 1) << result.err;
    EXPECT_EQ(ReadFile(damaged_), damaged_bytes_);
    EXPECT_EQ(ReadFile(leaky_), leaky_bytes_);
  }

  TempDir dir_;
  std::string good_, leaky_, damaged_;
  Bytes leaky_bytes_, damaged_bytes_;
};

// --- Repairing and taking it back ---

TEST_F(RepairCommandTest, OneRepairIsEnoughAndUndoTakesItBack) {
  const CheckedImage first = CheckWithProgram(damaged_, {"--repair"});
  EXPECT_EQ(first.exit_code, 0) << first.json.dump(1);
  EXPECT_EQ(first.verdict(), "repaired");
  EXPECT_EQ(first.Number("corruptions"), 0);
  EXPECT_GT(first.Number("corruptions-fixed"), 0);
  EXPECT_TRUE(first.json["repair"]["changed"]);
  const Bytes repaired = ReadFile(damaged_);

  const CheckedImage second = CheckWithProgram(damaged_, {"--repair"});
  EXPECT_EQ(second.exit_code, 0);
  EXPECT_FALSE(second.json["repair"]["changed"]);
  EXPECT_THAT(second.json["repair"]["writes"], IsEmpty());
  EXPECT_EQ(ReadFile(damaged_), repaired);
  EXPECT_THAT(NewFiles(), ElementsAre("damaged.qcow2.undo"));

  const CommandResult undo = Program({"undo", damaged_ + ".undo", damaged_});
  EXPECT_EQ(undo.exit_code, 0) << undo.err;
  EXPECT_THAT(undo.out, HasSubstr("is as it was before the repair: "));
  EXPECT_EQ(ReadFile(damaged_), damaged_bytes_);
  EXPECT_THAT(Program({"undo", damaged_ + ".undo", damaged_}).out,
              HasSubstr("nothing was written"));
}

TEST_F(RepairCommandTest, LeaksAreFreedByLeaks) {
  const CheckedImage result = CheckWithProgram(leaky_, {"-r", "leaks"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.verdict(), "repaired");
  EXPECT_EQ(result.Number("leaks-fixed"), 1);
  EXPECT_EQ(result.json["repair"]["mode"], "leaks");
  EXPECT_EQ(result.TheOnly("leaked-cluster")["repair"]["status"], "done");
  EXPECT_EQ(CheckWithProgram(leaky_).verdict(), "clean");
}

TEST_F(RepairCommandTest, LeaksLeavesCorruptionAndSaysSo) {
  const CommandResult result = Program({"--repair=leaks", damaged_});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.out,
              StartsWith(absl::StrCat(damaged_, ": --repair=leaks changed nothing.\n")));
  EXPECT_THAT(result.out, HasSubstr("\n  Left as it is:\n"));
  EXPECT_EQ(ReadFile(damaged_), damaged_bytes_);
  EXPECT_THAT(NewFiles(), IsEmpty());
}

TEST_F(RepairCommandTest, ACleanImageIsNotTouched) {
  const Bytes before = ReadFile(good_);
  const CommandResult result = Program({"--repair", good_});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.out, Program({good_}).out);
  EXPECT_EQ(ReadFile(good_), before);
  EXPECT_THAT(NewFiles(), IsEmpty());
}

TEST_F(RepairCommandTest, TheTextSaysWhatWasDoneAndHowToTakeItBack) {
  const CommandResult result = Program({"--repair", leaky_});
  EXPECT_THAT(result.out, StartsWith(absl::StrCat(leaky_, ": --repair=all is done (1 write, 2 ")));
  EXPECT_THAT(result.out, HasSubstr("\n  leaked-cluster        lower-refcount, lossless: 1 write"));
  EXPECT_THAT(result.out,
              HasSubstr(absl::StrCat("\n    qcow2check undo ", leaky_, ".undo ", leaky_, "\n")));
  EXPECT_THAT(result.out, ContainsRegex("were found and repaired:\n\n    1 leaked clusters\n    0 "
                                        "corruptions\n\nDouble checking the fixed image "
                                        "now\\.\\.\\.\nNo errors were found on the image\\."));
}

TEST_F(RepairCommandTest, WhatCannotBeRepairedIsSaid) {
  BuiltImage image = SmallImage();
  image.bytes[75] |= 1;  // an incompatible feature that nobody knows
  const std::string unknown = dir_.Write("unknown.qcow2", image.bytes);
  const CommandResult result = Program({"--repair", unknown});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.out, StartsWith(absl::StrCat(unknown, ": --repair=all changed nothing.\n\n",
                                                  unknown, ": uses features that this program")));
  EXPECT_EQ(ReadFile(unknown), image.bytes);
  EXPECT_THAT(NewFiles(), ElementsAre("unknown.qcow2"));
}

TEST_F(RepairCommandTest, BackingFilesAreCheckedBehindTheRepairAndNotWritten) {
  BuiltImage image =
      BuildImage({.virtual_size = 4 << 20,
                  .backing = BackingOptions{.file = "damaged.qcow2", .format = "qcow2"},
                  .steps = {WriteClusters{.count = 8}}});
  SetL2Entry(image, 0, 0);
  const std::string top = dir_.Write("top.qcow2", image.bytes);
  const CheckedImage result = CheckWithProgram(top, {"--repair", "--chain"});
  EXPECT_EQ(result.Number("leaks-fixed"), 1u);
  EXPECT_EQ(result.json["chain"][0]["verdict"], "corrupt");
  EXPECT_EQ(result.CountOf("chain-layer-bad"), 1u);
  EXPECT_EQ(result.TheOnly("chain-layer-bad")["repair"]["status"], "none");
  EXPECT_EQ(ReadFile(damaged_), damaged_bytes_);
}

TEST_F(RepairCommandTest, QuietSaysNothing) {
  const CommandResult result = Program({"-q", "--repair", leaky_});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.out + result.err, IsEmpty());
  EXPECT_THAT(NewFiles(), ElementsAre("leaky.qcow2.undo"));
}

TEST_F(RepairCommandTest, QuietSaysWhyAnImageWasNotChecked) {
  const CommandResult result = Program({"-q", "--max-memory=1", leaky_});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, AllOf(StartsWith("qcow2check: '"), HasSubstr("not examined"),
                                HasSubstr("max-memory")));
  EXPECT_THAT(result.out, IsEmpty());
}

TEST_F(RepairCommandTest, ARepairIsToldOfEvenIfItsReportCannotBeWritten) {
  const CommandResult result =
      RunBehind("exec >/dev/full; ", dir_.path(), {"--repair", "leaky.qcow2"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err,
              AllOf(HasSubstr("'leaky.qcow2' was changed by the repair; what was overwritten is "
                              "kept in 'leaky.qcow2.undo'"),
                    HasSubstr("cannot write the report")));
}

TEST_F(RepairCommandTest, SeveralImagesAreRepairedEachOnItsOwn) {
  const CommandResult result =
      Program({"--repair", "--json", leaky_, dir_.Path("none"), good_, damaged_});
  EXPECT_EQ(result.exit_code, 1);  // for the missing one
  const Words lines = absl::StrSplit(result.out, '\n', absl::SkipEmpty());
  ASSERT_EQ(lines.size(), 4u);
  Words verdicts;
  for (const std::string& line : lines) verdicts.push_back(Json::parse(line)["verdict"]);
  EXPECT_THAT(verdicts, ElementsAre("repaired", "incomplete", "clean", "repaired"));
  EXPECT_THAT(NewFiles(), ElementsAre("damaged.qcow2.undo", "leaky.qcow2.undo"));
}

TEST_F(RepairCommandTest, ImageOptsNameTheFileToRepair) {
  const CommandResult result =
      Program({"-r", "all", "--image-opts", "driver=qcow2,file.filename=" + leaky_});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(NewFiles(), ElementsAre("leaky.qcow2.undo"));
  EXPECT_THAT(result.out, HasSubstr(absl::StrCat("qcow2check undo ", leaky_, ".undo ", leaky_)));
}

// --- What would be lost, and what is held back ---

TEST_F(RepairCommandTest, WhatIsGivenUpIsSaidFirstAndCounted) {
  const std::string image = dir_.Write("lost.qcow2", LostTable().bytes);
  const CommandResult plan = Program({"--repair", "-n", image});
  EXPECT_EQ(plan.exit_code, 2);
  EXPECT_LT(plan.out.find("THIS WOULD GIVE UP DATA"), plan.out.find("This loses nothing"));
  EXPECT_THAT(plan.out, HasSubstr("Guest ranges that would read as zeros from then on (512 MiB): 0 "
                                  "to 512 MiB"));
  EXPECT_THAT(plan.out, HasSubstr("\n  Held back: "));
  EXPECT_THAT(plan.out,
              HasSubstr(absl::StrCat("\n    qcow2check --repair --free-orphans ", image, "\n")));

  const CheckedImage repaired = CheckWithProgram(image, {"--repair"});
  EXPECT_EQ(repaired.exit_code, 3);
  EXPECT_EQ(repaired.verdict(), "leaks");
  EXPECT_EQ(repaired.data_state(), "lost");
  EXPECT_THAT(repaired.lost_guest_ranges(), ElementsAre(GuestRange{0, 512 << 20}));
  EXPECT_EQ(repaired.lost_guest_bytes(), 512u << 20);
  EXPECT_EQ(repaired.TheOnly("lost-l2-table")["repair"]["safety"], "lossy");
  EXPECT_GT(repaired.held_back_clusters(), 0u);
}

// The image is as it should be then, but of two guest clusters one has what is not its own.
TEST_F(RepairCommandTest, WhatWasCopiedIsAmbiguous) {
  BuiltImage disk = BuildImage({.steps = {WriteClusters{.count = 8}}});
  const uint64_t lost = disk.ClusterOf(disk.At(uint64_t{5} << 16).host_offset);
  SetL2Entry(disk, uint64_t{5} << 16, GetL2Entry(disk, uint64_t{4} << 16));
  SetRefcount(disk, lost, 0);
  const std::string image = dir_.Write("crossed.qcow2", disk.bytes);
  EXPECT_THAT(Program({"--repair", "-n", image}).out, HasSubstr("would have a copy of its own"));
  const CheckedImage repaired = CheckWithProgram(image, {"--repair"});
  EXPECT_EQ(repaired.exit_code, 0);
  EXPECT_EQ(repaired.verdict(), "repaired");
  EXPECT_EQ(repaired.data_state(), "ambiguous");
}

TEST_F(RepairCommandTest, FreeOrphansFreesWhatWasHeldBack) {
  const std::string image = dir_.Write("lost.qcow2", LostTable().bytes);
  EXPECT_EQ(Program({"-q", "--repair", image}).exit_code, 3);
  EXPECT_THAT(Program({"--repair", "--free-orphans", "--dry-run", image}).out,
              HasSubstr("THIS WOULD FREE what may be the only copy of something:"));
  const CheckedImage freed = CheckWithProgram(image, {"--repair", "--free-orphans"});
  EXPECT_EQ(freed.exit_code, 0) << freed.json.dump(1);
  EXPECT_EQ(freed.verdict(), "repaired");
  EXPECT_EQ(freed.held_back_clusters(), 0u);
  EXPECT_GT(freed.Number("leaks-fixed"), 0u);
  EXPECT_EQ(freed.json["repair"]["undo-file"], image + ".undo.1");
}

TEST_F(RepairCommandTest, DiscardPunchesHolesAndOnlyThen) {
  const auto blocks = [this] {
    struct stat info = {};
    stat(leaky_.c_str(), &info);
    return info.st_blocks;
  };
  const blkcnt_t before = blocks();
  Program({"--repair", leaky_});
  EXPECT_EQ(blocks(), before);
  WriteFile(leaky_, leaky_bytes_);
  const CheckedImage discarded = CheckWithProgram(leaky_, {"--repair", "--discard"});
  ASSERT_EQ(discarded.json["repair"]["discards"].size(), 1u);
  EXPECT_EQ(discarded.json["repair"]["discards"][0]["length"], 65536);
  EXPECT_EQ(Program({"undo", leaky_ + ".undo.1", leaky_}).exit_code, 0);
  EXPECT_EQ(ReadFile(leaky_), leaky_bytes_);
}

// --- Dry run ---

TEST_F(RepairCommandTest, ADryRunWritesNothing) {
  ASSERT_EQ(chmod(damaged_.c_str(), 0400), 0);
  const CheckedImage plan = CheckWithProgram(damaged_, {"--repair", "--dry-run"});
  EXPECT_EQ(plan.exit_code, 2);
  EXPECT_EQ(plan.verdict(), "corrupt");
  EXPECT_EQ(plan.json["repair"]["undo-file"], damaged_ + ".undo");
  EXPECT_FALSE(plan.json["repair"]["writes"].empty());
  for (const Json& finding : plan.json["diagnostics"]) {
    EXPECT_NE(finding["repair"]["status"], "done");
  }
  EXPECT_EQ(ReadFile(damaged_), damaged_bytes_);
  EXPECT_THAT(NewFiles(), IsEmpty());
}

TEST_F(RepairCommandTest, TheRepairDoesWhatTheDryRunSays) {
  const CheckedImage plan = CheckWithProgram(damaged_, {"--repair", "-n"});
  const CheckedImage done = CheckWithProgram(damaged_, {"--repair"});
  EXPECT_EQ(plan.json["repair"]["writes"], done.json["repair"]["writes"]);
  EXPECT_EQ(plan.json["repair"]["new-size"], done.json["repair"]["new-size"]);
  EXPECT_EQ(plan.json["repair"]["held-back"]["bytes"], done.json["repair"]["held-back"]["bytes"]);
  EXPECT_EQ(std::filesystem::file_size(damaged_), done.json["repair"]["new-size"]);
  bool copied = false;
  for (const Json& write : plan.json["repair"]["writes"]) copied |= write.contains("copy-from");
  EXPECT_TRUE(copied);
}

TEST_F(RepairCommandTest, APlanShowsOldAndNewBytes) {
  const CommandResult plan = Program({"--repair", "--dry-run", leaky_});
  EXPECT_THAT(plan.out, HasSubstr(": the plan of --repair=all (1 write, 2 bytes). Nothing was"));
  EXPECT_THAT(plan.out, ContainsRegex("- at 0x[0-9a-f]+, 00 01 -> 00 00\n"));
  EXPECT_THAT(plan.out, HasSubstr(absl::StrCat("\n    qcow2check --repair ", leaky_, "\n")));
  EXPECT_THAT(plan.out, HasSubstr("\n1 leaked clusters were found on the image.\n"));
  EXPECT_THAT(plan.out, ContainsRegex("\nImage end offset: [0-9]+\n$"));
}

// --- The undo file ---

TEST_F(RepairCommandTest, UndoFilesAreNumberedIfTheNameIsTaken) {
  dir_.Write("leaky.qcow2.undo", Bytes{1, 2, 3});
  const CheckedImage first = CheckWithProgram(leaky_, {"--repair"});
  EXPECT_EQ(first.json["repair"]["undo-file"], leaky_ + ".undo.1");
  WriteFile(leaky_, leaky_bytes_);
  EXPECT_EQ(CheckWithProgram(leaky_, {"--repair", "-n"}).json["repair"]["undo-file"],
            leaky_ + ".undo.2");
  EXPECT_EQ(CheckWithProgram(leaky_, {"--repair"}).json["repair"]["undo-file"], leaky_ + ".undo.2");
  EXPECT_THAT(NewFiles(),
              ElementsAre("leaky.qcow2.undo", "leaky.qcow2.undo.1", "leaky.qcow2.undo.2"));
  EXPECT_EQ(ReadFile(leaky_ + ".undo"), (Bytes{1, 2, 3}));
}

TEST_F(RepairCommandTest, TheUndoFileLiesBesideTheImageWhateverLinkLeadsThere) {
  const std::string folder = dir_.Path("elsewhere");
  std::filesystem::create_directory(folder);
  std::filesystem::create_symlink(leaky_, folder + "/link.qcow2");
  EXPECT_EQ(Program({"--repair", folder + "/link.qcow2"}).exit_code, 0);
  EXPECT_THAT(NewFiles(), ElementsAre("elsewhere", "leaky.qcow2.undo"));
  EXPECT_TRUE(std::filesystem::is_symlink(folder + "/link.qcow2"));
}

TEST_F(RepairCommandTest, AChosenUndoFileMustBeNew) {
  const std::string path = dir_.Write("taken", Bytes{1, 2, 3});
  ExpectRefused(Program({"--repair", "--undo-file=" + path, leaky_}),
                "'" + path + "' exists already");
  ExpectRefused(Program({"--repair", "--undo-file=" + leaky_, leaky_}), "exists already");
  EXPECT_EQ(ReadFile(path), (Bytes{1, 2, 3}));
  EXPECT_EQ(Program({"--repair", "--undo-file=" + dir_.Path("new"), leaky_}).exit_code, 0);
  EXPECT_THAT(NewFiles(), ElementsAre("new", "taken"));
  EXPECT_EQ(Program({"undo", dir_.Path("new"), leaky_}).exit_code, 0);
  EXPECT_EQ(ReadFile(leaky_), leaky_bytes_);
}

TEST_F(RepairCommandTest, WithoutUndoFileNothingIsKept) {
  const CommandResult result = Program({"--repair", "--no-undo", leaky_});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.out, HasSubstr("this cannot be taken back"));
  EXPECT_THAT(NewFiles(), IsEmpty());
}

TEST_F(RepairCommandTest, AnUndoFileThatCannotBeMadeStopsTheRepair) {
  const CommandResult result = Program({"--repair", "--undo-file=/no/such/folder/undo", leaky_});
  ExpectRefused(result, "No such file or directory");
  EXPECT_THAT(result.err, AllOf(HasSubstr("nothing was changed"), HasSubstr("--undo-file"),
                                HasSubstr("--no-undo")));
  const CheckedImage json = CheckWithProgram(leaky_, {"--repair", "--undo-file=/no/such/undo"});
  EXPECT_EQ(json.exit_code, 1);
  EXPECT_EQ(json.verdict(), "incomplete");
  EXPECT_EQ(json.Number("leaks"), 1u);
  EXPECT_FALSE(json.json["repair"]["changed"]);
  EXPECT_EQ(json.TheOnly("leaked-cluster")["repair"]["status"], "failed");
}

TEST_F(RepairCommandTest, AFullDiskForTheUndoFileStopsTheRepair) {
  const CommandResult result = RunBehind("ulimit -f 0; ", dir_.path(), {"--repair", "leaky.qcow2"});
  ExpectRefused(result, "nothing was changed");
  EXPECT_THAT(NewFiles(), IsEmpty());
}

// --- When it goes wrong in the middle ---

// Runs the repair with a limit on the length of files, in units of 512 bytes: it fails where the
// image must grow, behind the first steps.
CommandResult RunWithoutRoom(const std::string& folder, const Words& arguments, size_t size) {
  return RunBehind(absl::StrCat("ulimit -f ", size / 512, "; "), folder, arguments);
}

TEST_F(RepairCommandTest, ARepairThatStopsSaysWhatTheImageIsAndWhatToDo) {
  const CommandResult result =
      RunWithoutRoom(dir_.path(), {"--repair", "damaged.qcow2"}, damaged_bytes_.size());
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, AllOf(StartsWith("qcow2check: the repair of 'damaged.qcow2' stopped: "),
                                HasSubstr("the image is changed in part"),
                                HasSubstr("`qcow2check undo damaged.qcow2.undo damaged.qcow2`"),
                                HasSubstr("`qcow2check --repair damaged.qcow2`")));
  EXPECT_EQ(absl::c_count(result.err, '\n'), 1);
  EXPECT_THAT(result.out,
              StartsWith("damaged.qcow2: --repair=all stopped before its end. The image "
                         "is changed in part.\n"));
  // What it has not come to was not given up.
  EXPECT_THAT(result.out, Not(HasSubstr("nothing in the image proves")));
  EXPECT_NE(ReadFile(damaged_), damaged_bytes_);

  const CommandResult undo = Program({"undo", damaged_ + ".undo", damaged_});
  EXPECT_EQ(undo.exit_code, 0) << undo.err;
  EXPECT_THAT(undo.out, HasSubstr("before the interrupted repair"));
  EXPECT_EQ(ReadFile(damaged_), damaged_bytes_);
}

TEST_F(RepairCommandTest, ARepairThatStoppedCanBeStartedAgain) {
  Program({"--repair", damaged_});
  const Bytes repaired = ReadFile(damaged_);
  WriteFile(damaged_, damaged_bytes_);
  ASSERT_EQ(unlink((damaged_ + ".undo").c_str()), 0);

  RunWithoutRoom(dir_.path(), {"--repair", "damaged.qcow2"}, damaged_bytes_.size());
  const CheckedImage plan = CheckWithProgram(damaged_, {"--repair", "-n"});
  EXPECT_THAT(plan.json["repair"]["notes"][0], HasSubstr("was interrupted; --repair would first"));
  const CommandResult again = Program({"--repair", damaged_});
  EXPECT_EQ(again.exit_code, 0);
  EXPECT_THAT(again.out, StartsWith("Note: an earlier repair was interrupted; it was taken back"));
  EXPECT_EQ(ReadFile(damaged_), repaired);
  EXPECT_THAT(NewFiles(), ElementsAre("damaged.qcow2.undo"));
  EXPECT_EQ(Program({"undo", damaged_ + ".undo", damaged_}).exit_code, 0);
  EXPECT_EQ(ReadFile(damaged_), damaged_bytes_);
}

TEST_F(RepairCommandTest, JsonOfARepairThatStopsDescribesTheImageAsItIs) {
  const CommandResult result =
      RunWithoutRoom(dir_.path(), {"--repair", "--json", "damaged.qcow2"}, damaged_bytes_.size());
  const Json json = Json::parse(result.out, nullptr, false);
  ASSERT_TRUE(json.is_object()) << result.out;
  EXPECT_EQ(absl::StrCat("qcow2check: ", json.value("error", ""), "\n"), result.err);
  EXPECT_EQ(json["verdict"], "incomplete");
  EXPECT_GE(json["check-errors"], 1);
  EXPECT_TRUE(json["repair"]["changed"]);
  const CheckedImage now = CheckWithProgram(damaged_);
  EXPECT_EQ(json["corruptions"], now.Number("corruptions"));
  EXPECT_EQ(json["leaks"], now.Number("leaks"));
}

// --- Images that must not be touched ---

TEST_F(RepairCommandTest, AnImageInUseIsNotTouched) {
  const int fd = open(damaged_.c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  // A reader that only reads, as `qemu-img check`, is in the way, too.
  for (const off_t byte : {100, 101, 203}) {
    struct flock lock = {};
    lock.l_type = F_RDLCK;
    lock.l_start = byte;
    lock.l_len = 1;
    ASSERT_EQ(fcntl(fd, F_OFD_SETLK, &lock), 0);
    if (byte == 100) continue;  // alone it hinders nobody
    ExpectRefused(Program({"--repair", damaged_}), "is in use by process");
    EXPECT_EQ(CheckWithProgram(damaged_, {"--repair"}).verdict(), "locked");
    ExpectRefused(Program({"undo", damaged_, damaged_}), "is in use by process");
  }
  close(fd);
  EXPECT_THAT(NewFiles(), IsEmpty());
}

TEST_F(RepairCommandTest, AFileThatMayNotBeWritten) {
  ASSERT_EQ(chmod(dir_.path().c_str(), 0755), 0);
  ASSERT_EQ(chmod(damaged_.c_str(), 0444), 0);
  Words argv = {QCOW2CHECK_PROGRAM, "--repair", damaged_};
  if (geteuid() == 0) {
    if (!HaveProgram("setpriv")) GTEST_SKIP() << "root may write everything";
    argv.insert(argv.begin(), {"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"});
  }
  ExpectRefused(RunCommand(argv), "no permission to write it");
  argv.insert(argv.end() - 1, "--dry-run");
  EXPECT_EQ(RunCommand(argv).exit_code, 2);
}

TEST_F(RepairCommandTest, AFolderThatMayNotBeWritten) {
  if (geteuid() == 0 && !HaveProgram("setpriv")) GTEST_SKIP() << "root may write everything";
  ASSERT_EQ(chmod(leaky_.c_str(), 0666), 0);
  ASSERT_EQ(chmod(dir_.path().c_str(), 0555), 0);
  Words argv = {QCOW2CHECK_PROGRAM, "--repair", leaky_};
  if (geteuid() == 0) {
    argv.insert(argv.begin(), {"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"});
  }
  const CommandResult result = RunCommand(argv);
  ASSERT_EQ(chmod(dir_.path().c_str(), 0755), 0);
  ExpectRefused(result, "no permission to write it");
  EXPECT_THAT(result.err, HasSubstr("--undo-file=PATH keeps the undo file elsewhere"));
}

TEST_F(RepairCommandTest, WhatIsNoImage) {
  const std::string raw = dir_.Write("raw.img", Bytes(4096, 0x5a));
  const CommandResult result = Program({"--repair", raw});
  EXPECT_EQ(result.exit_code, 63);
  EXPECT_EQ(result.err, absl::StrCat("qcow2check: '", raw, "' is not a qcow2 image\n"));
  EXPECT_EQ(ReadFile(raw), Bytes(4096, 0x5a));
  ExpectRefused(Program({"--repair", dir_.Path("none")}), "No such file or directory");
  ExpectRefused(Program({"--repair", dir_.path()}), "is a directory");
  EXPECT_THAT(NewFiles(), ElementsAre("raw.img"));
}

// --- Command lines to copy ---

TEST_F(RepairCommandTest, CommandLinesWorkForUnusualNames) {
  if (!HaveProgram("bash")) GTEST_SKIP() << "no bash";
  for (const std::string name : {"a b", "it's", "-r", "$(x)", "tab\tnew\nline", "a\x1b[2J",
                                 "\xff\xfe", "100%\\n", "größe"}) {
    dir_.Write(name, leaky_bytes_);
    const CommandResult repaired = RunBehind("", dir_.path(), {"--repair", "--", name});
    EXPECT_EQ(repaired.exit_code, 0) << name << repaired.err;
    EXPECT_THAT(repaired.out, Not(HasSubstr("\x1b")));
    const size_t begin = repaired.out.find("\n    qcow2check undo ") + 16;
    const std::string arguments =
        repaired.out.substr(begin, repaired.out.find('\n', begin) - begin);
    const CommandResult undo =
        RunCommand({"bash", "-c", absl::StrCat("cd \"$0\" && exec \"$1\" ", arguments), dir_.path(),
                    QCOW2CHECK_PROGRAM});
    EXPECT_EQ(undo.exit_code, 0) << arguments << undo.err;
    EXPECT_EQ(ReadFile(dir_.path() + "/" + name), leaky_bytes_) << arguments;
  }
}

}  // namespace
}  // namespace qcow2check::testing

// Repairs of images on NBD servers end as the repair of the file would, if that could not grow;
// and can be taken back, interrupted, and started again.
#include <unistd.h>

#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "common/memory_file.h"
#include "common/nbd_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "repair/repair.h"
#include "tests/checked_program.h"
#include "tests/damage.h"
#include "tests/image_builder.h"
#include "tests/nbd_server.h"
#include "tests/program.h"

namespace qcow2check::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;
using Bytes = std::vector<uint8_t>;
using Words = std::vector<std::string>;

CommandResult Program(const Words& arguments) {
  Words argv = {"timeout", "100", QCOW2CHECK_PROGRAM};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  return RunCommand(argv);
}

// Several steps: leaks, and a COPIED flag that does not fit.
BuiltImage SeveralKinds() {
  BuiltImage image = BuildImage(FieldImageOptions());
  constexpr uint64_t kNext = 32 << 16;  // guest bytes from one data cluster to the next
  SetL2Entry(image, kNext, 0);
  SetL2Entry(image, 2 * kNext, GetL2Entry(image, 2 * kNext) & ~(uint64_t{1} << 63));
  return image;
}

BuiltImage WithoutRefcounts() {
  BuiltImage image = BuildImage(FieldImageOptions());
  RefcountBlockZeroed(image);
  return image;
}

BuiltImage Leaky() {
  BuiltImage image = BuildImage({.virtual_size = 4 << 20, .steps = {WriteClusters{.count = 8}}});
  SetL2Entry(image, 0, 0);
  return image;
}

// The second guest cluster on it needs a copy, for which there is no place in the file.
BuiltImage CrossLinked() {
  BuiltImage image = SeveralKinds();
  SetL2Entry(image, 1 << 16, GetL2Entry(image, 0));
  return image;
}

// What a repair makes of it where the file cannot grow.
Bytes RepairedInPlace(const Bytes& damaged) {
  MemoryFile file(damaged);
  const RepairResult result =
      RepairImage(file, {}, {.mode = RepairMode::kAll, .fixed_size = true}, /*open_undo=*/nullptr);
  EXPECT_TRUE(result.status.ok()) << result.status;
  EXPECT_TRUE(result.changed);
  return file.bytes();
}

class NbdRepairTest : public ::testing::Test {
 protected:
  void SetUp() override { QCOW2CHECK_SKIP_WITHOUT_NBDKIT(); }

  void Store(const Bytes& bytes) { WriteFile(image_, bytes); }
  Bytes Stored() const { return ReadFile(image_); }

  // nbdkit over the image, with a log. Filters come before the plugin, their parameters behind it.
  Words Nbdkit(const Words& options = {}, const Words& parameters = {}) const {
    Words argv = {"nbdkit", "--filter=log"};
    argv.insert(argv.end(), options.begin(), options.end());
    argv.insert(argv.end(), {"file", image_, "logfile=" + log_});
    argv.insert(argv.end(), parameters.begin(), parameters.end());
    return argv;
  }
  Words Repair(const NbdServer& server) const {
    return {"--repair", "--undo-file=" + undo_, server.uri()};
  }

  TempDir dir_;
  const std::string image_ = dir_.Path("image.qcow2");
  const std::string undo_ = dir_.Path("undo");
  const std::string log_ = dir_.Path("log");
};

// --- As the repair of the file ---

TEST_F(NbdRepairTest, EndsAsTheRepairOfTheFileAndIsTakenBack) {
  Words servers[] = {Nbdkit(),
                     Nbdkit({"--filter=blocksize-policy"},
                            {"blocksize-error-policy=error", "blocksize-minimum=4096",
                             "blocksize-preferred=4096", "blocksize-maximum=65536"}),
                     {"qemu-nbd", "-t", "-f", "raw", image_}};
  for (const BuiltImage& damaged : {SeveralKinds(), WithoutRefcounts(), Leaky(), CrossLinked()}) {
    const Bytes repaired = RepairedInPlace(damaged.bytes);
    for (const Words& argv : servers) {
      if (!HaveProgram(argv[0])) continue;
      Store(damaged.bytes);
      {
        NbdServer server(argv);
        const CommandResult result = Program(Repair(server));
        EXPECT_THAT(result.exit_code, ::testing::AnyOf(0, 2)) << result.err;
        EXPECT_EQ(result.exit_code, Program({server.uri()}).exit_code);
        server.Stop();
      }
      EXPECT_TRUE(Stored() == repaired) << argv[0];
      {
        NbdServer server(argv);
        const CommandResult undo = Program({"undo", undo_, server.uri()});
        EXPECT_EQ(undo.exit_code, 0) << undo.err;
        server.Stop();
      }
      EXPECT_TRUE(Stored() == damaged.bytes) << argv[0];
      ASSERT_EQ(unlink(undo_.c_str()), 0);
    }
  }
}

TEST_F(NbdRepairTest, TheImageStaysAsLongAsItIs) {
  Store(CrossLinked().bytes);
  const NbdServer server(Nbdkit());
  const CheckedImage result = CheckWithProgram(server.uri(), {"--repair", "--no-undo"});
  EXPECT_EQ(result.json["repair"]["old-size"], result.json["repair"]["new-size"]);
}

TEST_F(NbdRepairTest, WhatOthersHaveChangedIsSeenBeforeAWrite) {
  const Bytes before(8192, 1), after(8192, 2);
  const TempDir dir;
  const std::string path = dir.Write("image", before);
  NbdServer server({"nbdkit", "file", path});
  const absl::StatusOr<std::unique_ptr<WritableNbdFile>> file = WritableNbdFile::Open(server.uri());
  ASSERT_TRUE(file.ok()) << file.status();
  Bytes read(8192);
  ASSERT_TRUE((*file)->ReadAt(HostOffset{0}, absl::MakeSpan(read)).ok());
  EXPECT_EQ(read, before);
  dir.Write("image", after);
  ASSERT_TRUE((*file)->ReadAt(HostOffset{0}, absl::MakeSpan(read)).ok());
  EXPECT_EQ(read, after);
}

TEST_F(NbdRepairTest, FreedClustersAreGivenBack) {
  const BuiltImage image = Leaky();
  Store(image.bytes);
  NbdServer server(Nbdkit());
  Words words = Repair(server);
  words.push_back("--discard");
  EXPECT_EQ(Program(words).exit_code, 0);
  EXPECT_THAT(ReadNbdLog(log_).Of("Zero"), Not(IsEmpty()));
  EXPECT_EQ(Program({"undo", undo_, server.uri()}).exit_code, 0);
  server.Stop();
  EXPECT_TRUE(Stored() == image.bytes);
}

// --- Barriers ---

TEST_F(NbdRepairTest, EachStepIsFlushedBeforeTheNext) {
  Store(SeveralKinds().bytes);
  NbdServer server(Nbdkit());
  Words words = Repair(server);
  words.erase(words.begin());
  words.insert(words.begin(), "--repair=all");
  const std::string uri = words.back();
  words.pop_back();
  const CheckedImage result = CheckWithProgram(uri, words);
  server.Stop();
  // By step, the places that are written; and what came in between two flushes.
  const auto& writes = result.json["repair"]["writes"];
  std::vector<uint64_t> steps;
  for (const auto& write : writes) steps.push_back(write["step"]);
  const std::set<uint64_t> distinct(steps.begin(), steps.end());
  ASSERT_GT(distinct.size(), 1u);
  uint64_t flushed_groups = 0;
  uint64_t unflushed = 0;
  for (const LoggedRequest& request : ReadNbdLog(log_).requests) {
    if (request.action == "Write") ++unflushed;
    if (request.action != "Flush") continue;
    if (unflushed != 0) ++flushed_groups;
    unflushed = 0;
  }
  EXPECT_EQ(flushed_groups, distinct.size());
  EXPECT_EQ(unflushed, 0u);
}

// An nbdkit script over the image file, with more functions of it.
Words Scripted(const std::string& image, const std::string& log, const Words& functions) {
  Words argv = {
      "nbdkit",
      "--filter=log",
      "eval",
      absl::StrCat("get_size=stat -c %s ", image),
      absl::StrCat("pread=dd if=", image,
                   " skip=$4 count=$3 iflag=skip_bytes,count_bytes status=none"),
      "can_write=exit 0",
      absl::StrCat("pwrite=dd of=", image, " seek=$4 oflag=seek_bytes conv=notrunc status=none"),
      "logfile=" + log};
  argv.insert(argv.end(), functions.begin(), functions.end());
  return argv;
}

TEST_F(NbdRepairTest, WithoutAFlushCommandEveryWriteIsDurable) {
  const Bytes damaged = Leaky().bytes;
  Store(damaged);
  NbdServer server(Scripted(image_, log_, {"can_flush=exit 3", "can_fua=echo native"}));
  const CommandResult result = Program(Repair(server));
  EXPECT_EQ(result.exit_code, 0) << result.err;
  server.Stop();
  const std::vector<LoggedRequest> writes = ReadNbdLog(log_).Of("Write");
  EXPECT_THAT(writes, Not(IsEmpty()));
  EXPECT_TRUE(absl::c_all_of(writes, [](const LoggedRequest& write) { return write.durable; }));
  EXPECT_TRUE(Stored() == RepairedInPlace(damaged));
}

// --- Refusals: nothing is changed ---

void ExpectRefused(const CommandResult& result, const std::string& words) {
  EXPECT_EQ(result.exit_code, 1) << result.err;
  EXPECT_THAT(result.err, AllOf(StartsWith("qcow2check: "), HasSubstr(words)));
  EXPECT_EQ(absl::c_count(result.err, '\n'), 1) << result.err;
}

TEST_F(NbdRepairTest, IsRefusedWhereItCouldNotBeTakenBackOrMadeDurable) {
  const Bytes damaged = SeveralKinds().bytes;
  Store(damaged);
  {
    const NbdServer server(Nbdkit());
    const CommandResult refused = Program({"--repair", server.uri()});
    ExpectRefused(refused, "the undo file of an image on an NBD server cannot lie beside it");
    EXPECT_THAT(refused.err, HasSubstr("--undo-file=PATH"));
    const CommandResult plan = Program({"--repair", "-n", server.uri()});
    EXPECT_THAT(plan.out, AllOf(HasSubstr("name one with"), HasSubstr("--undo-file=PATH"),
                                Not(HasSubstr("Nothing would be kept"))));
  }
  {
    const NbdServer server(Nbdkit({"-r"}));
    ExpectRefused(Program(Repair(server)), "the server offers it read-only");
    ExpectRefused(Program({"undo", image_, server.uri()}), "the server offers it read-only");
  }
  const NbdServer server(Scripted(image_, log_, {"can_flush=exit 3", "can_fua=echo none"}));
  ExpectRefused(Program(Repair(server)), "the server has no flush command");
  EXPECT_TRUE(Stored() == damaged);
}

// --- When it goes wrong in the middle ---

TEST_F(NbdRepairTest, AWriteThatFailsStopsIt) {
  const Bytes damaged = SeveralKinds().bytes;
  for (const bool undo : {true, false}) {
    Store(damaged);
    const std::string inject = dir_.Write("inject", {});
    const NbdServer server(
        Nbdkit({"--filter=error"},
               {"error-pwrite=ENOSPC", "error-pwrite-rate=100%", "error-pwrite-file=" + inject}));
    const CommandResult stopped = Program(Repair(server));
    ExpectRefused(stopped, "No space left on device");
    EXPECT_THAT(stopped.err, HasSubstr(absl::StrCat("qcow2check undo ", undo_)));
    ASSERT_EQ(unlink(inject.c_str()), 0);
    if (undo) {
      EXPECT_EQ(Program({"undo", undo_, server.uri()}).exit_code, 0);
      EXPECT_TRUE(Stored() == damaged);
    } else {
      EXPECT_EQ(Program(Repair(server)).exit_code, 0);
      EXPECT_TRUE(Stored() == RepairedInPlace(damaged));
    }
    unlink(undo_.c_str());
  }
}

TEST_F(NbdRepairTest, AServerThatDiesLeavesWhatCanBeStartedAgainOrTakenBack) {
  const Bytes damaged = SeveralKinds().bytes;
  for (const bool undo : {true, false}) {
    Store(damaged);
    WriteFile(log_, {});
    {
      NbdServer server(Nbdkit({"--filter=delay"}, {"wdelay=1000"}));
      std::thread killer([&] {
        WaitForRequest(log_, "Write");
        server.Kill();
      });
      const CommandResult stopped = Program(Repair(server));
      killer.join();
      ExpectRefused(stopped, "the connection to the server is lost");
      EXPECT_THAT(stopped.err, HasSubstr(absl::StrCat("qcow2check undo ", undo_)));
    }
    NbdServer server(Nbdkit());
    if (undo) {
      EXPECT_EQ(Program({"undo", undo_, server.uri()}).exit_code, 0);
      EXPECT_TRUE(Stored() == damaged);
    } else {
      EXPECT_THAT(Program({"--repair", "-n", "--undo-file=" + undo_, server.uri()}).out,
                  HasSubstr("a repair of this image was interrupted"));
      EXPECT_THAT(Program(Repair(server)).out, HasSubstr("an earlier repair was interrupted"));
      EXPECT_TRUE(Stored() == RepairedInPlace(damaged));
    }
    unlink(undo_.c_str());
  }
}

}  // namespace
}  // namespace qcow2check::testing

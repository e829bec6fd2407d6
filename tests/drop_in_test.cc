// Callers of `qemu-img check` as they are, with qemu-img replaced by qcow2check: one test for each
// consumer, and one for each way to write an option. What they read is compared with what qemu-img
// says of the same image.
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/damage.h"
#include "tests/image_builder.h"
#include "tests/program.h"
#include "tests/qemu.h"

namespace qcow2check::testing {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Json = nlohmann::json;
using Words = std::vector<std::string>;

CommandResult Ours(const Words& arguments) {
  Words argv = {QCOW2CHECK_PROGRAM};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  return RunCommand(argv);
}

CommandResult Qemu(const Words& arguments) {
  Words argv = {"qemu-img"};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  return RunCommand(argv);
}

// What both say to the same arguments.
struct Both {
  Both() = default;
  explicit Both(const Words& arguments) : ours(Ours(arguments)), qemu(Qemu(arguments)) {}

  CommandResult ours;
  CommandResult qemu;
};

// The same exit code and the same text, which both have only for an image without any finding.
void ExpectSameText(const Both& both) {
  EXPECT_EQ(both.ours.exit_code, both.qemu.exit_code) << both.ours.err << both.qemu.err;
  EXPECT_EQ(both.ours.out, both.qemu.out);
}

// The same exit code, and every key of qemu-img's JSON with the same value.
Json ExpectSameJson(const Both& both) {
  EXPECT_EQ(both.ours.exit_code, both.qemu.exit_code) << both.ours.err << both.qemu.err;
  const Json ours = Json::parse(both.ours.out, nullptr, false);
  const Json qemu = Json::parse(both.qemu.out, nullptr, false);
  EXPECT_TRUE(ours.is_object()) << both.ours.out;
  EXPECT_TRUE(qemu.is_object()) << both.qemu.out;
  for (const auto& [key, value] : qemu.items()) {
    EXPECT_EQ(ours.value(key, Json()), value) << key;
  }
  return ours;
}

class DropInTest : public ::testing::Test {
 protected:
  void SetUp() override {
    QCOW2CHECK_SKIP_WITHOUT_QEMU();
    // Fragmented, compressed and zero clusters, a snapshot: every number is above 0.
    BuiltImage image = BuildImage(
        {.virtual_size = 16 << 20,
         .steps = {WriteClusters{.count = 9}, TakeSnapshot{}, WriteClusters{.first = 3, .count = 2},
                   WriteCompressed{.first = 40, .count = 5},
                   WriteZeros{.first = 60, .preallocated = true}}});
    clean_ = dir_.Write("clean.qcow2", image.bytes);
    SetRefcount(image, image.ClusterOf(image.At(0).host_offset), 3);
    leaky_ = dir_.Write("leaky.qcow2", image.bytes);
    // A refcount that is too low beside one that is too high says that a pointer was damaged, and
    // then ours keeps what qemu-img lowers.
    SetRefcount(image, image.ClusterOf(image.At(0).host_offset), 2);
    SetRefcount(image, image.ClusterOf(image.At(3 << 16).host_offset), 0);
    corrupt_ = dir_.Write("corrupt.qcow2", image.bytes);
    raw_ = dir_.Write("raw.img", std::vector<uint8_t>(65536, 0x5a));
  }

  // Repairs `image` with qemu-img, and again as it was before with ours.
  Both RepairWithBoth(const Words& arguments, const std::string& image) {
    const std::vector<uint8_t> damaged = ReadFile(image);
    Both both;
    both.qemu = Qemu(arguments);
    WriteFile(image, damaged);
    both.ours = Ours(arguments);
    return both;
  }

  // That the repair ends as qemu-img's does, and that qemu-img has nothing to say of the image.
  Both ExpectRepaired(const Words& arguments, const std::string& image) {
    const Both both = RepairWithBoth(arguments, image);
    EXPECT_EQ(both.ours.exit_code, 0) << both.ours.err;
    EXPECT_EQ(both.qemu.exit_code, 0) << both.qemu.err;
    EXPECT_EQ(Qemu({"check", image}).exit_code, 0);
    return both;
  }

  TempDir dir_;
  std::string clean_, leaky_, corrupt_, raw_;
};

// --- Consumers, by name ---

// Reads image-end-offset (mandatory) and leaks; accepts exit codes 0 and 3.
TEST_F(DropInTest, Vdsm) {
  for (const Words& format : {Words{}, {"-f", "qcow2"}}) {
    for (const std::string& image : {clean_, leaky_, corrupt_}) {
      Words arguments = {"check", "--output", "json"};
      arguments.insert(arguments.end(), format.begin(), format.end());
      arguments.push_back(image);
      const Json report = ExpectSameJson(Both(arguments));
      EXPECT_TRUE(report["image-end-offset"].is_number_unsigned());
      EXPECT_TRUE(report["leaks"].is_number_unsigned());
    }
  }
  EXPECT_EQ(Ours({"check", "--output", "json", clean_}).exit_code, 0);
  EXPECT_EQ(Ours({"check", "--output", "json", leaky_}).exit_code, 3);
}

// JSON; skips the repair if leaks is 0 or absent; encrypted volumes by a secret object.
TEST_F(DropInTest, CloudStack) {
  const std::string image = dir_.Path("luks.qcow2");
  const std::string secret = "secret,id=sec0,data=passphrase";
  // On a busy machine measuring the key's iterations sometimes fails.
  CommandResult created;
  for (int i = 0; i < 20 && created.exit_code != 0; ++i) {
    created =
        Qemu({"create", "-q", "--object", secret, "-f", "qcow2", "-o",
              "encrypt.format=luks,encrypt.key-secret=sec0,encrypt.iter-time=10", image, "1M"});
  }
  ASSERT_EQ(created.exit_code, 0) << created.err;
  ExpectSameJson(Both({"check", "--object", secret, "--output=json", "--image-opts",
                       absl::StrCat("driver=qcow2,encrypt.format=luks,encrypt.key-secret=sec0,"
                                    "file.filename=",
                                    image)}));
  EXPECT_EQ(ExpectSameJson(Both({"check", "--output=json", clean_}))["leaks"], 0);
  EXPECT_GT(ExpectSameJson(Both({"check", "--output=json", leaky_}))["leaks"], 0);
  const Json leaks =
      ExpectSameJson(ExpectRepaired({"check", "--output=json", "-r", "leaks", leaky_}, leaky_));
  EXPECT_GT(leaks["leaks-fixed"], 0);
  // qemu-img rebuilds all refcounts at the end of the file where ours raises one: other numbers.
  const Both both = ExpectRepaired({"check", "--output=json", "-r", "all", corrupt_}, corrupt_);
  const Json all = Json::parse(both.ours.out, nullptr, false);
  const Json qemu = Json::parse(both.qemu.out, nullptr, false);
  for (const auto& [key, value] : qemu.items()) EXPECT_TRUE(all.contains(key)) << key;
  EXPECT_GT(all["corruptions-fixed"], 0);
}

// A plain check of each file; anything but 0 fails the backup.
TEST_F(DropInTest, CloudStackNasBackup) {
  EXPECT_EQ(Ours({"check", clean_}).exit_code, 0);
  EXPECT_NE(Ours({"check", leaky_}).exit_code, 0);
  EXPECT_NE(Ours({"check", dir_.Path("missing")}).exit_code, 0);
}

// Without -f, and only the exit code: 0 success; 1, 2, 3 and 63 failure.
TEST_F(DropInTest, Xapi) {
  for (const std::string& image : {clean_, leaky_, corrupt_, raw_, dir_.Path("missing")}) {
    const Both both({"check", image});
    EXPECT_EQ(both.ours.exit_code, both.qemu.exit_code) << image;
  }
  ExpectRepaired({"check", "-f", "qcow2", "-r", "all", corrupt_}, corrupt_);
}

// Each start of a VM: check; 3 leads to -r leaks, 2 to -r all; 1 is ignored.
TEST_F(DropInTest, Gns3) {
  EXPECT_EQ(Ours({"check", clean_}).exit_code, 0);
  EXPECT_EQ(Ours({"check", leaky_}).exit_code, 3);
  ExpectRepaired({"check", "-r", "leaks", leaky_}, leaky_);
  EXPECT_EQ(Ours({"check", corrupt_}).exit_code, 2);
  ExpectRepaired({"check", "-r", "all", corrupt_}, corrupt_);
}

// An abbreviated option; six keys of the JSON.
TEST_F(DropInTest, ZStack) {
  const Json report = ExpectSameJson(Both({"check", "--force-share", "--out", "json", clean_}));
  for (const char* key : {"image-end-offset", "total-clusters", "check-errors",
                          "allocated-clusters", "filename", "format"}) {
    EXPECT_TRUE(report.contains(key)) << key;
  }
}

TEST_F(DropInTest, DockerDesktop) {
  ExpectSameText(Both({"check", clean_}));
  EXPECT_EQ(Ours({"check", leaky_}).exit_code, 3);
}

// Exit codes 1 and 2 are failures; leaks are told by the text.
TEST_F(DropInTest, AvocadoVt) {
  for (const Words& options : {Words{"check"}, {"check", "-U"}}) {
    for (const std::string& image : {clean_, leaky_, corrupt_}) {
      Words arguments = options;
      arguments.push_back(image);
      const Both both(arguments);
      EXPECT_EQ(both.ours.exit_code, both.qemu.exit_code);
      EXPECT_EQ(absl::StrContains(both.ours.out, "leaked clusters"),
                absl::StrContains(both.qemu.out, "leaked clusters"));
    }
  }
}

TEST_F(DropInTest, Quickemu) {
  for (const std::string& image : {clean_, leaky_, corrupt_, raw_}) {
    const Both both({"check", "-q", image});
    EXPECT_EQ(both.ours.exit_code, both.qemu.exit_code) << image;
    EXPECT_THAT(both.ours.out, IsEmpty());
  }
  EXPECT_THAT(Ours({"check", "-q", clean_}).err, IsEmpty());
}

// They look for one string.
TEST_F(DropInTest, SmallTools) {
  for (const std::string& image : {clean_, leaky_, corrupt_}) {
    const Both both({"check", image});
    EXPECT_EQ(absl::StrContains(both.ours.out, "No errors were found"),
              absl::StrContains(both.qemu.out, "No errors were found"));
  }
}

// --- Text ---

TEST_F(DropInTest, TextOfACleanImageIsByteEqual) {
  ExpectSameText(Both({"check", clean_}));
  const CommandResult result = Ours({"check", clean_});
  EXPECT_THAT(result.out, HasSubstr("No errors were found on the image.\n"));
  EXPECT_THAT(result.out, HasSubstr("% fragmented, "));
  EXPECT_THAT(result.out, HasSubstr("\nImage end offset: "));
}

TEST_F(DropInTest, TextOfAnEmptyDiskIsByteEqual) {
  const std::string image = dir_.Path("empty.qcow2");
  ASSERT_EQ(Qemu({"create", "-q", "-f", "qcow2", image, "1G"}).exit_code, 0);
  ExpectSameText(Both({"check", image}));
}

TEST_F(DropInTest, SummaryLinesOfADamagedImageAreThoseOfQemuImg) {
  for (const std::string& image : {leaky_, corrupt_}) {
    const Both both({"check", image});
    int compared = 0;
    for (const absl::string_view line : absl::StrSplit(both.qemu.out, '\n', absl::SkipEmpty())) {
      if (!absl::StrContains(line, "found on the image") && !absl::StrContains(line, "allocated") &&
          !absl::StrContains(line, "Image end offset")) {
        continue;
      }
      EXPECT_THAT(both.ours.out, HasSubstr(absl::StrCat("\n", line, "\n")));
      ++compared;
    }
    EXPECT_GE(compared, 3) << both.qemu.out;
  }
}

TEST_F(DropInTest, TextOfARepairHasTheLinesOfQemuImg) {
  const Both both = ExpectRepaired({"check", "-r", "all", leaky_}, leaky_);
  EXPECT_THAT(both.qemu.out, HasSubstr("Double checking the fixed image now"));
  // All of it; ours has more in front of it.
  EXPECT_THAT(both.ours.out, EndsWith(absl::StrCat("\n", both.qemu.out)));
}

TEST_F(DropInTest, ARepairOfACleanImageSaysWhatACheckSays) {
  const std::vector<uint8_t> before = ReadFile(clean_);
  for (const std::string mode : {"leaks", "all"}) {
    ExpectSameText(RepairWithBoth({"check", "-r", mode, clean_}, clean_));
    EXPECT_EQ(ReadFile(clean_), before);
  }
}

// --- Every way to write the options ---

TEST_F(DropInTest, OptionsInEveryForm) {
  const std::string image_opts = absl::StrCat("driver=qcow2,file.filename=", clean_);
  const std::string long_image_opts =
      absl::StrCat("driver=qcow2,file.driver=file,file.filename=", clean_);
  const std::vector<Words> forms = {
      {"-f", "qcow2", clean_},
      {"-fqcow2", clean_},
      {"--format=qcow2", clean_},
      {"--format", "qcow2", clean_},
      {"-f", "raw", "-f", "qcow2", clean_},
      {"--output=human", clean_},
      {"--output", "human", clean_},
      {"--outp=human", clean_},
      {"--ou", "human", clean_},
      {"-T", "none", clean_},
      {"-Tnone", clean_},
      {"-T", "writeback", "-T", "none", clean_},
      {"-U", clean_},
      {"-U", "-U", clean_},
      {"--force-share", clean_},
      {"--force", clean_},
      {"--image-opts", image_opts},
      {"--image-opts", long_image_opts},
      {"--im", image_opts},
      {image_opts, "--image-opts"},
      {"--object", "secret,id=x,data=y", clean_},
      {"--object=secret,id=x,data=y", clean_},
      {"--obj", "secret,id=x,data=y", "--object", "secret,id=z,data=y", clean_},
      {"-qU", clean_},
      {"-Uq", clean_},
      {"-Uf", "qcow2", clean_},
      {"-Ufqcow2", clean_},
      {"-qUTnone", clean_},
      {"-q", "-q", clean_},
      {"--", clean_},
      {"-f", "qcow2", "--", clean_},
      {clean_, "-f", "qcow2"},
      {clean_, "-U", "--output=human"},
  };
  for (const Words& form : forms) {
    Words arguments = {"check"};
    arguments.insert(arguments.end(), form.begin(), form.end());
    SCOPED_TRACE(::testing::PrintToString(arguments));
    const Both both(arguments);
    EXPECT_EQ(both.qemu.exit_code, 0) << both.qemu.err;
    ExpectSameText(both);
  }
}

TEST_F(DropInTest, RepairInEveryForm) {
  const std::vector<uint8_t> damaged = ReadFile(leaky_);
  for (const Words& form : {Words{"-r", "leaks"},
                            {"-rleaks"},
                            {"-r", "all", "-r", "leaks"},
                            {"--repair=leaks"},
                            {"--repair=leaks", "-r", "all"},
                            {"--rep=all"},
                            {"-qrall"},
                            {"-Tnone", "-r", "all"}}) {
    Words arguments = {"check"};
    arguments.insert(arguments.end(), form.begin(), form.end());
    arguments.push_back(leaky_);
    SCOPED_TRACE(::testing::PrintToString(arguments));
    WriteFile(leaky_, damaged);
    ExpectRepaired(arguments, leaky_);
  }
}

TEST_F(DropInTest, JsonInEveryForm) {
  for (const Words& form : {Words{"--output=json"},
                            {"--output", "json"},
                            {"--out=json"},
                            {"--ou", "json"},
                            {"--output=human", "--output=json"},
                            {"-U", "--out", "json", "-Tnone"}}) {
    Words arguments = {"check"};
    arguments.insert(arguments.end(), form.begin(), form.end());
    arguments.push_back(clean_);
    SCOPED_TRACE(::testing::PrintToString(arguments));
    ExpectSameJson(Both(arguments));
  }
}

TEST_F(DropInTest, ImageOptsAreNamedAsTheCallerNamedThem) {
  ExpectSameJson(Both({"check", "--output=json", "--image-opts",
                       absl::StrCat("driver=qcow2,file.filename=", clean_)}));
}

TEST_F(DropInTest, ImageOptsWithACommaInTheName) {
  dir_.Write("a,b.qcow2", ReadFile(clean_));
  ExpectSameText(Both({"check", "--image-opts",
                       absl::StrCat("driver=qcow2,file.filename=", dir_.path(), "/a,,b.qcow2")}));
}

TEST_F(DropInTest, WhatQemuImgRefusesAsAmbiguousOrWrongIsRefused) {
  for (const Words& wrong : {Words{"--fo", "qcow2", clean_},
                             {"--o", "json", clean_},
                             {"--bogus", clean_},
                             {"--output=xml", clean_},
                             {"-r", "some", clean_},
                             {"--repair=some", clean_},
                             {"-U", "-r", "all", clean_},
                             {"-r"},
                             {}}) {
    Words arguments = {"check"};
    arguments.insert(arguments.end(), wrong.begin(), wrong.end());
    SCOPED_TRACE(::testing::PrintToString(arguments));
    const Both both(arguments);
    EXPECT_EQ(both.qemu.exit_code, 1);
    EXPECT_EQ(both.ours.exit_code, 1);
  }
}

TEST_F(DropInTest, WhatIsNoQcow2Image) {
  const Both guessed({"check", raw_});
  EXPECT_EQ(guessed.qemu.exit_code, 63);
  EXPECT_EQ(guessed.ours.exit_code, 63);
  const Both raw({"check", "-f", "raw", clean_});
  EXPECT_EQ(raw.qemu.exit_code, 63);
  EXPECT_EQ(raw.ours.exit_code, 63);
}

}  // namespace
}  // namespace qcow2check::testing

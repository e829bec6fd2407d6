// `qcow2check inspect`: everything that is stored is shown, as text and as JSON; what cannot be
// shown says why. The answers to --guest and --cluster: inspect_lookup_test.cc.
#include "checker/inspect.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "checker/inspect.h"
#include "cli/inspect_command.h"
#include "common/memory_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/damage.h"
#include "tests/fault_file.h"
#include "tests/image_builder.h"
#include "tests/image_text.h"
#include "tests/inspected_image.h"
#include "tests/program.h"

namespace qcow2check::testing {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr uint64_t kKiB = 1024;
constexpr uint64_t kMiB = uint64_t{1} << 20;

Json Guest(const BuiltImage& image, uint64_t offset) {
  return JsonOf(image.bytes, {absl::StrCat("--guest=", offset)})["guest"];
}

// --- The seed ---

std::vector<uint8_t> Seed() {
  absl::StatusOr<std::vector<uint8_t>> image = LoadCorpusImage("seeds/listing-v2-4k.qtxt");
  EXPECT_TRUE(image.ok()) << image.status();
  return image.value_or(std::vector<uint8_t>());
}

// The lines of the listing that the seed was made from that are the bytes of a table entry.
std::vector<std::string> EntriesInListing(const std::string& path) {
  std::ifstream file(path);
  std::vector<std::string> entries;
  std::string line;
  while (std::getline(file, line)) {
    const std::string bytes = absl::AsciiStrToLower(absl::StripAsciiWhitespace(line));
    if (bytes.size() == 23 && bytes.find_first_not_of("0123456789abcdef ") == std::string::npos) {
      entries.push_back(bytes);
    }
  }
  return entries;
}

TEST(InspectSeedTest, EveryHeaderFieldWithItsBytesValueAndMeaning) {
  const Json fields = JsonOf(Seed(), {"--header"})["header"]["fields"];
  ASSERT_EQ(fields.size(), 13u);  // all that version 2 has
  const auto row = [&](const char* name) -> Json {
    for (const Json& field : fields) {
      if (field["name"] == name) return field;
    }
    return {};
  };
  EXPECT_EQ(row("magic")["bytes"], "51 46 49 fb");
  EXPECT_EQ(row("version")["value"], 2);
  EXPECT_EQ(row("backing_file_offset")["meaning"], "no backing file");
  EXPECT_EQ(row("cluster_bits")["offset"], 20);
  EXPECT_EQ(row("cluster_bits")["bytes"], "00 00 00 0c");
  EXPECT_EQ(row("cluster_bits")["meaning"],
            "clusters of 4,096 bytes (4 KiB, 8 sectors of 512 bytes)");
  EXPECT_EQ(row("size")["value"], 2 * kMiB);
  EXPECT_EQ(row("crypt_method")["meaning"], "not encrypted");
  EXPECT_EQ(row("l1_size")["value"], 1);
  EXPECT_EQ(row("l1_table_offset")["value"], 4096);
  EXPECT_EQ(row("refcount_table_offset")["bytes"], "00 00 00 00 00 00 20 00");
  EXPECT_EQ(row("refcount_table_clusters")["meaning"],
            "the refcount table has 1 cluster: 512 entries of 8 bytes");
  EXPECT_EQ(row("nb_snapshots")["meaning"], "no internal snapshots");
  EXPECT_EQ(row("snapshots_offset")["meaning"], "no snapshot table");
}

TEST(InspectSeedTest, GeometryAndTablesAsInTheListing) {
  const Json json = JsonOf(Seed(), {});
  EXPECT_EQ(json["geometry"]["l2-bits"], 9);
  EXPECT_EQ(json["geometry"]["l2-entries"], 512);
  ASSERT_EQ(json["l1"]["used"].size(), 1u);
  EXPECT_EQ(json["l1"]["used"][0]["entry"], "0x8000000000004000");
  EXPECT_EQ(json["l1"]["used"][0]["copied"], true);
  ASSERT_EQ(json["refcounts"]["blocks"].size(), 1u);
  const Json block = json["refcounts"]["blocks"][0];
  EXPECT_EQ(block["block-offset"], 12288);
  EXPECT_EQ(block["nonzero"], 109);
  EXPECT_EQ(block["refcounts"],
            Json::parse(R"([{"first-cluster": 0, "clusters": 109, "refcount": 1}])"));
}

TEST(InspectSeedTest, EveryEntryOfTheListingIsInTheText) {
  const std::filesystem::path folder =
      std::filesystem::path(QCOW2CHECK_SOURCE_DIR) / ".." / "shared" / "seeds";
  if (!std::filesystem::is_directory(folder)) GTEST_SKIP() << "the listing is not here";
  const std::string text = TextOf(Seed(), {"--header", "--l1", "--refcounts", "--l2=0"});
  int listings = 0;
  for (const auto& file : std::filesystem::directory_iterator(folder)) {
    if (file.path().extension() != ".txt") continue;
    ++listings;
    const std::vector<std::string> entries = EntriesInListing(file.path());
    EXPECT_GT(entries.size(), 500u);
    for (const std::string& entry : entries) EXPECT_THAT(text, HasSubstr(entry));
  }
  EXPECT_EQ(listings, 1);
}

TEST(InspectSeedTest, L2EntriesDecodedAndHolesFolded) {
  const Json l2 = JsonOf(Seed(), {"--l2=0"})["l2"];
  EXPECT_EQ(l2["table-offset"], 16384);
  const Json& entries = l2["entries"];
  EXPECT_EQ(entries[0]["kind"], "normal");
  EXPECT_EQ(entries[0]["host-offset"], 0xe000);
  EXPECT_EQ(entries[0]["copied"], true);
  EXPECT_EQ(entries[0]["zero"], false);
  EXPECT_EQ(entries[1]["kind"], "unallocated");
  EXPECT_EQ(entries[1]["count"], 6);
  EXPECT_EQ(entries[2]["guest-offset"], 7 * 4096);
  uint64_t covered = 0;
  for (const Json& entry : entries) covered += entry["count"].get<uint64_t>();
  EXPECT_EQ(covered, 512u);
}

// --- The sections ---

BuiltImage RichImage() {
  return BuildImage({.backing = BackingOptions{.file = "base.qcow2", .format = "qcow2"},
                     .steps = {WriteClusters{.count = 3}, TakeSnapshot{.name = "before"},
                               WriteClusters{.count = 1}},
                     .bitmaps = {{.name = "backup", .dirty = {{0, kMiB}}}},
                     .feature_names = true});
}

TEST(InspectTest, WithoutOptionsAllPartsAreShown) {
  const std::string text = TextOf(RichImage().bytes, {});
  for (const char* part : {"Header\n", "Geometry\n", "Header extensions: 3", "L1 table at",
                           "Refcount table at", "Snapshot table at", "Bitmap directory at"}) {
    EXPECT_THAT(text, HasSubstr(part));
  }
  const Json json = JsonOf(RichImage().bytes, {});
  for (const char* key : {"header", "extensions", "l1", "refcounts", "snapshots", "bitmaps"}) {
    EXPECT_TRUE(json.contains(key)) << key;
  }
}

TEST(InspectTest, EachOptionShowsItsPartAndNoOther) {
  const BuiltImage image = RichImage();
  for (const std::string part : {"header", "extensions", "l1", "refcounts", "snapshots", "bitmaps",
                                 "l2=0", "guest=0", "cluster=0"}) {
    const std::string key = part.substr(0, part.find('='));
    const Json json = JsonOf(image.bytes, {"--" + part});
    for (const char* other : {"header", "extensions", "l1", "refcounts", "snapshots", "bitmaps",
                              "l2", "guest", "cluster"}) {
      EXPECT_EQ(json.contains(other), key == other) << part << " " << other;
    }
  }
}

TEST(InspectTest, Version3HeaderNamesItsFeatures) {
  const BuiltImage image =
      BuildImage({.refcount_order = 5, .extended_l2 = true, .lazy_refcounts = true, .dirty = true});
  EXPECT_THAT(TextOf(image.bytes, {"--header"}),
              AllOf(HasSubstr("dirty, extended L2 entries"), HasSubstr("lazy refcounts"),
                    HasSubstr("refcounts of 32 bits"), HasSubstr("a header of 112 bytes"),
                    HasSubstr("deflate (zlib)"), HasSubstr("Subclusters   32 in a cluster")));
}

TEST(InspectTest, FieldsThatALaterVersionAddedAreShownAsBytes) {
  BuiltImage image = BuildImage({.header_length = 120});
  Poke(image.bytes, 112, "01 02 03 04 05 06 07 08");
  EXPECT_THAT(TextOf(image.bytes, {"--header"}), HasSubstr("01 02 03 04 05 06 07 08"));
}

TEST(InspectTest, Extensions) {
  const Json list = JsonOf(RichImage().bytes, {"--extensions"})["extensions"]["list"];
  ASSERT_EQ(list.size(), 3u);
  EXPECT_EQ(list[0]["name"], "backing file format");
  EXPECT_EQ(list[0]["text"], "qcow2");
  EXPECT_EQ(list[1]["features"][0]["name"], "dirty bit");
  EXPECT_EQ(list[2]["bitmaps"], 1);
}

TEST(InspectTest, RefcountsInRangesOfEqualValues) {
  BuiltImage image = BuildImage({.refcount_order = 1, .steps = {WriteClusters{.count = 8}}});
  SetRefcount(image, 3, 2);
  SetRefcount(image, 5, 0);
  const Json block = JsonOf(image.bytes, {"--refcounts"})["refcounts"]["blocks"][0];
  EXPECT_EQ(block["refcounts"][0],
            Json::parse(R"({"first-cluster": 0, "clusters": 3, "refcount": 1})"));
  EXPECT_EQ(block["refcounts"][1]["refcount"], 2);
  EXPECT_EQ(block["refcounts"][2]["first-cluster"], 4);
  EXPECT_EQ(block["refcounts"][3]["first-cluster"], 6);
}

TEST(InspectTest, ABlockThatTwoEntriesNameIsReadOnce) {
  BuiltImage image = BuildImage({.steps = {WriteClusters{}}});
  Poke64(image.bytes, image.refcount_table.offset + 8, image.refcount_blocks[0]);
  const Json blocks = JsonOf(image.bytes, {"--refcounts"})["refcounts"]["blocks"];
  EXPECT_EQ(blocks[1]["same-block-as"], 0);
}

TEST(InspectTest, Snapshots) {
  const BuiltImage image =
      BuildImage({.steps = {WriteClusters{}, TakeSnapshot{.name = "one", .vm_state_bytes = 100'000},
                            TakeSnapshot{.id = "x", .name = "two"}}});
  const Json list = JsonOf(image.bytes, {"--snapshots"})["snapshots"]["list"];
  ASSERT_EQ(list.size(), 2u);
  EXPECT_EQ(list[0]["name"], "one");
  EXPECT_EQ(list[0]["vm-state-size"], 100'000);
  EXPECT_EQ(list[0]["l1-offset"], image.snapshots[0].l1.offset);
  EXPECT_EQ(list[1]["id"], "x");
  EXPECT_EQ(list[1]["virtual-size"], 64 * kMiB);
  EXPECT_THAT(TextOf(image.bytes, {"--snapshots"}), HasSubstr("id \"x\", name \"two\""));
}

TEST(InspectTest, ASnapshotTableThatStopsMakingSense) {
  BuiltImage image = BuildImage({.steps = {TakeSnapshot{}, TakeSnapshot{}}});
  Poke32(image.bytes, image.snapshots[1].entry_offset + 36, 0xffffffff);  // size of extra data
  const Json json = JsonOf(image.bytes, {"--snapshots"})["snapshots"];
  EXPECT_EQ(json["list"].size(), 1u);
  EXPECT_EQ(json["incomplete"], "their entries cannot be read");
}

TEST(InspectTest, Bitmaps) {
  const BuiltImage image =
      BuildImage({.bitmaps = {{.name = "a", .dirty = {{0, kMiB}}}, {.name = "b", .in_use = true}}});
  const Json bitmaps = JsonOf(image.bytes, {"--bitmaps"})["bitmaps"];
  EXPECT_EQ(bitmaps["stale"], false);
  ASSERT_EQ(bitmaps["list"].size(), 2u);
  EXPECT_EQ(bitmaps["list"][0]["granularity-bits"], 16);
  EXPECT_EQ(bitmaps["list"][0]["data-clusters"], 1);
  EXPECT_EQ(bitmaps["list"][0]["used"][0]["data-offset"], image.bitmaps[0].data_offsets[0]);
  EXPECT_EQ(bitmaps["list"][1]["in-use"], true);
  EXPECT_THAT(TextOf(image.bytes, {"--bitmaps"}), HasSubstr("bitmap \"b\""));
}

TEST(InspectTest, StaleBitmapsAreShownAsStale) {
  BuiltImage image = BuildImage({.bitmaps = {{.name = "a"}}});
  PokeField(image, "autoclear_features", 0);
  EXPECT_EQ(JsonOf(image.bytes, {"--bitmaps"})["bitmaps"]["stale"], true);
  EXPECT_THAT(TextOf(image.bytes, {"--bitmaps"}), HasSubstr("stale"));
}

TEST(InspectTest, L2OfASlotWithoutTable) {
  const BuiltImage image = BuildImage({.cluster_bits = 12, .virtual_size = 8 * kMiB});
  const Json l2 = JsonOf(image.bytes, {"--l2=1"})["l2"];
  EXPECT_TRUE(l2["table-offset"].is_null());
  EXPECT_THAT(TextOf(image.bytes, {"--l2=1"}), HasSubstr("no L2 table, guest 2 MiB to 4 MiB"));
}

TEST(InspectTest, L2WithEveryKindOfEntry) {
  const BuiltImage image =
      BuildImage({.steps = {WriteClusters{.count = 2}, WriteCompressed{.first = 2},
                            WriteZeros{.first = 3}, WriteZeros{.first = 1, .preallocated = true}}});
  const Json entries = JsonOf(image.bytes, {"--l2=0"})["l2"]["entries"];
  std::vector<std::string> kinds;
  for (const Json& entry : entries) kinds.push_back(entry["kind"]);
  EXPECT_THAT(kinds, ElementsAre("normal", "zero-allocated", "compressed", "zero", "unallocated"));
  EXPECT_EQ(entries[2]["compressed"]["offset"], image.At(2 * 64 * kKiB).host_offset);
  EXPECT_EQ(entries[2]["compressed"]["length"], image.At(2 * 64 * kKiB).length);
}

TEST(InspectTest, ListsAreCappedAndSayWhatIsLeftOut) {
  const BuiltImage image = BuildImage({.cluster_bits = 9,
                                       .virtual_size = 4 * kMiB,
                                       .steps = {WriteClusters{.count = 100, .stride = 64}}});
  const Json overview = JsonOf(image.bytes, {})["l1"];
  EXPECT_EQ(overview["used"].size(), 64u);
  EXPECT_EQ(overview["used-left-out"], 36);
  EXPECT_THAT(TextOf(image.bytes, {}), HasSubstr("... and 36 more"));
  EXPECT_EQ(JsonOf(image.bytes, {"--l1"})["l1"]["used"].size(), 100u);
}

// --- What cannot be shown ---

TEST(InspectErrorTest, WhatIsNoQcow2Image) {
  const std::vector<uint8_t> text = {'h', 'e', 'l', 'l', 'o'};
  const CommandResult plain = Inspect(text, {});
  EXPECT_EQ(plain.exit_code, 63);
  EXPECT_EQ(plain.out, "");
  EXPECT_THAT(plain.err, HasSubstr("is not a qcow2 image\n"));
  const CommandResult json = Inspect(text, {"--json"});
  EXPECT_EQ(json.exit_code, 63);
  EXPECT_THAT(JsonIn(json)["error"].get<std::string>(), HasSubstr("is not a qcow2 image"));
}

TEST(InspectErrorTest, MissingFilesDirectoriesAndEmptyFiles) {
  const TempDir dir;
  dir.Write("empty", {});
  for (const std::string& path : {dir.Path("missing"), dir.path(), dir.Path("empty")}) {
    const CommandResult result = RunCommand({QCOW2CHECK_PROGRAM, "inspect", path, "--json"});
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_THAT(result.err, HasSubstr(path));
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1);
    EXPECT_TRUE(JsonIn(result).contains("error"));
  }
}

TEST(InspectErrorTest, WrongUsage) {
  const BuiltImage image = BuildImage({});
  for (const char* wrong : {"--l2=x", "--cluster=1x", "--guest=1Z", "--guest=", "--nonsense"}) {
    const CommandResult result = Inspect(image.bytes, {wrong, "--json"});
    EXPECT_EQ(result.exit_code, 1) << wrong;
    EXPECT_TRUE(JsonIn(result).contains("error")) << wrong;
    EXPECT_NE(result.err, "") << wrong;
  }
  EXPECT_EQ(RunCommand({QCOW2CHECK_PROGRAM, "inspect"}).exit_code, 1);
  EXPECT_EQ(RunCommand({QCOW2CHECK_PROGRAM, "inspect", "--help"}).exit_code, 0);
}

TEST(InspectErrorTest, ASlotThatDoesNotExist) {
  const CommandResult result = Inspect(BuildImage({}).bytes, {"--header", "--l2=7", "--json"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("there is no L1 slot 7: the L1 table has 1"));
  EXPECT_TRUE(JsonIn(result)["l2"].contains("error"));
  EXPECT_TRUE(JsonIn(result)["header"].contains("fields"));  // the rest is shown all the same
}

TEST(InspectErrorTest, WithAnImpossibleClusterSizeTheHeaderIsStillShown) {
  BuiltImage image = BuildImage({});
  PokeField(image, "cluster_bits", 64);
  const std::string text = TextOf(image.bytes, {});
  EXPECT_THAT(text, AllOf(HasSubstr("impossible"), HasSubstr("refcount_table_offset"),
                          HasSubstr("L1 table: cannot be shown: the cluster size is impossible")));
  EXPECT_EQ(Inspect(image.bytes, {"--header"}).exit_code, 0);
  EXPECT_EQ(Inspect(image.bytes, {"--l1"}).exit_code, 1);
  EXPECT_EQ(Inspect(image.bytes, {"--guest=0"}).exit_code, 1);
  EXPECT_EQ(Inspect(image.bytes, {"--cluster=0"}).exit_code, 1);
}

TEST(InspectErrorTest, AFileThatEndsInsideTheHeader) {
  BuiltImage image = BuildImage({});
  Truncate(image.bytes, 30);
  const Json fields = JsonOf(image.bytes, {"--header"})["header"]["fields"];
  EXPECT_EQ(fields[4]["value"], 16);                             // cluster_bits is there
  EXPECT_EQ(fields[5]["bytes"].get<std::string>().size(), 17u);  // 6 bytes of size
  EXPECT_TRUE(fields[5]["value"].is_null());
  EXPECT_EQ(fields[6]["meaning"], "the file ends before it");
}

TEST(InspectErrorTest, TablesOutsideTheFile) {
  const BuiltImage sound = BuildImage({.bitmaps = {{.name = "a"}}});
  for (const char* field : {"l1_table_offset", "refcount_table_offset"}) {
    for (const uint64_t offset : {uint64_t{0}, uint64_t{512}, uint64_t{1} << 60, ~uint64_t{0}}) {
      BuiltImage image = sound;
      PokeField(image, field, offset);
      const CommandResult overview = Inspect(image.bytes, {});
      EXPECT_EQ(overview.exit_code, 0) << field << " " << offset;
      EXPECT_THAT(overview.out, HasSubstr("cannot be read: ")) << field << " " << offset;
      const char* option = field[0] == 'l' ? "--l1" : "--refcounts";
      EXPECT_EQ(Inspect(image.bytes, {option}).exit_code, 1);
      EXPECT_EQ(Inspect(image.bytes, {"--cluster=1"}).exit_code, 0);
    }
  }
}

TEST(InspectErrorTest, SizesThatTheFileDoesNotHave) {
  BuiltImage image = BuildImage({.steps = {WriteClusters{}}});
  PokeField(image, "l1_size", 0xffffffff);
  PokeField(image, "refcount_table_clusters", 0xffffffff);
  PokeField(image, "nb_snapshots", 0xffffffff);
  PokeField(image, "snapshots_offset", image.l1.offset);
  PokeField(image, "header_length", 0xfffffff8);
  const CommandResult result = Inspect(image.bytes, {});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.out, HasSubstr("the file ends inside it"));
}

TEST(InspectErrorTest, AnImpossibleRefcountWidth) {
  BuiltImage image = BuildImage({.steps = {WriteClusters{}}});
  PokeField(image, "refcount_order", 99);
  EXPECT_EQ(Inspect(image.bytes, {"--refcounts"}).exit_code, 1);
  const Json guest = Guest(image, 0);
  EXPECT_EQ(guest["reads-from"], "cluster");
  EXPECT_TRUE(guest["refcounts"][0]["stored"].is_null());
  EXPECT_EQ(guest["refcounts"][0]["expected"], 1);
}

TEST(InspectErrorTest, UnreadableSectorsAreSaidAndTheRestIsShown) {
  const BuiltImage image = BuildImage({.cluster_bits = 9,
                                       .virtual_size = 4 * kMiB,
                                       .steps = {WriteClusters{.count = 100, .stride = 64}}});
  FaultFile file(image.bytes);
  file.Break(image.l1.offset, 512);
  ImageInspector inspector(file, InspectCaps{});
  const absl::StatusOr<L1View> l1 = inspector.ShowL1();
  ASSERT_TRUE(l1.ok()) << l1.status();
  EXPECT_EQ(l1->used.items.size(), 36u);  // those behind the first 64
  EXPECT_THAT(inspector.Unread(), ElementsAre(HasSubstr("it cannot be read")));
}

TEST(InspectErrorTest, NothingInAnImageReachesTheTerminalRaw) {
  const std::string evil = "x\x1b[31m\n\x07y";
  const BuiltImage image = BuildImage({.backing = BackingOptions{.file = evil, .format = evil},
                                       .steps = {TakeSnapshot{.id = evil, .name = evil}},
                                       .bitmaps = {{.name = evil}}});
  const std::string text = TextOf(image.bytes, {}) + TextOf(image.bytes, {"--guest=0"});
  EXPECT_THAT(text, Not(HasSubstr("\x1b")));
  EXPECT_THAT(text, Not(HasSubstr("\x07")));
  EXPECT_THAT(text, HasSubstr("x\\x1b[31m"));
  EXPECT_EQ(JsonOf(image.bytes, {})["bitmaps"]["list"][0]["name"], evil);
}

TEST(InspectErrorTest, NamesThatAreNoUtf8AreStillValidJson) {
  const BuiltImage image = BuildImage({.bitmaps = {{.name = "\xff\xfe\x9b"}}});
  EXPECT_EQ(JsonOf(image.bytes, {"--bitmaps"})["bitmaps"]["list"].size(), 1u);
}

TEST(InspectTest, AnImageThatAVirtualMachineWritesCanBeInspected) {
  const TempDir dir;
  const std::string path = dir.Write("disk.qcow2", BuildImage({}).bytes);
  const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  for (const off_t byte : {100, 101, 103, 201, 203}) {  // as QEMU does: I write, nobody else may
    struct flock lock = {};
    lock.l_type = F_RDLCK;
    lock.l_whence = SEEK_SET;
    lock.l_start = byte;
    lock.l_len = 1;
    ASSERT_EQ(fcntl(fd, F_OFD_SETLK, &lock), 0);
  }
  EXPECT_EQ(RunCommand({QCOW2CHECK_PROGRAM, "check", path}).exit_code, 1);
  EXPECT_EQ(RunCommand({QCOW2CHECK_PROGRAM, "inspect", path}).exit_code, 0);
  EXPECT_EQ(RunCommand({QCOW2CHECK_PROGRAM, "inspect", "-U", path, "--guest=0"}).exit_code, 0);
  close(fd);
}

TEST(InspectTest, RealImages) {
  const std::filesystem::path folder =
      std::filesystem::path(QCOW2CHECK_SOURCE_DIR) / ".." / "shared" / "images";
  if (!std::filesystem::is_directory(folder)) GTEST_SKIP() << "the images are not here";
  for (const auto& file : std::filesystem::directory_iterator(folder)) {
    if (file.path().extension() == ".md") continue;
    const CommandResult result =
        RunCommand({QCOW2CHECK_PROGRAM, "inspect", "--json", file.path().string()});
    EXPECT_EQ(result.exit_code, 0) << file.path();
    EXPECT_FALSE(JsonIn(result)["refcounts"]["blocks"].empty()) << file.path();
  }
}

TEST(InspectTest, NothingIsWritten) {
  const TempDir dir;
  const BuiltImage image = RichImage();
  const std::string path = dir.Write("disk.qcow2", image.bytes);
  RunCommand({QCOW2CHECK_PROGRAM, "inspect", path});
  RunCommand({QCOW2CHECK_PROGRAM, "inspect", path, "--guest=0", "--cluster=0", "--l2=0"});
  EXPECT_EQ(ReadFile(path), image.bytes);
}

}  // namespace
}  // namespace qcow2check::testing

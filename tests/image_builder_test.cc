// The proof that BuildImage builds what it says: QEMU finds no fault with the images, reads from
// them what was written, and makes the same bytes where it makes the same image.
#include "tests/image_builder.h"

#include <algorithm>
#include <ostream>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/header_extension.h"
#include "common/luks_header.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/damage.h"
#include "tests/program.h"
#include "tests/qemu.h"

namespace qcow2check::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr uint64_t kKiB = uint64_t{1} << 10;
constexpr uint64_t kMiB = uint64_t{1} << 20;

void ExpectClean(const std::string& path) {
  const QemuCheckResult check = QemuCheck(path);
  EXPECT_EQ(check.exit_code, 0) << check.err;
  EXPECT_EQ(check.corruptions, 0u);
  EXPECT_EQ(check.leaks, 0u);
  EXPECT_EQ(check.check_errors, 0u);
}

// What QEMU reads from `source` (options and a path), as one raw disk.
std::vector<uint8_t> ReadWithQemu(const TempDir& dir, const std::vector<std::string>& source) {
  const std::string raw = dir.Path("out.raw");
  std::vector<std::string> argv = {"qemu-img", "convert", "-O", "raw"};
  argv.insert(argv.end(), source.begin(), source.end());
  argv.push_back(raw);
  const CommandResult convert = RunCommand(argv);
  EXPECT_EQ(convert.exit_code, 0) << convert.err;
  return convert.exit_code == 0 ? ReadFile(raw) : std::vector<uint8_t>();
}

// Whether `bytes` are what `guest` says; names the first cluster that is not.
::testing::AssertionResult Reads(const std::vector<uint8_t>& bytes, const GuestClusters& guest,
                                 uint64_t virtual_size, int cluster_bits) {
  if (bytes.size() != virtual_size) {
    return ::testing::AssertionFailure() << bytes.size() << " bytes, not " << virtual_size;
  }
  const std::vector<uint8_t> expected = ReadGuest(guest, cluster_bits, 0, virtual_size);
  const auto difference = std::mismatch(bytes.begin(), bytes.end(), expected.begin());
  if (difference.first == bytes.end()) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure()
         << "guest byte 0x" << std::hex << (difference.first - bytes.begin()) << " differs";
}

void ExpectReadable(const TempDir& dir, const std::string& path, const BuiltImage& image) {
  EXPECT_TRUE(Reads(ReadWithQemu(dir, {"-f", "qcow2", path}), image.guest,
                    image.geometry.virtual_size_bytes, image.geometry.cluster_bits));
  for (const BuiltSnapshot& snapshot : image.snapshots) {
    std::vector<uint8_t> bytes =
        ReadWithQemu(dir, {"-f", "qcow2", "-l", "snapshot.id=" + snapshot.id, path});
    // QEMU reads a snapshot of a disk that has grown since to the size it has now.
    bytes.resize(snapshot.virtual_size);
    EXPECT_TRUE(Reads(bytes, snapshot.guest, snapshot.virtual_size, image.geometry.cluster_bits))
        << "snapshot " << snapshot.id;
  }
}

// QEMU can go on with the image: what it allocates is free, what it frees is known.
void ExpectWritable(const std::string& path) {
  const CommandResult io =
      RunCommand({"qemu-io", "-f", "qcow2", "-c", "write -P 17 1000 200000", "-c",
                  "discard 65536 131072", "-c", "write -P 18 3145728 5000", path});
  EXPECT_EQ(io.exit_code, 0) << io.err;
  ExpectClean(path);
}

nlohmann::json Info(const std::string& path) {
  const CommandResult info = RunCommand({"qemu-img", "info", "--output=json", path});
  EXPECT_EQ(info.exit_code, 0) << info.err;
  return nlohmann::json::parse(info.out, nullptr, false);
}

// --- A matrix of geometries and features, each checked and read by QEMU ---

struct Case {
  std::string name;
  ImageOptions options;
};

void PrintTo(const Case& one, std::ostream* out) { *out << one.name; }

// How much of the format the refcount width leaves room for.
enum class Sharing { kNone, kOneSnapshot, kAll };

std::vector<Step> StepsFor(const ImageOptions& options, Sharing sharing) {
  const uint64_t cs = uint64_t{1} << options.cluster_bits;
  const bool zeros = options.version >= 3;
  std::vector<Step> steps = {WriteClusters{.first = 1, .count = 9},
                             WriteClusters{.first = 20, .count = 6, .stride = 3},
                             Write{.guest_offset = 3 * cs + 7, .length = cs + 100},
                             Write{.guest_offset = 45 * cs + 17, .length = 40, .fill = 0xa5}};
  if (zeros) steps.push_back(WriteZeros{.first = 4, .count = 2});
  if (zeros) steps.push_back(WriteZeros{.first = 6, .count = 1, .preallocated = true});
  if (zeros) steps.push_back(WriteZeros{.first = 50, .count = 2, .preallocated = true});
  steps.push_back(WriteCompressed{.first = 60, .count = 1, .random_bytes = cs / 2});
  if (sharing == Sharing::kAll) {
    steps.push_back(WriteCompressed{.first = 61, .count = 5, .random_bytes = cs / 2});
    steps.push_back(WriteCompressed{.first = 66, .count = 12});
  }
  if (sharing != Sharing::kNone) {
    steps.push_back(TakeSnapshot{.name = "first"});
    steps.push_back(WriteClusters{.first = 2, .count = 2});
    steps.push_back(Write{.guest_offset = 60 * cs + 5, .length = 99});
    steps.push_back(Discard{.first = 1, .count = 1});
  }
  if (sharing == Sharing::kAll) {
    steps.push_back(TakeSnapshot{.name = "second", .vm_state_bytes = 3 * cs + 1});
    steps.push_back(WriteClusters{.first = 2, .count = 60, .stride = 2});
    steps.push_back(TakeSnapshot{.name = "third"});
    steps.push_back(TakeSnapshot{.name = "fourth"});
    steps.push_back(WriteCompressed{.first = 2, .count = 3});
    if (zeros) steps.push_back(WriteZeros{.first = 8, .count = 9, .preallocated = true});
    steps.push_back(DeleteSnapshot{.id = "3"});
  }
  steps.push_back(Discard{.first = 7, .count = 3});
  return steps;
}

Case MakeCase(const std::string& name, ImageOptions options, Sharing sharing = Sharing::kAll) {
  // Several L2 tables, and a last one that is not full; room for the highest cluster of a step.
  const uint64_t cluster_size = uint64_t{1} << options.cluster_bits;
  options.virtual_size = std::max(8 * kMiB, 128 * cluster_size) + 3 * 512;
  options.steps = StepsFor(options, sharing);
  return {name, options};
}

// For clusters of which a few are many bytes.
Case MakeLargeCase(const std::string& name, ImageOptions options) {
  const uint64_t cluster_size = uint64_t{1} << options.cluster_bits;
  options.virtual_size = 12 * cluster_size + 512;
  options.steps = {WriteClusters{.first = 0, .count = 2},
                   Write{.guest_offset = 3 * cluster_size - 77, .length = 1000},
                   WriteCompressed{.first = 5, .count = 3, .random_bytes = cluster_size / 3},
                   TakeSnapshot{.name = "first"},
                   WriteClusters{.first = 1},
                   WriteCompressed{.first = 7, .random_bytes = cluster_size / 2}};
  if (options.version >= 3) {
    options.steps.push_back(WriteZeros{.first = 0});
    options.steps.push_back(WriteZeros{.first = 9, .preallocated = true});
  }
  return {name, options};
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const int cluster_bits : {9, 12, 16, 21}) {
    const auto make = [&](const std::string& name, const ImageOptions& options) {
      const std::string full_name = absl::StrCat("Bits", cluster_bits, name);
      return cluster_bits < 21 ? MakeCase(full_name, options) : MakeLargeCase(full_name, options);
    };
    cases.push_back(make("V2", {.version = 2, .cluster_bits = cluster_bits}));
    cases.push_back(make("V3", {.cluster_bits = cluster_bits}));
    cases.push_back(make("Zstd", {.cluster_bits = cluster_bits, .compression_type = kZstd}));
  }
  for (const int cluster_bits : {9, 16}) {
    for (int order = 0; order <= 6; ++order) {
      // A host cluster that many compressed clusters share needs a wide refcount.
      const Sharing sharing = order == 0  ? Sharing::kNone
                              : order < 3 ? Sharing::kOneSnapshot
                                          : Sharing::kAll;
      cases.push_back(MakeCase(absl::StrCat("Bits", cluster_bits, "Order", order),
                               {.cluster_bits = cluster_bits, .refcount_order = order}, sharing));
    }
  }
  cases.push_back(MakeCase("ExtendedL2Bits14", {.cluster_bits = 14, .extended_l2 = true}));
  cases.push_back(MakeCase("ExtendedL2Bits16", {.cluster_bits = 16, .extended_l2 = true}));
  cases.push_back(MakeCase("Header104", {.header_length = 104}));
  cases.push_back(MakeCase("LongHeader", {.header_length = 128}));
  cases.push_back(MakeCase("LazyRefcounts", {.lazy_refcounts = true}));
  cases.push_back(MakeCase("NoFeatureNames", {.feature_names = false}));
  cases.push_back(MakeCase("ExtraL1", {.extra_l1_entries = 9000}));
  cases.push_back(MakeCase("EndsAtLastByte", {.end_at_last_byte = true}));
  cases.push_back(MakeCase("TrailingBytes", {.trailing_bytes = 70000}));
  cases.push_back(MakeCase("ShortSnapshotExtra", {.snapshot_extra_bytes = 16}));
  cases.push_back(MakeCase("V2NoSnapshotExtra", {.version = 2, .snapshot_extra_bytes = 0}));
  cases.push_back(MakeCase("UnknownExtension", {.extensions = {{0x12345678, {1, 2, 3}}}}));
  cases.push_back(MakeCase(
      "Bitmaps",
      {.bitmaps = {{.name = "daily", .dirty = {{0, kMiB}}},
                   {.name = "b", .granularity_bits = 9, .auto_flag = true, .use_all_ones = true},
                   {.name = "torn", .in_use = true}}}));
  return cases;
}

class QemuAgrees : public ::testing::TestWithParam<Case> {};

TEST_P(QemuAgrees, CleanReadableWritable) {
  QCOW2CHECK_SKIP_WITHOUT_QEMU();
  const BuiltImage image = BuildImage(GetParam().options);
  const TempDir dir;
  const std::string path = dir.Write("image.qcow2", image.bytes);
  ExpectClean(path);
  ExpectReadable(dir, path, image);
  ExpectWritable(path);
}

INSTANTIATE_TEST_SUITE_P(Matrix, QemuAgrees, ::testing::ValuesIn(Cases()),
                         [](const ::testing::TestParamInfo<Case>& one) { return one.param.name; });

// --- The same image from QEMU is the same bytes ---

struct CreateCase {
  std::string name;
  std::string qemu_options;
  ImageOptions options;
};

void PrintTo(const CreateCase& one, std::ostream* out) { *out << one.name; }

class QemuCreates : public ::testing::TestWithParam<CreateCase> {};

TEST_P(QemuCreates, TheSameBytes) {
  QCOW2CHECK_SKIP_WITHOUT_QEMU();
  const TempDir dir;
  const std::string path = dir.Path("image.qcow2");
  ImageOptions options = GetParam().options;
  options.end_at_last_byte = true;
  ASSERT_EQ(RunCommand({"qemu-img", "create", "-q", "-f", "qcow2", "-o", GetParam().qemu_options,
                        path, absl::StrCat(options.virtual_size)})
                .exit_code,
            0);
  EXPECT_EQ(ReadFile(path), BuildImage(options).bytes);
}

INSTANTIATE_TEST_SUITE_P(
    Matrix, QemuCreates,
    ::testing::Values(CreateCase{"Default", "compat=1.1", {}},
                      CreateCase{"V2", "compat=0.10", {.version = 2}},
                      CreateCase{"Bits9", "cluster_size=512", {.cluster_bits = 9}},
                      CreateCase{"Bits12", "cluster_size=4k", {.cluster_bits = 12}},
                      CreateCase{"Bits13", "cluster_size=8k", {.cluster_bits = 13}},
                      CreateCase{"Bits21", "cluster_size=2M", {.cluster_bits = 21}},
                      CreateCase{"Order6", "refcount_bits=64", {.refcount_order = 6}},
                      CreateCase{"Lazy", "lazy_refcounts=on", {.lazy_refcounts = true}},
                      CreateCase{"Zstd", "compression_type=zstd", {.compression_type = kZstd}},
                      CreateCase{"ExtendedL2", "extended_l2=on", {.extended_l2 = true}},
                      CreateCase{"Terabyte", "compat=1.1", {.virtual_size = 1024 * 1024 * kMiB}},
                      CreateCase{"NoSize", "compat=1.1", {.virtual_size = 0}}),
    [](const ::testing::TestParamInfo<CreateCase>& one) { return one.param.name; });

TEST(ImageBuilderTest, WritesAndSnapshotsAreWhereQemuPutsThem) {
  QCOW2CHECK_SKIP_WITHOUT_QEMU();
  const TempDir dir;
  const std::string path = dir.Path("image.qcow2");
  ASSERT_EQ(RunCommand({"qemu-img", "create", "-q", "-f", "qcow2", path, "64M"}).exit_code, 0);
  ASSERT_EQ(RunCommand({"qemu-io", "-f", "qcow2", "-c", "write -P 1 0 256k", path}).exit_code, 0);
  ASSERT_EQ(RunCommand({"qemu-img", "snapshot", "-c", "a", path}).exit_code, 0);
  ASSERT_EQ(RunCommand({"qemu-io", "-f", "qcow2", "-c", "write -P 2 64k 64k", path}).exit_code, 0);
  const std::vector<uint8_t> made = ReadFile(path);
  BuiltImage image =
      BuildImage({.steps = {Write{.length = 256 * kKiB, .fill = 1}, TakeSnapshot{.name = "a"},
                            Write{.guest_offset = 64 * kKiB, .length = 64 * kKiB, .fill = 2}},
                  .end_at_last_byte = true});
  // Date, clock and instruction count are QEMU's own.
  for (const uint64_t at : {16, 24, 56}) {
    Poke64(image.bytes, image.snapshots[0].entry_offset + at,
           Peek64(made, image.snapshots[0].entry_offset + at));
  }
  EXPECT_EQ(made, image.bytes);
}

// --- Single features ---

TEST(ImageBuilderTest, SmallClustersNeedManyRefcountBlocksAndALargerTable) {
  QCOW2CHECK_SKIP_WITHOUT_QEMU();
  const BuiltImage image = BuildImage({.cluster_bits = 9,
                                       .refcount_order = 6,
                                       .virtual_size = 8 * kMiB,
                                       .steps = {WriteClusters{.count = 12000}}});
  EXPECT_GT(image.refcount_table.length, 512u);
  EXPECT_GT(image.refcount_blocks.size(), 180u);
  const TempDir dir;
  const std::string path = dir.Write("image.qcow2", image.bytes);
  ExpectClean(path);
  ExpectReadable(dir, path, image);
}

TEST(ImageBuilderTest, SubclustersAreAllocatedZeroOrNeither) {
  QCOW2CHECK_SKIP_WITHOUT_QEMU();
  const BuiltImage image =
      BuildImage({.extended_l2 = true,
                  .steps = {Write{.guest_offset = 4096, .length = 2048},
                            WriteZeros{.first = 0, .subclusters = 0xf0}, WriteClusters{.first = 1},
                            WriteZeros{.first = 1, .subclusters = 0x3},
                            WriteZeros{.first = 2, .subclusters = 0x80000001},
                            WriteZeros{.first = 3, .preallocated = true}}});
  EXPECT_EQ(GetL2Bitmap(image, 0), 0x000000f000000004u);
  EXPECT_EQ(GetL2Bitmap(image, 65536), 0x00000003fffffffcu);
  EXPECT_EQ(GetL2Entry(image, 2 * 65536), 0u);
  EXPECT_EQ(GetL2Bitmap(image, 2 * 65536), 0x8000000100000000u);
  EXPECT_NE(GetL2Entry(image, 3 * 65536), 0u);
  const TempDir dir;
  const std::string path = dir.Write("image.qcow2", image.bytes);
  ExpectClean(path);
  ExpectReadable(dir, path, image);
}

TEST(ImageBuilderTest, ADiskThatGrowsKeepsItsSnapshots) {
  QCOW2CHECK_SKIP_WITHOUT_QEMU();
  const BuiltImage image = BuildImage(
      {.cluster_bits = 9,
       .virtual_size = 2 * kMiB,
       .steps = {WriteClusters{.count = 4}, TakeSnapshot{}, Resize{.virtual_size = 6 * kMiB},
                 WriteClusters{.first = 6 * 2048 - 1}}});
  EXPECT_EQ(image.l1.entries, 192u);
  EXPECT_EQ(image.snapshots[0].l1.entries, 64u);
  const TempDir dir;
  const std::string path = dir.Write("image.qcow2", image.bytes);
  ExpectClean(path);
  ExpectReadable(dir, path, image);
}

TEST(ImageBuilderTest, FillIsWhatQemuIoReads) {
  QCOW2CHECK_SKIP_WITHOUT_QEMU();
  const BuiltImage image =
      BuildImage({.steps = {Write{.guest_offset = 65000, .length = 70000, .fill = 0x42}}});
  const TempDir dir;
  const std::string path = dir.Write("image.qcow2", image.bytes);
  for (const std::string command : {"read -P 0x42 65000 70000", "read -P 0 0 65000"}) {
    const CommandResult io = RunCommand({"qemu-io", "-r", "-f", "qcow2", "-c", command, path});
    EXPECT_EQ(io.exit_code, 0) << io.out;
  }
}

TEST(ImageBuilderTest, TheDataFileHoldsTheGuestsClusters) {
  QCOW2CHECK_SKIP_WITHOUT_QEMU();
  for (const bool raw : {false, true}) {
    for (const bool extended_l2 : {false, true}) {
      const TempDir dir;
      const std::string data_path = dir.Path("image.data");
      const BuiltImage image = BuildImage(
          {.extended_l2 = extended_l2,
           .data_file = DataFileOptions{.name = data_path, .raw = raw},
           .steps = {WriteClusters{.count = 4}, WriteClusters{.first = 100}, WriteZeros{.first = 1},
                     WriteZeros{.first = 2, .preallocated = true}, Discard{.first = 3}}});
      const std::string path = dir.Write("image.qcow2", image.bytes);
      WriteFile(data_path, image.data_file_bytes);
      ExpectClean(path);
      ExpectReadable(dir, path, image);
      EXPECT_EQ(image.At(100 * 65536).host_offset, 100u * 65536);
      if (raw) {
        EXPECT_TRUE(Reads(image.data_file_bytes, image.guest, 64 * kMiB, 16));
      }
    }
  }
}

TEST(ImageBuilderTest, AnOverlayReadsItsBackingFile) {
  QCOW2CHECK_SKIP_WITHOUT_QEMU();
  const TempDir dir;
  const BuiltImage base = BuildImage({.steps = {WriteClusters{.count = 10}}});
  const BuiltImage overlay = BuildImage({.backing = BackingOptions{},
                                         .steps = {WriteClusters{.first = 2, .count = 2},
                                                   WriteZeros{.first = 5}, Discard{.first = 2}}});
  dir.Write("base.qcow2", base.bytes);
  const std::string path = dir.Write("overlay.qcow2", overlay.bytes);
  ExpectClean(path);
  GuestClusters guest = base.guest;
  for (const auto& [cluster, content] : overlay.guest) guest[cluster] = content;
  EXPECT_TRUE(Reads(ReadWithQemu(dir, {"-f", "qcow2", path}), guest, 64 * kMiB, 16));
  EXPECT_EQ(Info(path).value("backing-filename-format", ""), "qcow2");
}

TEST(ImageBuilderTest, SnapshotsAndBitmapsAreWhatQemuLists) {
  QCOW2CHECK_SKIP_WITHOUT_QEMU();
  const BuiltImage image =
      BuildImage({.steps = {TakeSnapshot{.id = "7", .name = "before"},
                            TakeSnapshot{.name = "running", .vm_state_bytes = 100000}},
                  .bitmaps = {{.name = "daily", .granularity_bits = 17, .auto_flag = true},
                              {.name = "torn", .in_use = true}}});
  const TempDir dir;
  const nlohmann::json info = Info(dir.Write("image.qcow2", image.bytes));
  ASSERT_THAT(info["snapshots"], SizeIs(2));
  EXPECT_EQ(info["snapshots"][0]["id"], "7");
  EXPECT_EQ(info["snapshots"][0]["name"], "before");
  EXPECT_EQ(info["snapshots"][1]["name"], "running");
  EXPECT_EQ(info["snapshots"][1]["vm-state-size"], 100000);
  const nlohmann::json bitmaps = info["format-specific"]["data"]["bitmaps"];
  ASSERT_THAT(bitmaps, SizeIs(2));
  EXPECT_EQ(bitmaps[0]["name"], "daily");
  EXPECT_EQ(bitmaps[0]["granularity"], 131072);
  EXPECT_THAT(bitmaps[0]["flags"], ElementsAre("auto"));
  EXPECT_THAT(bitmaps[1]["flags"], ElementsAre("in-use"));
}

// QEMU wants the passphrase before it checks. Without the crypt method and with the pointer hidden
// behind another type, all that is left to say is that the header's clusters are leaked.
TEST(ImageBuilderTest, TheLuksHeaderIsInClustersOfItsOwn) {
  QCOW2CHECK_SKIP_WITHOUT_QEMU();
  BuiltImage image = BuildImage({.luks = LuksOptions{}, .steps = {WriteClusters{.count = 3}}});
  const LuksHeader luks = DecodeLuksHeader(
      absl::MakeConstSpan(image.bytes).subspan(image.luks_header.offset, kLuksHeaderBytes));
  EXPECT_TRUE(luks.magic_ok);
  EXPECT_EQ(luks.version, 1);
  EXPECT_EQ(luks.payload_offset_sectors * 512, image.luks_header.length);
  EXPECT_EQ(luks.slots[0].state, kLuksSlotActive);
  EXPECT_EQ(luks.slots[7].state, kLuksSlotDisabled);
  EXPECT_EQ(luks.slots[7].material_offset_sectors * 512 + 64 * 4000 + 2048,
            image.luks_header.length);
  PokeField(image, "crypt_method", kCryptNone);
  Poke32(image.bytes, image.Extension(kExtensionCrypto).offset, 0x11111111);
  const TempDir dir;
  const QemuCheckResult check = QemuCheck(dir.Write("image.qcow2", image.bytes));
  EXPECT_EQ(check.exit_code, 3);
  EXPECT_EQ(check.corruptions, 0u);
  EXPECT_EQ(check.leaks, image.luks_header.length / 65536 + 1);
}

// --- The map of where everything is ---

TEST(ImageBuilderTest, EveryClusterIsWhereTheMapSays) {
  const BuiltImage image = BuildImage({.cluster_bits = 12,
                                       .steps = {WriteClusters{.count = 700}, TakeSnapshot{},
                                                 WriteClusters{.first = 10, .count = 5}}});
  ASSERT_THAT(image.l1.l2_tables, SizeIs(2));
  ASSERT_THAT(image.l1.clusters, SizeIs(700));
  ASSERT_THAT(image.snapshots, SizeIs(1));
  ASSERT_THAT(image.snapshots[0].l1.clusters, SizeIs(700));
  std::set<uint64_t> hosts;
  for (const BuiltCluster& cluster : image.l1.clusters) {
    const bool rewritten = cluster.guest_offset / 4096 - 10 < 5;
    EXPECT_EQ(std::vector<uint8_t>(
                  image.bytes.begin() + static_cast<int64_t>(cluster.host_offset),
                  image.bytes.begin() + static_cast<int64_t>(cluster.host_offset + 4096)),
              PatternOf(cluster.guest_offset, rewritten ? 3 : 1, 4096));
    EXPECT_EQ(cluster.entry_offset, image.L2EntryOffset(cluster.guest_offset));
    EXPECT_EQ(EntryOffset(Peek64(image.bytes, cluster.entry_offset)), cluster.host_offset);
    EXPECT_EQ(GetRefcount(image, image.ClusterOf(cluster.host_offset)), rewritten ? 1u : 2u);
    EXPECT_EQ(IsCopied(GetL2Entry(image, cluster.guest_offset)), rewritten);
    hosts.insert(cluster.host_offset);
  }
  EXPECT_THAT(hosts, SizeIs(700));
  EXPECT_EQ(GetL1Entry(image, 0), image.L2At(0).host_offset | kCopiedBit);
  EXPECT_EQ(GetL1Entry(image, 1), image.L2At(1).host_offset);
  EXPECT_EQ(image.snapshots[0].l1.l2_tables[1].host_offset, image.L2At(1).host_offset);
}

TEST(ImageBuilderTest, TheStatisticsAreThoseOfTheSteps) {
  QCOW2CHECK_SKIP_WITHOUT_QEMU();
  const BuiltImage image = BuildImage(
      {.steps = {WriteClusters{.first = 0}, WriteClusters{.first = 2}, WriteClusters{.first = 1},
                 WriteCompressed{.first = 4}, WriteZeros{.first = 8}}});
  const TempDir dir;
  const QemuCheckResult check = QemuCheck(dir.Write("image.qcow2", image.bytes));
  EXPECT_EQ(check.total_clusters, 1024u);
  EXPECT_EQ(check.allocated_clusters, 4u);
  EXPECT_EQ(check.fragmented_clusters, 3u);
  EXPECT_EQ(check.compressed_clusters, 1u);
  EXPECT_EQ(check.image_end_offset, image.bytes.size());
}

TEST(ImageBuilderTest, AnEmptyDiskHasNoMappings) {
  const BuiltImage image = BuildImage({});
  EXPECT_THAT(image.l1.l2_tables, IsEmpty());
  EXPECT_THAT(image.l1.clusters, IsEmpty());
  EXPECT_EQ(image.l1.offset, 0x30000u);
  EXPECT_EQ(image.bytes.size(), 0x40000u);
  EXPECT_EQ(GetField(image, "l1_size"), 1u);
}

}  // namespace
}  // namespace qcow2check::testing

// Sound images of every kind that QEMU's tools make: all numbers and the exit code are those of
// qemu-img check. One test for each kind and cluster size, several refcount widths in each.
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/checked_program.h"
#include "tests/disk_image.h"
#include "tests/qemu.h"

namespace qcow2check::testing {
namespace {

// Version 2 images have 16-bit refcounts.
struct Format {
  int version = 3;
  int refcount_bits = 16;
};

constexpr Format kVersion2 = {2, 16};

class QemuMatrix : public ::testing::TestWithParam<int> {
 protected:
  void SetUp() override { QCOW2CHECK_SKIP_WITHOUT_QEMU(); }

  uint64_t cluster_size() const { return uint64_t{1} << cluster_bits_; }
  // How much of the disk one L2 table maps.
  uint64_t l2_bytes() const { return cluster_size() * (cluster_size() / 8); }
  // Three L2 tables and a piece of a fourth, that ends in mid-cluster for all but the smallest.
  std::string LargeSize() const { return absl::StrCat(3 * l2_bytes() + 2 * cluster_size() + 512); }
  // Small enough to be filled.
  std::string SmallSize() const { return absl::StrCat(40 * cluster_size()); }

  std::string Options(const Format& format, const std::string& more = "") const {
    return absl::StrCat("cluster_size=", cluster_size(),
                        format.version == 2
                            ? ",compat=0.10"
                            : absl::StrCat(",compat=1.1,refcount_bits=", format.refcount_bits),
                        more.empty() ? "" : ",", more);
  }

  // A qemu-io command on `count` clusters, but on no more than 64 KiB if the clusters are large.
  std::string On(const std::string& command, uint64_t cluster, uint64_t count = 1) const {
    const uint64_t bytes = std::min(count * cluster_size(), std::max(cluster_size(), kLargeWrite));
    return absl::StrCat(command, " ", cluster * cluster_size(), " ",
                        cluster_size() > kLargeWrite ? kLargeWrite : bytes);
  }
  std::string Whole(const std::string& command, uint64_t cluster, uint64_t count = 1) const {
    return absl::StrCat(command, " ", cluster * cluster_size(), " ", count * cluster_size());
  }
  // In order, in gaps, out of order, in part, and under several L2 tables.
  std::vector<std::string> Writes() const {
    const uint64_t per_l2 = cluster_size() / 8;
    return {On("write -P 1", 0, 4),
            On("write -P 2", 7),
            On("write -P 3", 12),
            On("write -P 4", 11),
            On("write -P 5", 10),
            absl::StrCat("write -P 6 ", 15 * cluster_size(), " 512"),
            On("write -P 7", per_l2 + 2, 3),
            On("write -P 8", per_l2 + 1),
            On("write -P 9", 3 * per_l2 + 1)};
  }
  // For a disk of 40 clusters.
  std::vector<std::string> FewWrites() const {
    return {On("write -P 1", 0, 3), On("write -P 2", 9), On("write -P 3", 5), On("write -P 4", 39)};
  }
  // Zeros with and without a cluster behind them, and clusters that are freed and used again.
  std::vector<std::string> ZerosAndDiscards() const {
    return {Whole("write -z", 1),        Whole("write -z -u", 2), Whole("write -z", 20, 3),
            Whole("write -z -u", 24, 3), Whole("discard", 10, 2), Whole("discard", 20),
            On("write -P 10", 30, 2),    Whole("discard", 0)};
  }

  // Both programs on the image as it is now.
  static void ExpectAgreement(const DiskImage& image, const std::string& what,
                              const std::vector<std::string>& qemu_options = {}) {
    const CheckedTwice both = CheckWithBoth(image.path(), qemu_options);
    EXPECT_TRUE(AllNumbersAgree(both)) << what;
    EXPECT_EQ(both.ours.verdict(), "clean") << what;
    EXPECT_EQ(both.ours.data_state(), "intact") << what;
  }

  static constexpr uint64_t kLargeWrite = 65536;
  int cluster_bits_ = GetParam();
};

TEST_P(QemuMatrix, Plain) {
  for (const Format& format :
       {kVersion2, Format{3, 1}, {3, 2}, {3, 4}, {3, 8}, {3, 16}, {3, 32}, {3, 64}}) {
    const DiskImage image(LargeSize(), Options(format));
    image.Io(Writes());
    ExpectAgreement(image, Options(format));
  }
}

TEST_P(QemuMatrix, Empty) {
  for (const Format& format : {kVersion2, Format{3, 1}, {3, 64}}) {
    const DiskImage image(LargeSize(), Options(format));
    ExpectAgreement(image, Options(format));
  }
}

TEST_P(QemuMatrix, ZerosAndDiscards) {
  for (const Format& format : {kVersion2, Format{3, 1}, {3, 16}, {3, 64}}) {
    const DiskImage image(LargeSize(), Options(format));
    std::vector<std::string> commands = Writes();
    for (const std::string& command : ZerosAndDiscards()) commands.push_back(command);
    image.Io(commands);
    ExpectAgreement(image, Options(format));
  }
}

TEST_P(QemuMatrix, OneSnapshot) {
  for (const Format& format : {kVersion2, Format{3, 2}, {3, 64}}) {
    const DiskImage image(LargeSize(), Options(format));
    image.Io(Writes());
    image.TakeSnapshot("one");
    image.Io({On("write -P 20", 1), Whole("write -z", 10), Whole("discard", 7), On("write", 33)});
    ExpectAgreement(image, Options(format));
  }
}

TEST_P(QemuMatrix, FiveSnapshots) {
  for (const Format& format : {kVersion2, Format{3, 4}, {3, 32}}) {
    const DiskImage image(LargeSize(), Options(format));
    image.Io(Writes());
    for (uint64_t i = 0; i < 5; ++i) {
      image.TakeSnapshot(absl::StrCat("number ", i));
      image.Io({On("write -P 30", i), On("write -P 31", i + 20),
                On("write -P 32", cluster_size() / 8 + i)});
    }
    ExpectAgreement(image, Options(format));
    QemuImg({"snapshot", "-d", "number 2", image.path()});
    QemuImg({"snapshot", "-a", "number 3", image.path()});
    ExpectAgreement(image, Options(format) + ", one deleted, one applied");
  }
}

TEST_P(QemuMatrix, CompressedZlib) {
  for (const Format& format : {kVersion2, Format{3, 1}, {3, 2}, {3, 16}}) {
    const DiskImage source(SmallSize(), Options({3, 16}));
    source.Io(FewWrites());
    const DiskImage image;
    QemuImg({"convert", "-c", "-O", "qcow2", "-o", Options(format), source.path(), image.path()});
    ExpectAgreement(image, Options(format));
    image.Io({On("write -P 40", 1), On("write -P 41", 20, 2)});
    ExpectAgreement(image, Options(format) + ", written over");
  }
}

TEST_P(QemuMatrix, CompressedZstd) {
  for (const Format& format : {Format{3, 1}, {3, 8}, {3, 64}}) {
    const DiskImage source(SmallSize(), Options({3, 16}));
    source.Io(FewWrites());
    const DiskImage image;
    const std::string options = Options(format, "compression_type=zstd");
    QemuImg({"convert", "-c", "-O", "qcow2", "-o", options, source.path(), image.path()});
    ExpectAgreement(image, options);
    const CheckedImage with_data = CheckWithProgram(image.path(), {"--verify-data"});
    EXPECT_EQ(with_data.verdict(), "clean") << options;
  }
}

TEST_P(QemuMatrix, CompressedInSnapshots) {
  for (const Format& format : {kVersion2, Format{3, 8}}) {
    const DiskImage image(SmallSize(), Options(format));
    image.Io({Whole("write -c -P 1", 0), Whole("write -c -P 2", 1), Whole("write -c -P 3", 2)});
    image.TakeSnapshot("one");
    image.Io({On("write -P 4", 1), Whole("write -c -P 5", 3), Whole("write -c -P 6", 8)});
    ExpectAgreement(image, Options(format));
  }
}

TEST_P(QemuMatrix, ExtendedL2) {
  if (GetParam() == 9) GTEST_SKIP() << "extended L2 entries need clusters of 16 KiB";
  if (GetParam() == 12) cluster_bits_ = 14;  // the smallest that is allowed
  for (const Format& format : {Format{3, 1}, {3, 16}, {3, 64}}) {
    const DiskImage image(LargeSize(), Options(format, "extended_l2=on"));
    std::vector<std::string> commands = Writes();
    const std::string part = absl::StrCat(" ", cluster_size() / 32);
    commands.push_back(
        absl::StrCat("write -P 3 ", 16 * cluster_size() + cluster_size() / 32, part));
    commands.push_back(absl::StrCat("write -z ", 15 * cluster_size() + cluster_size() / 16, part));
    commands.push_back(absl::StrCat("write -z -u ", 17 * cluster_size(), part));
    commands.push_back(absl::StrCat("discard ", cluster_size(), part));
    commands.push_back(Whole("write -z", 2));
    image.Io(commands);
    ExpectAgreement(image, Options(format));
    if (format.refcount_bits == 1) continue;
    image.TakeSnapshot("one");
    image.Io({absl::StrCat("write -P 3 ", 16 * cluster_size(), part), On("write", 40)});
    ExpectAgreement(image, Options(format) + ", one snapshot");
  }
}

TEST_P(QemuMatrix, Bitmaps) {
  for (const Format& format : {Format{3, 1}, {3, 8}, {3, 32}}) {
    const DiskImage image(SmallSize(), Options(format));
    QemuImg({"bitmap", "--add", "-g", "512", image.path(), "fine"});
    QemuImg({"bitmap", "--add", image.path(), "off"});
    QemuImg({"bitmap", "--disable", image.path(), "off"});
    image.Io(FewWrites());
    ExpectAgreement(image, Options(format));
    EXPECT_EQ(CheckWithProgram(image.path()).json["coverage"]["bitmaps"], 2);
  }
}

// Key derivation makes each image take seconds: one for each cluster size.
TEST_P(QemuMatrix, Luks) {
  const DiskImage image;
  const std::string options = Options(GetParam() == 9    ? kVersion2
                                      : GetParam() == 16 ? Format{3, 16}
                                                         : Format{3, 1});
  if (GetParam() == 12) GTEST_SKIP() << "done for other sizes";
  if (!CreateLuks(image, options, SmallSize())) GTEST_SKIP() << "no LUKS on this machine";
  std::vector<std::string> argv = {"qemu-io", "--object", kLuksSecret, "-t", "unsafe"};
  for (const std::string& command : FewWrites()) argv.insert(argv.end(), {"-c", command});
  argv.insert(argv.end(), {"--image-opts", LuksImageOptions(image)});
  const CommandResult written = RunCommand(argv);
  ASSERT_EQ(written.exit_code, 0) << written.err;
  const CheckedImage ours = CheckWithProgram(image.path());
  const QemuCheckResult qemu =
      QemuCheck(LuksImageOptions(image), {"--object", kLuksSecret, "--image-opts"});
  EXPECT_TRUE(AllNumbersAgree({ours, qemu})) << options;
  EXPECT_EQ(ours.verdict(), "clean");
}

TEST_P(QemuMatrix, DataFile) {
  for (const Format& format : {Format{3, 1}, {3, 16}, {3, 64}}) {
    const DiskImage image;
    const std::string options =
        Options(format, absl::StrCat("data_file=", image.Beside("data.raw")));
    QemuImg({"create", "-q", "-f", "qcow2", "-o", options, image.path(), SmallSize()});
    image.Io(FewWrites());
    ExpectAgreement(image, options);
  }
}

TEST_P(QemuMatrix, DataFileRaw) {
  for (const Format& format : {Format{3, 1}, {3, 16}}) {
    const DiskImage image;
    const std::string options =
        Options(format, absl::StrCat("data_file_raw=on,data_file=", image.Beside("data.raw")));
    QemuImg({"create", "-q", "-f", "qcow2", "-o", options, image.path(), SmallSize()});
    image.Io(FewWrites());
    ExpectAgreement(image, options);
    EXPECT_EQ(CheckWithProgram(image.path(), {"--verify-data"}).verdict(), "clean") << options;
  }
}

TEST_P(QemuMatrix, Backing) {
  for (const Format& format : {kVersion2, Format{3, 1}, {3, 16}}) {
    const DiskImage base(LargeSize(), Options({3, 16}));
    base.Io(Writes());
    const DiskImage image;
    QemuImg({"create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base.path(), "-o", Options(format),
             image.path()});
    image.Io({absl::StrCat("write -P 50 ", cluster_size() + 100, " 300"), On("write", 21),
              Whole("write -z", 0), Whole("discard", 2)});
    ExpectAgreement(image, Options(format));
  }
}

TEST_P(QemuMatrix, Preallocated) {
  for (const Format& format : {kVersion2, Format{3, 1}, {3, 64}}) {
    for (const char* how : {"metadata", "falloc", "full"}) {
      // What is written in full need not be large.
      const std::string size = absl::StrCat((cluster_size() > 1 << 20 ? 4 : 70) * cluster_size());
      const std::string options = Options(format, absl::StrCat("preallocation=", how));
      const DiskImage image(size, options);
      image.Io({On("write", 1), Whole("discard", 2), Whole("write -z", 3)});
      ExpectAgreement(image, options);
    }
  }
}

TEST_P(QemuMatrix, LazyRefcounts) {
  for (const Format& format : {Format{3, 1}, {3, 16}}) {
    const DiskImage image(LargeSize(), Options(format, "lazy_refcounts=on"));
    image.Io(Writes());
    ExpectAgreement(image, Options(format));
  }
}

// Stale refcounts are what lazy refcounts mean; the numbers are qemu-img's, the words are not.
TEST_P(QemuMatrix, LazyRefcountsNotClosed) {
  for (const Format& format : {Format{3, 1}, {3, 16}, {3, 64}}) {
    const DiskImage image(LargeSize(), Options(format, "lazy_refcounts=on"));
    std::vector<std::string> commands = Writes();
    commands.push_back("flush");
    QemuIoKilled(image.path(), commands);
    const CheckedTwice both = CheckWithBoth(image.path());
    EXPECT_TRUE(AllNumbersAgree(both)) << Options(format);
    EXPECT_EQ(both.ours.codes(), (std::set<std::string>{"dirty-bit", "refcount-lazy"}));
    EXPECT_EQ(both.ours.data_state(), "intact");
  }
}

TEST_P(QemuMatrix, Resized) {
  for (const Format& format : {kVersion2, Format{3, 1}}) {
    const DiskImage image(SmallSize(), Options(format));
    image.Io(FewWrites());
    QemuImg({"resize", "-q", image.path(), LargeSize()});
    image.Io(Writes());
    ExpectAgreement(image, Options(format) + ", grown");
    QemuImg({"resize", "-q", "--shrink", image.path(), SmallSize()});
    ExpectAgreement(image, Options(format) + ", shrunk");
  }
}

TEST_P(QemuMatrix, Everything) {
  const DiskImage base(SmallSize(), Options({3, 16}));
  base.Io(FewWrites());
  const DiskImage image;
  QemuImg({"create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base.path(), "-o",
           Options({3, 8}, GetParam() < 14 ? "compression_type=zstd"
                                           : "compression_type=zstd,extended_l2=on"),
           image.path(), SmallSize()});
  image.Io({Whole("write -c -P 1", 0), Whole("write -c -P 2", 1), On("write", 4)});
  QemuImg({"bitmap", "--add", image.path(), "map"});
  image.TakeSnapshot("one");
  image.Io({On("write -P 8", 0), Whole("write -c -P 9", 6), Whole("write -z", 4)});
  image.TakeSnapshot("two");
  image.Io({On("write -P 8", 0), Whole("write -c -P 9", 7), Whole("discard", 1)});
  ExpectAgreement(image, "all features at once");
}

INSTANTIATE_TEST_SUITE_P(ClusterBits, QemuMatrix, ::testing::Values(9, 12, 16, 21),
                         [](const auto& values) { return absl::StrCat(values.param); });

// --- A check never writes ---

struct FileState {
  std::vector<uint8_t> bytes;
  int64_t size = 0;
  timespec accessed = {};
  timespec modified = {};
  timespec changed = {};
};

FileState StateOf(const std::string& path) {
  FileState state;
  struct stat before_reading = {};
  EXPECT_EQ(stat(path.c_str(), &before_reading), 0);
  state.size = before_reading.st_size;
  state.accessed = before_reading.st_atim;
  state.modified = before_reading.st_mtim;
  state.changed = before_reading.st_ctim;
  state.bytes = ReadFile(path);
  return state;
}

bool SameTime(const timespec& a, const timespec& b) {
  return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

// Times long ago, so that any access would set a new one. Reading the bytes for comparison is an
// access, too: the times are set again before the program runs.
void ExpectUntouched(const DiskImage& image, const std::vector<std::string>& options) {
  const std::vector<uint8_t> bytes = ReadFile(image.path());
  const timespec old_times[2] = {{1'000'000'000, 123}, {1'100'000'000, 456}};
  ASSERT_EQ(utimensat(AT_FDCWD, image.path().c_str(), old_times, 0), 0);
  struct stat before = {};
  ASSERT_EQ(stat(image.path().c_str(), &before), 0);
  CheckWithProgram(image.path(), options);
  const FileState after = StateOf(image.path());
  EXPECT_TRUE(SameTime(after.accessed, old_times[0])) << "the access time changed";
  EXPECT_TRUE(SameTime(after.modified, old_times[1])) << "the modification time changed";
  EXPECT_TRUE(SameTime(after.changed, before.st_ctim)) << "the change time changed";
  EXPECT_EQ(after.size, before.st_size);
  EXPECT_EQ(after.bytes, bytes);
}

TEST(CheckNeverWrites, SoundImage) {
  QCOW2CHECK_SKIP_WITHOUT_QEMU();
  const DiskImage image("64M");
  image.Io({"write 0 256k", "write -c 1M 64k"});
  image.TakeSnapshot("one");
  QemuImg({"bitmap", "--add", image.path(), "map"});
  for (const std::vector<std::string>& options :
       {std::vector<std::string>{}, {"--verify-data"}, {"-U"}, {"--chain"}}) {
    ExpectUntouched(image, options);
  }
}

TEST(CheckNeverWrites, DamagedImage) {
  QCOW2CHECK_SKIP_WITHOUT_QEMU();
  const DiskImage image("64M", "lazy_refcounts=on");
  QemuIoKilled(image.path(), {"write 0 256k", "flush"});
  image.Zero(0x20000, 64);
  ExpectUntouched(image, {});
  ExpectUntouched(image, {"-U"});
}

}  // namespace
}  // namespace qcow2check::testing

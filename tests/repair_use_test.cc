// Repaired images are used: the guest writes its whole disk, snapshots are taken, gone back to and
// deleted, and qemu-img check still finds nothing. What the repair held back is still there then.
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/header.h"
#include "gtest/gtest.h"
#include "tests/program.h"
#include "tests/qemu.h"
#include "tests/repair_corpus.h"
#include "tests/repair_promises.h"

namespace qcow2check::testing {
namespace {

constexpr uint64_t kSeeds = 60;
constexpr uint64_t kDamagedPerSeed = 2;
// What a test writes in full.
constexpr uint64_t kLargestDisk = 8 << 20;
constexpr uint64_t kLeastTried = 40;

class UsedImage {
 public:
  // `image.bytes` are those of the repaired image.
  explicit UsedImage(const CorpusImage& image)
      : header_(DecodeHeader(absl::MakeSpan(image.bytes).first(kHeaderBytesKnown))),
        has_bitmaps_(HasBitmaps(image.places)),
        path_(dir_.Write("image.qcow2", image.bytes)) {
    if (!image.has_backing) return;
    dir_.Write(kCorpusBackingName, std::vector<uint8_t>(kCorpusBackingBytes, kCorpusBackingByte));
  }

  void UseIt() {
    const uint64_t size = header_.size / 512 * 512;
    Io({absl::StrCat("write -q -P 165 0 ", size)});
    // Two references need two bits; and QEMU does not go back to snapshots of a disk with bitmaps.
    if (header_.refcount_order >= 1 && !has_bitmaps_) {
      Snapshot("-c");
      Io({absl::StrCat("write -q -P 90 0 ", size), absl::StrCat("discard -q 0 ", size / 2)});
      ExpectNoCorruption();
      Snapshot("-a");
      Snapshot("-d");
    }
    Io({absl::StrCat("read -q -P 165 0 ", size)});
  }
  int Check() const {
    return RunCommand({"qemu-img", "check", "-q", "-f", "qcow2", path_}).exit_code;
  }
  std::vector<uint8_t> Bytes() const { return ReadFile(path_); }

 private:
  static bool HasBitmaps(const ImagePlaces& places) {
    return std::any_of(places.tables.begin(), places.tables.end(), [](const PlacedTable& table) {
      return table.kind == PlaceKind::kBitmapDirectory;
    });
  }
  void Io(const std::vector<std::string>& commands) {
    std::vector<std::string> argv = {"qemu-io", "-f", "qcow2", "-t", "unsafe"};
    for (const std::string& command : commands) argv.insert(argv.end(), {"-c", command});
    argv.push_back(path_);
    const CommandResult result = RunCommand(argv);
    EXPECT_EQ(result.exit_code, 0) << result.out << result.err;
    EXPECT_EQ(result.out, "");
  }
  void Snapshot(const char* what) {
    const CommandResult result = RunCommand({"qemu-img", "snapshot", what, "of the test", path_});
    EXPECT_EQ(result.exit_code, 0) << what << ": " << result.err;
  }
  void ExpectNoCorruption() const {
    const int exit_code = Check();
    EXPECT_TRUE(exit_code == 0 || exit_code == 3) << exit_code;
  }

  const Header header_;
  const bool has_bitmaps_;
  TempDir dir_;
  std::string path_;
};

// The bytes that the report says are held back, up to `size_bytes`.
std::vector<std::vector<uint8_t>> HeldBack(const Report& report, const std::vector<uint8_t>& image,
                                           uint64_t size_bytes) {
  std::vector<std::vector<uint8_t>> contents;
  for (const Finding& finding : report.findings) {
    if (finding.code != FindingCode::kLeakSuspicious) continue;
    const uint64_t begin = std::min(finding.host_offset->bytes, size_bytes);
    const uint64_t end = std::min(begin + finding.length_bytes, size_bytes);
    contents.emplace_back(image.begin() + static_cast<int64_t>(begin),
                          image.begin() + static_cast<int64_t>(end));
  }
  return contents;
}

// Whether the image was one to try.
bool RepairAndUse(const CorpusImage& sound, const DamagedImage& damaged) {
  const RepairedImage repaired = Repair(damaged.bytes);
  const Report& after = repaired.result.after;
  if (after.verdict != Verdict::kClean && after.verdict != Verdict::kLeaks) return false;
  CorpusImage image = sound;
  image.bytes = repaired.bytes;
  UsedImage used(image);
  used.UseIt();
  EXPECT_EQ(used.Check(), after.verdict == Verdict::kClean ? 0 : 3);
  const uint64_t size = repaired.bytes.size();
  EXPECT_TRUE(HeldBack(after, used.Bytes(), size) == HeldBack(after, repaired.bytes, size))
      << "what was held back was written over";
  return true;
}

bool CanBeUsed(const CorpusImage& image) {
  return !image.encrypted && !image.places.geometry.data_file &&
         image.places.geometry.virtual_size_bytes <= kLargestDisk;
}

TEST(RepairUse, BuiltImages) {
  QCOW2CHECK_SKIP_WITHOUT_QEMU();
  uint64_t tried = 0;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    const CorpusImage image = MakeCorpusImage(seed);
    if (!CanBeUsed(image)) continue;
    Dice dice(seed);
    for (uint64_t i = 0; i < kDamagedPerSeed; ++i) {
      const DamagedImage damaged = DamageImage(image, dice);
      SCOPED_TRACE(absl::StrCat(image.name, ", image ", i, ": ", damaged.damage));
      tried += RepairAndUse(image, damaged) ? 1 : 0;
    }
  }
  EXPECT_GE(tried, kLeastTried);
}

TEST(RepairUse, QemusImages) {
  QCOW2CHECK_SKIP_WITHOUT_QEMU();
  uint64_t tried = 0;
  for (const CorpusImage& image : MakeQemuImages()) {
    if (!CanBeUsed(image)) continue;
    Dice dice(1);
    for (int i = 0; i < 4; ++i) {
      const DamagedImage damaged = DamageImage(image, dice);
      SCOPED_TRACE(absl::StrCat(image.name, ", image ", i, ": ", damaged.damage));
      tried += RepairAndUse(image, damaged) ? 1 : 0;
    }
  }
  EXPECT_GE(tried, 10);
}

}  // namespace
}  // namespace qcow2check::testing

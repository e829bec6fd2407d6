#include "tests/used_image.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "checker/check.h"
#include "common/header.h"
#include "common/memory_file.h"
#include "gtest/gtest.h"
#include "tests/program.h"
#include "tests/repair_promises.h"
#include "tests/repair_scenario.h"

namespace qcow2check::testing {
namespace {

// What is written in full.
constexpr uint64_t kLargestDisk = 8 << 20;

Header HeaderOf(const std::vector<uint8_t>& image) {
  return DecodeHeader(absl::MakeSpan(image).first(kHeaderBytesKnown));
}

class UsedImage {
 public:
  UsedImage(const CorpusImage& sound, const std::vector<uint8_t>& repaired)
      : header_(HeaderOf(repaired)),
        has_bitmaps_(HasBitmaps(sound.places)),
        path_(dir_.Write("image.qcow2", repaired)) {
    if (!sound.has_backing) return;
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

bool CanBeUsed(const Report& report, const Header& header) {
  return (report.verdict == Verdict::kClean || report.verdict == Verdict::kLeaks) &&
         header.size <= kLargestDisk && header.crypt_method == kCryptNone &&
         !header.Has(kExternalDataFile);
}

}  // namespace

bool RepairAndUse(const CorpusImage& sound, const std::vector<uint8_t>& damaged) {
  const RepairedImage repaired = Repair(damaged);
  const Report& after = repaired.result.after;
  if (!CanBeUsed(after, HeaderOf(repaired.bytes))) return false;
  UsedImage used(sound, repaired.bytes);
  used.UseIt();
  const std::vector<uint8_t> bytes = used.Bytes();
  EXPECT_EQ(used.Check(), after.verdict == Verdict::kClean ? 0 : 3);
  // Once the guest has written, the disk has a copy of a table that it shared with a lost entry:
  // the table itself is an orphan then, which says more.
  if (!HasFinding(after, FindingCode::kL1EntryLost)) {
    EXPECT_EQ(CheckImage(MemoryFile(bytes), {}).verdict, after.verdict);
  }
  const uint64_t size = repaired.bytes.size();
  EXPECT_TRUE(HeldBack(after, bytes, size) == HeldBack(after, repaired.bytes, size))
      << "what was held back was written over";
  return true;
}

}  // namespace qcow2check::testing

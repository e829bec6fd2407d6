// The properties of a check: see fuzz/properties.h.
#include <algorithm>
#include <atomic>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "checker/check.h"
#include "checker/inspect.h"
#include "cli/json_report.h"
#include "cli/text_report.h"
#include "common/header.h"
#include "common/memory_file.h"
#include "fuzz/outputs.h"
#include "fuzz/properties.h"
#include "tests/dice.h"
#include "tests/plain_promises.h"
#include "tests/reference_checker.h"
#include "tests/reference_compare.h"

namespace qcow2check::testing {
namespace {

// Every finding is listed: nothing that differs can hide behind a cap.
constexpr uint64_t kAllFindings = 1'000'000;
// What a check may read: each table once, some of them again to find out who owns what; and the
// first bytes of clusters that nothing owns. Of a file of zeros, some.
constexpr uint64_t kMostReadsOfStored = 24;
constexpr uint64_t kMostReadsBytes = uint64_t{16} << 20;

// Passes everything on and counts.
class CountingFile : public ImageFile {
 public:
  explicit CountingFile(const ImageFile& file) : file_(file) {}

  uint64_t bytes() const { return bytes_; }

  uint64_t size_bytes() const override { return file_.size_bytes(); }
  absl::Status ReadAt(HostOffset offset, absl::Span<uint8_t> dst) const override {
    bytes_ += dst.size();
    return file_.ReadAt(offset, dst);
  }
  Extent NextData(HostOffset offset) const override { return file_.NextData(offset); }
  uint64_t allocated_bytes() const override { return file_.allocated_bytes(); }
  bool IsHole(const Extent& extent) const override { return file_.IsHole(extent); }

 private:
  const ImageFile& file_;
  mutable std::atomic<uint64_t> bytes_ = 0;
};

class CheckTrial {
 public:
  explicit CheckTrial(const SparseFile& image) : image_(image), dice_(SeedOf(image)) {}

  std::string Run() && {
    // Each costs a check or more. An image that is worth keeping comes again with other bytes.
    LookAtWork();
    const bool verify_data = MayVerifyData() && dice_.Percent(40);
    // Long reports take longer to write than to make.
    const uint64_t max_findings = dice_.Percent(5) ? 1000 : dice_.Between(1, 20);
    LookAtThreads({.max_findings = max_findings, .verify_data = verify_data});
    if (dice_.Percent(30)) LookAtCap();
    if (image_.size_bytes() <= kMaxWholeBytes && dice_.Percent(60)) {
      const std::vector<uint8_t> bytes = image_.Bytes();
      if (!ATableIsLost()) {
        Same("Holes make no difference", report_,
             CheckImage(MemoryFile(bytes), {.max_findings = kAllFindings, .threads = 1}));
      }
      if (MayCompare()) LookAtReference(bytes);
    }
    if (dice_.Percent(30)) LookAtInspection();
    return std::move(broken_);
  }

 private:
  void Same(absl::string_view property, const Report& one, const Report& other,
            bool findings = true) {
    const std::string a = Digest(one, findings);
    const std::string b = Digest(other, findings);
    if (a != b) AddBroken(property, absl::StrCat("\n", a, "--- but\n", b), broken_);
  }

  void LookAtWork() {
    const SparseFile before = image_;
    const CountingFile file(image_);
    report_ = CheckImage(file, {.max_findings = kAllFindings, .threads = 1});
    if (file.bytes() > kMostReadsOfStored * image_.stored_bytes() + kMostReadsBytes) {
      AddBroken("The work is bounded by what is stored",
                absl::StrCat(file.bytes(), " bytes read, ", image_.stored_bytes(), " stored"),
                broken_);
    }
    if (!(image_ == before)) AddBroken("A check writes nothing", "it did", broken_);
  }

  // Byte by byte, and with parts so small that each table has several.
  void LookAtThreads(CheckOptions options) {
    options.part_bytes = std::max<uint64_t>(512, image_.stored_bytes() / 16 / 512 * 512);
    options.threads = 1;
    const Report one = CheckImage(image_, options);
    options.threads = dice_.Between(2, 4);
    const Report several = CheckImage(image_, options);
    const std::string a = JsonReport("image", one, nullptr, {}, "", false);
    const std::string b = JsonReport("image", several, nullptr, {}, "", false);
    if (a != b) AddBroken("Threads make no difference", absl::StrCat(a, "\nbut\n", b), broken_);
    if (!options.verify_data) {
      Same("The size of parts makes no difference", report_, one,
           one.findings.size() == report_.findings.size());
    }
    LookAtOutputs(one);
  }

  void LookAtCap() {
    const Report capped = CheckImage(image_, {.max_findings = 2, .threads = 1});
    Same("Totals are exact whatever is listed", report_, capped, /*findings=*/false);
  }

  void LookAtOutputs(const Report& report) {
    CheckJson(JsonReport("an image", report, nullptr, {}, "", dice_.Percent(50)), broken_);
    CheckText(TextReport("an image", report, {}, {.repair_path = "an image"}), broken_);
  }

  // A hole where there should be an L2 table is a sign that it was lost; zeros alone are none.
  bool ATableIsLost() const {
    return std::any_of(
        report_.findings.begin(), report_.findings.end(),
        [](const Finding& finding) { return finding.code == FindingCode::kL2TableLost; });
  }

  // To decompress takes its time: each entry of a table may ask for a cluster, and more than once.
  bool MayVerifyData() const {
    constexpr uint64_t kMostBytes = uint64_t{8} << 20;
    const uint64_t clusters = image_.stored_bytes() / 8;
    return report_.image.cluster_size != 0 &&
           std::min(clusters, report_.statistics.total_clusters) <=
               kMostBytes / report_.image.cluster_size;
  }

  // The reference walks each table once for each entry that leads to it, behind the end, too.
  bool MayCompare() const {
    constexpr uint64_t kMostEntries = 1 << 17;
    const Header header = DecodeHeader(image_.Bytes(0, kHeaderBytesKnown));
    const std::optional<Geometry> geometry = GeometryOf(header);
    if (!geometry.has_value()) return image_.size_bytes() >= kHeaderBytesKnown;
    const uint64_t words = image_.size_bytes() / 8;
    const uint64_t disks = 1 + std::min<uint64_t>(header.nb_snapshots, words);
    return geometry->l2_entries() <= kMostEntries &&
           disks * std::min<uint64_t>(header.nb_snapshots == 0 ? header.l1_size : words, words) *
                   geometry->l2_entries() <=
               kMostEntries;
  }

  void LookAtReference(const std::vector<uint8_t>& bytes) {
    if (!WhyNotComparable(report_).empty()) return;
    const std::string differences = Differences(report_, ReferenceCheck(bytes));
    if (!differences.empty()) AddBroken("Both checkers agree", differences, broken_);
  }

  void LookAtInspection() {
    constexpr InspectCaps kCaps = {.entries = 100, .details = 20, .directory = 10};
    ImageInspector inspector(image_, kCaps);
    if (!inspector.is_qcow2()) return;
    inspector.ShowHeader();
    // Whether there is something to show is not the point.
    (void)inspector.ShowExtensions();
    (void)inspector.ShowRefcounts();
    (void)inspector.ShowSnapshots();
    (void)inspector.ShowBitmaps();
    if (const absl::StatusOr<L1View> l1 = inspector.ShowL1(); l1.ok() && !l1->used.items.empty()) {
      (void)inspector.ShowL2(dice_.OneOf(l1->used.items).l1_index);
    }
    (void)inspector.Locate(GuestOffset{dice_.Below(report_.image.virtual_size_bytes | 1)});
    (void)inspector.FindOwners(
        ClusterIndex{dice_.Below(image_.size_bytes() / (report_.image.cluster_size | 1) + 2)});
  }

  const SparseFile& image_;
  Dice dice_;
  Report report_;
  std::string broken_;
};

}  // namespace

std::string BrokenByCheck(const SparseFile& image) { return CheckTrial(image).Run(); }

}  // namespace qcow2check::testing

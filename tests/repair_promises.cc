#include "tests/repair_promises.h"

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "absl/hash/hash.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "checker/check.h"
#include "common/byte_order.h"
#include "common/header.h"
#include "common/memory_file.h"
#include "common/refcount_block.h"
#include "gtest/gtest.h"
#include "repair/undo.h"

namespace qcow2check::testing {
namespace {

// More than nearly all damaged images have of one code. Where there are more, the rest counts as
// listed like those that are.
constexpr CheckOptions kListMost = {.max_findings = 5000};

// A file whose bytes outlive it.
class KeptFile : public MemoryFile {
 public:
  explicit KeptFile(std::vector<uint8_t>& kept) : MemoryFile({}), kept_(kept) {}
  ~KeptFile() override { kept_ = bytes(); }

 private:
  std::vector<uint8_t>& kept_;
};

Header HeaderOf(const std::vector<uint8_t>& image) {
  return DecodeHeader(
      absl::MakeSpan(image).first(std::min<size_t>(image.size(), kHeaderBytesKnown)));
}

// What the image itself says of a cluster; nothing if the block cannot be found.
std::optional<uint64_t> StoredRefcount(const std::vector<uint8_t>& image, uint64_t cluster) {
  const Header header = HeaderOf(image);
  const std::optional<Geometry> geometry = GeometryOf(header);
  if (!geometry.has_value()) return std::nullopt;
  const uint64_t index = cluster / geometry->refcount_block_entries();
  const uint64_t table_bytes = header.refcount_table_clusters * geometry->cluster_size();
  const uint64_t place = header.refcount_table_offset + 8 * index;
  if (8 * index >= table_bytes || place < 8 || place > image.size() - 8) return std::nullopt;
  const uint64_t block = Load64(&image[place]);
  if (block == 0) return 0;
  if (!IsAligned(block, geometry->cluster_size())) return std::nullopt;
  if (block >= image.size() || image.size() - block < geometry->cluster_size()) {
    return std::nullopt;
  }
  return LoadRefcount(&image[block], cluster % geometry->refcount_block_entries(),
                      geometry->refcount_order);
}

// --- Content, wherever it is ---

// The clusters of an image by what is in them. Clusters of zeros are left out.
std::multimap<uint64_t, uint64_t> ClustersByContent(const std::vector<uint8_t>& image,
                                                    uint64_t cluster_size) {
  std::multimap<uint64_t, uint64_t> clusters;
  std::vector<uint8_t> cluster(cluster_size);
  for (uint64_t at = 0; at < image.size(); at += cluster_size) {
    const uint64_t length = std::min<uint64_t>(cluster_size, image.size() - at);
    std::copy_n(image.begin() + static_cast<int64_t>(at), length, cluster.begin());
    std::fill(cluster.begin() + static_cast<int64_t>(length), cluster.end(), uint8_t{0});
    if (std::all_of(cluster.begin(), cluster.end(), [](uint8_t byte) { return byte == 0; })) {
      continue;
    }
    const absl::string_view text(reinterpret_cast<const char*>(cluster.data()), cluster_size);
    clusters.emplace(absl::HashOf(text), at / cluster_size);
  }
  return clusters;
}

struct ContentFate {
  uint64_t offset = 0;  // where it was in the sound image
  std::vector<uint64_t> clusters_before;
  bool anywhere_after = false;
  bool in_use_before = false;
  bool in_use_after = false;
};

// What became of the content of each data cluster of the sound image that is still in `before`.
std::vector<ContentFate> FatesOfData(const CorpusImage& sound, const std::vector<uint8_t>& before,
                                     const std::vector<uint8_t>& after) {
  const uint64_t size = sound.places.geometry.cluster_size();
  const auto contents = ClustersByContent(sound.bytes, size);
  const auto contents_before = ClustersByContent(before, size);
  const auto contents_after = ClustersByContent(after, size);
  std::vector<ContentFate> fates;
  for (const auto& [digest, cluster] : contents) {
    if (!sound.places.data_clusters.contains(cluster * size)) continue;
    ContentFate fate = {.offset = cluster * size};
    for (auto [it, end] = contents_before.equal_range(digest); it != end; ++it) {
      fate.clusters_before.push_back(it->second);
      fate.in_use_before |= StoredRefcount(before, it->second).value_or(0) != 0;
    }
    if (fate.clusters_before.empty()) continue;
    for (auto [it, end] = contents_after.equal_range(digest); it != end; ++it) {
      fate.anywhere_after = true;
      fate.in_use_after |= StoredRefcount(after, it->second).value_or(0) != 0;
    }
    fates.push_back(std::move(fate));
  }
  return fates;
}

// --- Findings ---

bool IsCutOff(const Report& report, FindingCode code) {
  return std::any_of(report.code_totals.begin(), report.code_totals.end(),
                     [&](const CodeTotal& row) {
                       return row.code == code && row.findings > kListMost.max_findings;
                     });
}

// Whether one of the findings of `code` covers the place.
bool Covers(const Report& report, FindingCode code, uint64_t offset) {
  return std::any_of(report.findings.begin(), report.findings.end(), [&](const Finding& finding) {
    if (finding.code != code || !finding.host_offset.has_value()) return false;
    const uint64_t begin = finding.host_offset->bytes;
    return begin <= offset && offset < begin + std::max<uint64_t>(finding.length_bytes, 1);
  });
}

bool Overlap(const Finding& finding, HostOffset begin, uint64_t length) {
  if (!finding.host_offset.has_value()) return true;
  const uint64_t own_begin = finding.host_offset->bytes;
  const uint64_t own_length = std::max<uint64_t>(finding.length_bytes, 1);
  return begin.bytes < own_begin + own_length &&
         own_begin < begin.bytes + std::max<uint64_t>(length, 1);
}

// Whether the result gives a reason why this is still there: for the finding that was there before,
// or for what the plan came upon.
bool IsDeclined(const RepairResult& result, const Finding& finding) {
  for (const DeclinedRepair& row : result.plan.declined) {
    if (row.code != finding.code || row.reason.empty()) continue;
    if (!row.host_offset.has_value() || Overlap(finding, *row.host_offset, 1)) return true;
  }
  if (IsCutOff(result.before, finding.code)) return true;
  for (size_t i = 0; i < result.before.findings.size(); ++i) {
    const Finding& before = result.before.findings[i];
    if (before.code != finding.code || result.repairs[i].status != RepairStatus::kDeclined)
      continue;
    if (result.repairs[i].reason.empty()) continue;
    if (!before.host_offset || Overlap(finding, *before.host_offset, before.length_bytes))
      return true;
  }
  return false;
}

std::string Words(const Finding& finding) {
  return absl::StrCat(InfoOf(finding.code).name, " at 0x",
                      absl::Hex(finding.host_offset.value_or(HostOffset{0}).bytes));
}

std::string Words(const Totals& totals) {
  return absl::StrFormat("%d corruptions, %d leaks, %d check errors", totals.corruptions,
                         totals.leaks, totals.check_errors);
}

bool SameTotals(const Totals& one, const Totals& other) {
  return one.corruptions == other.corruptions && one.leaks == other.leaks &&
         one.check_errors == other.check_errors;
}

// --- The plan ---

// The image after the plan's writes, carried out by hand; a line for each that does not find what
// the plan says is there.
std::string ApplyByHand(const Plan& plan, std::vector<uint8_t>& image) {
  std::string wrong;
  std::vector<PlanStep> steps = plan.steps;
  steps.push_back(plan.closing);
  for (const PlanStep& step : steps) {
    if (step.grow_to_bytes.has_value()) image.resize(*step.grow_to_bytes);
    const std::vector<uint8_t> before = image;
    for (const PlannedWrite& write : step.writes) {
      if (write.offset_bytes + write.length_bytes > image.size()) {
        return absl::StrCat("a write at 0x", absl::Hex(write.offset_bytes), " past the end\n");
      }
      std::vector<uint8_t> old = write.old_bytes;
      if (old.empty()) old.resize(write.length_bytes);
      const auto place = static_cast<int64_t>(write.offset_bytes);
      if (!std::equal(old.begin(), old.end(), image.begin() + place)) {
        absl::StrAppend(&wrong, "not the old bytes of the plan at 0x",
                        absl::Hex(write.offset_bytes), "\n");
      }
      std::vector<uint8_t> bytes = write.new_bytes;
      if (write.copy_from_bytes.has_value()) {
        const auto from = before.begin() + static_cast<int64_t>(*write.copy_from_bytes);
        bytes.assign(from, from + static_cast<int64_t>(write.length_bytes));
      }
      std::copy(bytes.begin(), bytes.end(), image.begin() + place);
    }
  }
  return wrong;
}

// --- The promises ---

class Promises {
 public:
  Promises(const CorpusImage& sound, const std::vector<uint8_t>& damaged)
      : sound_(sound), damaged_(damaged) {}

  RepairOutcome Run() && {
    outcome_.repaired = Repair(damaged_);
    LookAtEnd(outcome_.repaired);
    LookAtDryRun();
    LookAtWhatRemains();
    LookAtDisk();
    LookAtSnapshots();
    LookAtData(outcome_.repaired);
    LookAtSecondRepair(outcome_.repaired, {});
    LookAtUndo(outcome_.repaired);
    LookAtLeaksMode();
    return std::move(outcome_);
  }

 private:
  void Break(absl::string_view promise, absl::string_view how) {
    absl::StrAppend(&outcome_.broken_promises, promise, ": ", how, "\n");
  }
  ImageBytes View(const std::vector<uint8_t>& image) const { return {image, sound_.data_file}; }

  void LookAtEnd(const RepairedImage& repaired) {
    if (!repaired.result.status.ok()) {
      Break("A repair comes to its end", repaired.result.status.ToString());
    }
    if (repaired.bytes.size() < damaged_.size()) Break("No file is cut", "it is shorter now");
  }

  void LookAtDryRun() {
    const RepairResult planned = PlanRepair(MemoryFile(damaged_), kListMost, {});
    std::vector<uint8_t> image = damaged_;
    const std::string wrong = ApplyByHand(planned.plan, image);
    if (!wrong.empty()) Break("A plan knows what is there", wrong);
    if (image != outcome_.repaired.bytes) {
      Break("A repair does what the dry run said, no more", "the images differ");
    }
  }

  // Clean, or listed.
  void LookAtWhatRemains() {
    const RepairResult& result = outcome_.repaired.result;
    const Report after = CheckImage(MemoryFile(outcome_.repaired.bytes), kListMost);
    if (!SameTotals(after.totals, result.after.totals)) {
      Break("The report after a repair is of the image as it is",
            absl::StrCat(Words(after.totals), " instead of ", Words(result.after.totals)));
    }
    if (!SameTotals(after.totals, result.plan.remaining)) {
      Break("A plan says what will remain",
            absl::StrCat(Words(after.totals), " instead of ", Words(result.plan.remaining)));
    }
    if (!result.plan.refused.empty()) return;
    for (const Finding& finding : after.findings) {
      const Tally tally = InfoOf(finding.code).tally;
      if (tally != Tally::kCorruptions && tally != Tally::kLeaks) continue;
      if (finding.code == FindingCode::kLeakSuspicious) continue;  // held back
      if (IsDeclined(result, finding)) continue;
      Break("What remains was declined, with a reason", Words(finding));
      return;
    }
  }

  void LookAtDisk() {
    const uint64_t end = HeaderOf(sound_.bytes).size;
    const RepairResult& result = outcome_.repaired.result;
    std::vector<GuestRange> lost = result.plan.lost_guest_ranges;
    lost.insert(lost.end(), result.after.lost_guest_ranges.begin(),
                result.after.lost_guest_ranges.end());
    const std::vector<uint8_t> with_true_l1 = WithTrueL1();
    const std::vector<uint8_t> with_true_header = WithTrueHeader();
    outcome_.disk =
        CompareViews({ReadDisk(View(sound_.bytes), end), ReadDisk(View(damaged_), end),
                      ReadDisk(View(with_true_l1), end), ReadDisk(View(with_true_header), end),
                      ReadDisk(View(outcome_.repaired.bytes), end), sound_.places.data_clusters,
                      sound_.places.l2_tables},
                     lost);
    if (!outcome_.disk.violations.empty()) {
      Break("The guest reads what it read, or better", outcome_.disk.violations);
    }
  }

  // The report lists lost ranges of the active disk only.
  void LookAtSnapshots() {
    const std::vector<GuestView> sound = ReadSnapshots(View(sound_.bytes));
    const std::vector<uint8_t> with_true_l1 = WithTrueL1();
    std::vector<std::vector<GuestView>> others;
    const std::vector<uint8_t> with_true_header = WithTrueHeader();
    for (const std::vector<uint8_t>* image :
         {&damaged_, &with_true_l1, &with_true_header, &std::as_const(outcome_.repaired.bytes)}) {
      others.push_back(ReadSnapshots(View(*image), MappedBytes(sound)));
      others.back().resize(std::max(others.back().size(), sound.size()));
    }
    for (size_t i = 0; i < sound.size(); ++i) {
      const ViewChanges changes =
          CompareViews({sound[i], others[0][i], others[1][i], others[2][i], others[3][i],
                        sound_.places.data_clusters, sound_.places.l2_tables},
                       {{0, ~uint64_t{0}}});
      outcome_.snapshots.units += changes.units;
      outcome_.snapshots.readable += changes.readable;
      outcome_.snapshots.regained += changes.regained;
      if (!changes.violations.empty()) {
        Break(absl::StrCat("Snapshot ", i, " reads what it read, or better"), changes.violations);
      }
    }
  }

  void Restore(uint64_t offset, uint64_t length, std::vector<uint8_t>& image) const {
    image.resize(std::max(image.size(), sound_.bytes.size()));
    std::copy_n(sound_.bytes.begin() + static_cast<int64_t>(offset), length,
                image.begin() + static_cast<int64_t>(offset));
  }
  std::vector<uint8_t> WithTrueHeader() const {
    std::vector<uint8_t> image = damaged_;
    Restore(0, sound_.places.geometry.cluster_size(), image);
    return image;
  }
  // The damaged image with everything above the L2 tables as it was.
  std::vector<uint8_t> WithTrueL1() const {
    std::vector<uint8_t> image = WithTrueHeader();
    for (const PlacedTable& table : sound_.places.tables) {
      const bool above = table.kind == PlaceKind::kL1 || table.kind == PlaceKind::kSnapshotTable;
      if (above) Restore(table.offset, table.length, image);
    }
    return image;
  }

  void LookAtData(const RepairedImage& repaired) {
    for (const ContentFate& fate : FatesOfData(sound_, damaged_, repaired.bytes)) {
      const std::string what = absl::StrFormat("data that once was at 0x%x", fate.offset);
      if (!fate.anywhere_after) Break("No data is overwritten", what);
      if (!fate.in_use_before || fate.in_use_after || !fate.anywhere_after) continue;
      const bool was_proven_leak = std::all_of(
          fate.clusters_before.begin(), fate.clusters_before.end(), [&](uint64_t cluster) {
            return Covers(repaired.result.before, FindingCode::kLeakedCluster,
                          cluster * sound_.places.geometry.cluster_size());
          });
      if (!was_proven_leak) Break("No data that may be the only copy is freed", what);
    }
  }

  void LookAtSecondRepair(const RepairedImage& repaired, const RepairOptions& options) {
    const RepairResult again = PlanRepair(MemoryFile(repaired.bytes), kListMost, options);
    if (again.plan.empty()) return;
    std::string what;
    for (const PlanStep& step : again.plan.steps) {
      for (const PlannedWrite& write : step.writes) {
        absl::StrAppend(&what, InfoOf(write.reason.code).name, " at 0x",
                        absl::Hex(write.offset_bytes), "; ");
      }
    }
    if (!again.plan.closing.writes.empty()) absl::StrAppend(&what, "feature bits");
    Break("One repair is enough", absl::StrCat("a second would write ", what));
  }

  void LookAtUndo(const RepairedImage& repaired) {
    if (Undo(repaired) != damaged_) Break("Undo gives back every byte", "the images differ");
  }

  void LookAtLeaksMode() {
    const RepairOptions options = {.mode = RepairMode::kLeaks};
    const RepairedImage leaks = Repair(damaged_, options);
    const Totals& found = leaks.result.before.totals;
    outcome_.leaks_mode_was_refused = found.corruptions + found.check_errors != 0;
    if (outcome_.leaks_mode_was_refused) {
      if (leaks.bytes != damaged_)
        Break("leaks writes nothing while there is corruption", "it did");
      return;
    }
    LookAtEnd(leaks);
    LookAtData(leaks);
    LookAtSecondRepair(leaks, options);
    LookAtUndo(leaks);
    const uint64_t end = HeaderOf(sound_.bytes).size;
    const GuestView before = ReadDisk(View(damaged_), end);
    if (before.units != ReadDisk(View(leaks.bytes), end).units) {
      Break("leaks changes nothing for the guest", "the disk reads otherwise");
    }
  }

  const CorpusImage& sound_;
  const std::vector<uint8_t>& damaged_;
  RepairOutcome outcome_;
};

}  // namespace

RepairedImage Repair(const std::vector<uint8_t>& image, const RepairOptions& options) {
  RepairedImage repaired;
  MemoryFile file(image);
  repaired.result = RepairImage(file, kListMost, options,
                                [&]() -> absl::StatusOr<std::unique_ptr<WritableImageFile>> {
                                  return std::make_unique<KeptFile>(repaired.undo_log);
                                });
  repaired.bytes = file.bytes();
  return repaired;
}

std::vector<uint8_t> Undo(const RepairedImage& repaired) {
  if (repaired.undo_log.empty()) return repaired.bytes;
  MemoryFile file(repaired.bytes);
  const absl::StatusOr<UndoResult> undone =
      UndoRepair(file, MemoryFile(repaired.undo_log), UndoOptions{});
  EXPECT_TRUE(undone.ok()) << undone.status();
  return file.bytes();
}

KeptData DataKept(const CorpusImage& sound, const std::vector<uint8_t>& before,
                  const std::vector<uint8_t>& after) {
  KeptData kept;
  for (const ContentFate& fate : FatesOfData(sound, before, after)) {
    ++kept.before;
    if (fate.in_use_after) ++kept.after;
  }
  return kept;
}

RepairOutcome TryRepair(const CorpusImage& sound, const std::vector<uint8_t>& damaged) {
  return Promises(sound, damaged).Run();
}

}  // namespace qcow2check::testing

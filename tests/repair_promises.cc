#include "tests/repair_promises.h"

#include <algorithm>
#include <map>
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
#include "tests/plain_promises.h"

namespace qcow2check::testing {
namespace {

RepairedImage Whole(const RepairRun& run) {
  return {run.after.Bytes(), run.undo_log.Bytes(), run.result};
}

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

// Whether one of the findings of `code` covers the place.
bool Covers(const Report& report, FindingCode code, uint64_t offset) {
  return std::any_of(report.findings.begin(), report.findings.end(), [&](const Finding& finding) {
    if (finding.code != code || !finding.host_offset.has_value()) return false;
    const uint64_t begin = finding.host_offset->bytes;
    return begin <= offset && offset < begin + std::max<uint64_t>(finding.length_bytes, 1);
  });
}

// --- The promises ---

class Promises {
 public:
  Promises(const CorpusImage& sound, const std::vector<uint8_t>& damaged)
      : sound_(sound), damaged_(damaged) {}

  RepairOutcome Run() && {
    const RepairRun run = RunRepair(SparseFile(absl::MakeConstSpan(damaged_)));
    outcome_.repaired = Whole(run);
    outcome_.broken_promises = BrokenPlainPromises(run, SecondRepair::kWritesNothing);
    LookAtDisk();
    LookAtSnapshots();
    LookAtData(outcome_.repaired);
    LookAtLeaksMode();
    return std::move(outcome_);
  }

 private:
  void Break(absl::string_view promise, absl::string_view how) {
    AddBroken(promise, how, outcome_.broken_promises);
  }
  ImageBytes View(const std::vector<uint8_t>& image) const { return {image, sound_.data_file}; }

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

  void LookAtLeaksMode() {
    const RepairRun run = RunRepair(SparseFile(absl::MakeConstSpan(damaged_)),
                                    RepairOptions{.mode = RepairMode::kLeaks});
    const RepairedImage leaks = Whole(run);
    const Totals& found = leaks.result.before.totals;
    outcome_.leaks_mode_was_refused = found.corruptions + found.check_errors != 0;
    if (outcome_.leaks_mode_was_refused) {
      if (leaks.bytes != damaged_)
        Break("leaks writes nothing while there is corruption", "it did");
      return;
    }
    outcome_.broken_promises += BrokenPlainPromises(run, SecondRepair::kWritesNothing);
    LookAtData(leaks);
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
  return Whole(RunRepair(SparseFile(absl::MakeConstSpan(image)), options));
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

// The owner pass: who uses the clusters in question.
//
// Needs the comparison. For clusters that got a second reference, for COPIED flags that do not
// fit, and for the refcount findings that will be listed, it finds all owners: metadata from the
// lists of the other passes, guest clusters by reading the L2 tables a second time. If nothing is
// in question, which is so for every sound image, it reads nothing.
#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "checker/check_state.h"
#include "checker/owner_search.h"
#include "common/table_entry.h"

namespace qcow2check {
namespace {

constexpr size_t kOwnersKeptPerCluster = 8;
constexpr size_t kOwnersKept = 100'000;
constexpr uint64_t kClustersAskedPerFinding = 64;

class OwnerPass {
 public:
  explicit OwnerPass(CheckState& state)
      : state_(state),
        search_(state, {.per_cluster = kOwnersKeptPerCluster, .in_all = kOwnersKept}) {}

  void Run() {
    CollectQuestions();
    ReportSharedTables();
    if (!search_.asked() && state_.copied_questions->empty()) return;
    search_.FindMetadataOwners();
    JudgeL1Copied();
    search_.FindGuestOwners([this](const L2EntryPlace& at) { JudgeL2Copied(at); });
    EndCopiedRun();
    ReportCollisions();
    AttachOwners();
  }

 private:
  void CollectQuestions();
  void JudgeL1Copied();
  void JudgeL2Copied(const L2EntryPlace& at);
  void EndCopiedRun();
  bool CopiedIsRight(uint64_t cluster, uint64_t entry) const {
    return IsCopied(entry) == state_.stored_is_one->Contains(cluster);
  }
  bool CopiedFitsTruth(uint64_t cluster, uint64_t entry) const {
    return IsCopied(entry) ==
           (cluster < state_.file_clusters && state_.expected->Get(cluster) == 1);
  }
  void AddCopiedFinding(bool fits_truth, Finding finding);
  void ReportSharedTables();
  void ReportCollisions();
  void AttachOwners();

  // Entries of one L2 table next to each other that lead to clusters next to each other, with the
  // same to be said of their flags: as a finding each, millions would cost more than the search.
  struct CopiedRun {
    const L2Table* table = nullptr;
    uint64_t place = 0;  // of the first entry in the file
    uint64_t l2_index = 0;
    uint64_t entry = 0;
    uint64_t entries = 0;
    bool fits_truth = false;
  };

  CheckState& state_;
  OwnerSearch search_;
  CopiedRun run_;
};

bool WantsOwners(FindingCode code) {
  switch (code) {
    case FindingCode::kRefcountTooLow:
    case FindingCode::kRefcountZeroInUse:
    case FindingCode::kRefcountOverflow:
    case FindingCode::kRefcountTooHigh:
    case FindingCode::kRefcountBlockShared:
      return true;
    default:
      return false;
  }
}

void OwnerPass::CollectQuestions() {
  state_.collisions->ForEach([this](uint64_t cluster) { search_.Ask(cluster); });
  for (const Finding& finding : state_.findings.findings()) {
    if (!WantsOwners(finding.code)) continue;
    const uint64_t first = state_.geo().ClusterOf(*finding.host_offset).value;
    const uint64_t count = std::min(finding.clusters, kClustersAskedPerFinding);
    for (uint64_t i = 0; i < count; ++i) search_.Ask(first + i);
  }
}

void OwnerPass::JudgeL2Copied(const L2EntryPlace& at) {
  const uint64_t offset = EntryOffset(at.entry);
  const uint64_t cluster = offset >> state_.geo().cluster_bits;
  if (CopiedIsRight(cluster, at.entry)) return;
  const bool fits_truth = CopiedFitsTruth(cluster, at.entry);
  const bool continues =
      run_.table == &at.table && run_.fits_truth == fits_truth &&
      run_.l2_index + run_.entries == at.l2_index &&
      EntryOffset(run_.entry) + (run_.entries << state_.geo().cluster_bits) == offset;
  if (!continues) {
    EndCopiedRun();
    run_ = {&at.table, at.place, at.l2_index, at.entry, 0, fits_truth};
  }
  ++run_.entries;
}

void OwnerPass::EndCopiedRun() {
  if (run_.entries == 0) return;
  const Geometry& geometry = state_.geo();
  const uint64_t bytes = run_.entries << geometry.cluster_bits;
  AddCopiedFinding(run_.fits_truth,
                   {.structure = Structure::kL2Table,
                    .host_offset = HostOffset{run_.place},
                    .length_bytes = run_.entries * geometry.l2_entry_bytes(),
                    .clusters = run_.entries,
                    .count = SaturatingMultiply(run_.entries, run_.table->active_weight),
                    .guest_offset = geometry.GuestOffsetOf(run_.table->l1_index, run_.l2_index),
                    .guest_length_bytes = bytes,
                    .l1_index = run_.table->l1_index,
                    .l2_index = run_.l2_index,
                    .target = HostOffset{EntryOffset(run_.entry)},
                    .stored = run_.entry});
  run_ = {};
}

// A flag is right if it says what the stored refcount says: that is what a writer goes by. If it
// fits the true number of references, the refcount is what is wrong, and the finding says so.
void OwnerPass::AddCopiedFinding(bool fits_truth, Finding finding) {
  const bool lazy = state_.header.Has(kDirty) && state_.header.Has(kLazyRefcounts);
  finding.code = lazy && fits_truth ? FindingCode::kRefcountLazy : FindingCode::kCopiedWrong;
  if (fits_truth) {
    finding.detail = "the flag fits the references; the refcount is wrong";
  } else {
    finding.expected = *finding.stored ^ kCopiedBit;
  }
  state_.findings.Add(std::move(finding));
}

void OwnerPass::JudgeL1Copied() {
  const Geometry& geometry = state_.geo();
  for (const ActiveL1Entry& slot : state_.active_l1) {
    const uint64_t offset = EntryOffset(slot.entry);
    const uint64_t cluster = offset >> geometry.cluster_bits;
    if (offset == 0 || cluster >= state_.tracked_clusters ||
        !state_.copied_questions->Contains(cluster) || CopiedIsRight(cluster, slot.entry)) {
      continue;
    }
    AddCopiedFinding(CopiedFitsTruth(cluster, slot.entry),
                     {.structure = Structure::kL1Table,
                      .host_offset = HostOffset{state_.header.l1_table_offset + slot.l1_index * 8},
                      .length_bytes = 8,
                      .clusters = 1,
                      .guest_offset = geometry.GuestOffsetOf(slot.l1_index, 0),
                      .guest_length_bytes = geometry.l2_guest_bytes(),
                      .l1_index = slot.l1_index,
                      .target = HostOffset{offset},
                      .stored = slot.entry});
  }
}

// Damage that a wrong refcount counts already is not counted twice.
uint64_t CountUnlessMismatched(const CheckState& state, uint64_t cluster) {
  return state.mismatched->Contains(cluster) ? 0 : 1;
}

void OwnerPass::ReportSharedTables() {
  const Geometry& geometry = state_.geo();
  for (const SharedL2Table& shared : state_.shared_l2) {
    const uint64_t cluster = shared.offset_bytes >> geometry.cluster_bits;
    const auto owner = [&](uint64_t l1_index) {
      return Owner{.structure = Structure::kL2Table,
                   .host_offset = HostOffset{shared.offset_bytes},
                   .guest_offset = geometry.GuestOffsetOf(l1_index, 0),
                   .l1_index = l1_index};
    };
    state_.findings.Add(
        {.code = FindingCode::kCrossLinkedL2,
         .structure = Structure::kL2Table,
         .host_offset = HostOffset{shared.offset_bytes},
         .length_bytes = geometry.cluster_size(),
         .clusters = 1,
         .count = CountUnlessMismatched(state_, cluster),
         .guest_offset = geometry.GuestOffsetOf(shared.second_l1_index, 0),
         .guest_length_bytes = geometry.l2_guest_bytes(),
         .l1_index = shared.second_l1_index,
         .owners = {owner(shared.first_l1_index), owner(shared.second_l1_index)},
         .detail = absl::StrFormat("slots %d and %d both lead to 0x%x", shared.first_l1_index,
                                   shared.second_l1_index, shared.offset_bytes)});
  }
  for (const L2Table& table : state_.l2_tables) {
    if (table.shared_not_listed == 0) continue;
    const uint64_t cluster = table.offset_bytes >> geometry.cluster_bits;
    state_.findings.Add({.code = FindingCode::kCrossLinkedL2,
                         .structure = Structure::kL2Table,
                         .host_offset = HostOffset{table.offset_bytes},
                         .length_bytes = geometry.cluster_size(),
                         .clusters = 1,
                         .count = CountUnlessMismatched(state_, cluster) * table.shared_not_listed,
                         .detail = absl::StrFormat("%d more slots lead to 0x%x",
                                                   table.shared_not_listed, table.offset_bytes)});
  }
}

std::optional<FindingCode> CodeForCollision(const ClusterUsers& record) {
  if (record.metadata != 0 && record.guests != 0) return FindingCode::kDataOnMetadata;
  if (record.metadata > 1) return FindingCode::kMetadataOverlap;
  if (record.metadata != 0) return std::nullopt;
  if (record.compressed && !record.uncompressed) return std::nullopt;  // sharing by design
  if (record.several_guests) return FindingCode::kCrossLinkedData;
  if (record.compressed) return FindingCode::kCrossLinkedData;
  return std::nullopt;
}

void OwnerPass::ReportCollisions() {
  const Geometry& geometry = state_.geo();
  state_.collisions->ForEach([&](uint64_t cluster) {
    const ClusterUsers* found = search_.Find(cluster);
    // What a misaligned entry reaches into is the fault of that entry, which is a finding.
    if (found == nullptr || found->by_misaligned_entry) return;
    const ClusterUsers& record = *found;
    const std::optional<FindingCode> code = CodeForCollision(record);
    if (!code) return;
    // A block that shares its cluster is a finding of its own that adds to the total.
    const bool counted_elsewhere = *code == FindingCode::kMetadataOverlap && record.refcount_block;
    state_.findings.Add({.code = *code,
                         .structure = record.owners.empty() ? Structure::kDataCluster
                                                            : record.owners.front().structure,
                         .host_offset = geometry.OffsetOf({cluster}),
                         .length_bytes = geometry.cluster_size(),
                         .clusters = 1,
                         .count = counted_elsewhere ? 0 : CountUnlessMismatched(state_, cluster),
                         .guest_offset = record.guest,
                         .guest_length_bytes = record.guest ? geometry.cluster_size() : 0,
                         .owners = record.owners});
  });
}

void OwnerPass::AttachOwners() {
  const Geometry& geometry = state_.geo();
  for (Finding& finding : state_.findings.findings()) {
    if (!WantsOwners(finding.code) || !finding.owners.empty()) continue;
    const uint64_t first = geometry.ClusterOf(*finding.host_offset).value;
    const ClusterUsers* found = search_.Find(first);
    if (found == nullptr) continue;
    const ClusterUsers& record = *found;
    finding.owners = record.owners;
    if (!record.owners.empty()) finding.structure = record.owners.front().structure;
    if (!record.guest || record.several_guests) continue;
    // A guest range is given as far as guest and host clusters run side by side.
    uint64_t run = 1;
    for (; run < std::min(finding.clusters, kClustersAskedPerFinding); ++run) {
      const ClusterUsers* next = search_.Find(first + run);
      if (next == nullptr || !next->guest || next->several_guests ||
          next->guest->bytes != record.guest->bytes + run * geometry.cluster_size()) {
        break;
      }
    }
    finding.guest_offset = record.guest;
    finding.guest_length_bytes = run * geometry.cluster_size();
  }
}

}  // namespace

void ResolveOwners(CheckState& state) { OwnerPass(state).Run(); }

}  // namespace qcow2check

// Refcounts: raised to the number of references, rebuilt where they cannot be read, lowered where
// the rest is proven waste.
#include <algorithm>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "checker/old_refcounts.h"
#include "common/checked_math.h"
#include "common/limits.h"
#include "repair/extent_set.h"
#include "repair/guess.h"
#include "repair/planners.h"
#include "repair/refcount_structures.h"
#include "repair/stored_refcounts.h"
#include "repair/uncounted_tables.h"

namespace qcow2check {
namespace {

constexpr char kGivenUp[] =
    "kept: they may be the only copy of what could not be proven and reads as zeros, or as a copy "
    "of something else, from now on";

bool IsTooLow(const Finding& finding) {
  switch (finding.code) {
    case FindingCode::kRefcountTooLow:
    case FindingCode::kRefcountZeroInUse:
    case FindingCode::kRefcountOverflow:
      return true;
    case FindingCode::kRefcountLazy:  // also a COPIED flag, which then has a target
      return !finding.target.has_value();
    default:
      return false;
  }
}

uint64_t FirstCluster(const CheckState& state, const Finding& finding) {
  return state.geo().ClusterOf(*finding.host_offset).value;
}

// A block that is all zeros has lost what it said of clusters that nothing references, too. Those
// that hold something get a refcount: the next check sees orphans, and says which may go. With lazy
// refcounts no block knows what was written last: all of them are meant where mappings were lost.
void KeepUncountedOrphans(const CheckState& state, PlanBuilder& plan, bool in_all_blocks,
                          StoredRefcounts& stored) {
  const uint64_t size = state.geo().cluster_size();
  const uint64_t entries = state.geo().refcount_block_entries();
  for (const auto& [index, offset] : stored.blocks()) {
    if (!in_all_blocks && !ReadsAsZeros(plan.image(), offset, size)) continue;
    const uint64_t end = std::min(SaturatingMultiply(index + 1, entries), state.file_clusters);
    std::vector<uint64_t> in_use;
    for (uint64_t next = SaturatingMultiply(index, entries); next < end;) {
      const Extent data = plan.image().NextData(HostOffset{next * size});
      if (data.empty()) break;
      const uint64_t behind = DivideRoundingUp(data.end_bytes, size);
      for (next = data.begin_bytes / size; next < std::min(behind, end); ++next) {
        if (state.expected->Get(next) == 0 && stored.Get(next) == 0 &&
            !ReadsAsZeros(plan.image(), next * size, size)) {
          in_use.push_back(next);
        }
      }
    }
    for (const uint64_t cluster : in_use) {
      stored.Set(
          cluster, 1, 1,
          {FindingCode::kRefcountZeroInUse, state.geo().OffsetOf({cluster}),
           RepairAction::kRaiseRefcount, RepairSafety::kLossless,
           in_all_blocks ? "refcounts were not written any more, and it holds something"
                         : "its refcount was lost with all others of the block, and it holds "
                           "something"},
          /*before_all=*/true);
    }
  }
}

// L1 tables that more than one pointer leads to. No program shares one: a refcount that is too low
// shows that one of the pointers is wrong.
ExtentSet SharedL1Tables(const CheckState& state) {
  ExtentSet shared;
  for (const L1Table& table : state.l1_tables) {
    if (table.users.size() < 2) continue;
    const uint64_t length = SaturatingMultiply(table.users.back().entries, 8);
    shared.Add(table.offset_bytes, SaturatingAdd(table.offset_bytes, length));
  }
  return shared;
}

void Raise(const Geometry& geometry, const Finding& finding, const ExtentSet& shared_l1_tables,
           StoredRefcounts& stored, PlanBuilder& plan) {
  const uint64_t size = geometry.cluster_size();
  const uint64_t count = std::min(*finding.expected, geometry.refcount_max());
  const auto raise_to = [&](uint64_t begin, uint64_t end, uint64_t refcount) {
    if (begin == end) return;
    stored.Set(begin, end - begin, refcount,
               ReasonFor(finding, absl::StrFormat("referenced %d times, so the refcount is %d",
                                                  *finding.expected, refcount)),
               /*before_all=*/true);
  };
  uint64_t begin = finding.host_offset->bytes / size;
  const uint64_t end = begin + finding.clusters;
  for (uint64_t cluster = begin; cluster < end; ++cluster) {
    if (!shared_l1_tables.Touches(cluster * size, (cluster + 1) * size)) continue;
    raise_to(begin, cluster, count);
    begin = cluster + 1;
    if (finding.code == FindingCode::kRefcountZeroInUse) {
      raise_to(cluster, begin, 1);
    } else {
      plan.Decline(finding.code, finding.host_offset,
                   "this L1 table has more than one user, and nothing proves which of the pointers "
                   "to it is wrong");
    }
  }
  raise_to(begin, end, count);
}

}  // namespace

void PlanRaisedRefcounts(CheckState& state, PlanBuilder& plan) {
  if (!state.refcounts_readable) return;
  StoredRefcounts stored(state, plan);
  const bool lazy = state.header.Has(kDirty) && state.header.Has(kLazyRefcounts);
  if (lazy ? plan.removes_evidence() : state.findings.Has(FindingCode::kRefcountZeroInUse)) {
    KeepUncountedOrphans(state, plan, /*in_all_blocks=*/lazy, stored);
  }
  const ExtentSet shared_l1_tables = SharedL1Tables(state);
  for (const Finding& finding : state.findings.findings()) {
    if (!IsTooLow(finding) || !finding.expected) continue;
    Raise(state.geo(), finding, shared_l1_tables, stored, plan);
  }
}

// A wrong length makes the table reach over other structures, or lose its end. The right one is as
// much as the file needs.
void PlanRefcountTableLength(CheckState& state, PlanBuilder& plan) {
  constexpr uint64_t kLengthField = 56;
  const Finding* why = nullptr;
  for (const Finding& finding : state.findings.findings()) {
    const bool shares = std::any_of(
        finding.owners.begin(), finding.owners.end(),
        [](const Owner& owner) { return owner.structure == Structure::kRefcountTable; });
    if (finding.code == FindingCode::kRefcountTableInvalid || shares) why = &finding;
  }
  const uint64_t size = state.geo().cluster_size();
  if (why == nullptr || !IsAligned(state.header.refcount_table_offset, size)) return;
  const uint64_t blocks =
      DivideRoundingUp(state.file_clusters, state.geo().refcount_block_entries());
  const uint64_t needed = DivideRoundingUp(blocks * 8, size);
  Guess guess = FieldGuess(kLengthField, 4, needed, 0,
                           absl::StrFormat("with a length of %d the refcount table leads to the "
                                           "refcounts of the whole file",
                                           needed));
  guess.needed = Proof::kRefcountTableSound;
  WriteOnlyRightGuess(state, plan, *why, {guess});
}

namespace {

const Finding* FindDataOnRefcountTable(const CheckState& state) {
  const auto is_shared = [](const Finding& finding) {
    return finding.code == FindingCode::kDataOnMetadata &&
           std::any_of(finding.owners.begin(), finding.owners.end(), [](const Owner& owner) {
             return owner.structure == Structure::kRefcountTable;
           });
  };
  const std::vector<Finding>& findings = state.findings.findings();
  const auto found = std::find_if(findings.begin(), findings.end(), is_shared);
  return found == findings.end() ? nullptr : &*found;
}

}  // namespace

void PlanRefcountStructures(CheckState& state, PlanBuilder& plan) {
  RefcountStructures structures(state, plan);
  if (!structures.NeedsRepair()) return;
  // What is said to the user is the worst that is wrong with them.
  const Finding* why = nullptr;
  for (const Finding& finding : state.findings.findings()) {
    const bool is_reason = InfoOf(finding.code).action == RepairAction::kRebuildRefcounts ||
                           finding.code == FindingCode::kRefcountOverflow ||
                           finding.code == FindingCode::kMetadataOverlap || IsTooLow(finding) ||
                           finding.code == FindingCode::kRefcountTooHigh ||
                           finding.code == FindingCode::kRefcountPastEnd ||
                           finding.code == FindingCode::kLeakedCluster ||
                           finding.code == FindingCode::kLeakSuspicious;
    if (is_reason && (why == nullptr || finding.code < why->code)) why = &finding;
  }
  if (why == nullptr) return;
  PlanReason reason = ReasonFor(*why, "new refcount structures, made from the mapping tables");
  reason.action = RepairAction::kRebuildRefcounts;
  if (const Finding* shared = FindDataOnRefcountTable(state)) {
    reason = ReasonFor(*shared,
                       "a new refcount table: the guest goes on reading the old one, which "
                       "may not be what it wrote");
  }
  reason.safety = RepairSafety::kLossless;
  structures.Commit(reason);
}

namespace {

struct OldPlaces {
  std::vector<uint64_t> offsets;
  bool all_certain = true;
};

// Orphans that are old blocks of the ranges in plan.old_blocks(), by range, and behind them the old
// table.
absl::btree_map<uint64_t, OldPlaces> FindOldRefcounts(const CheckState& state,
                                                      const PlanBuilder& plan) {
  constexpr uint64_t kMostLookedAt = 1024;
  const uint64_t size = state.geo().cluster_size();
  absl::btree_map<uint64_t, OldPlaces> places;
  std::vector<uint8_t> cluster(std::min(size, kMaxPieceBytes));
  uint64_t left = kMostLookedAt;
  for (const OrphanRun& run : state.orphans) {
    for (uint64_t i = 0; i < run.clusters && left != 0; ++i, --left) {
      const uint64_t offset = (run.first_cluster + i) * size;
      for (const uint64_t index : plan.OldBlocksNear(offset, state.geo())) {
        const OldRefcounts is_old = IsOldRefcountBlock(state, {index, offset});
        if (is_old == OldRefcounts::kNo) continue;
        places[index].offsets.push_back(offset);
        places[index].all_certain &= is_old == OldRefcounts::kYes;
      }
      if (plan.image().ReadAt(HostOffset{offset}, absl::MakeSpan(cluster)).ok() &&
          IsOldRefcountTable(state, cluster)) {
        places[kSaturated].offsets.push_back(offset);
      }
    }
  }
  return places;
}

// Old refcount structures are no loss, whatever else was lost. But a guest may have images, too: of
// two that say the same none is freed, and one that fits many images only if all orphans are such.
void FreeOldRefcounts(const CheckState& state, PlanBuilder& plan, StoredRefcounts& stored) {
  if (plan.old_blocks().empty()) return;
  const auto found = FindOldRefcounts(state, plan);
  const bool nothing_else = found.size() == state.orphan_clusters;
  for (const auto& [index, places] : found) {
    if (places.offsets.size() != 1 || (!places.all_certain && !nothing_else)) continue;
    const uint64_t offset = places.offsets.front();
    stored.Set(offset >> state.geo().cluster_bits, 1, 0,
               {FindingCode::kLeakedCluster, HostOffset{offset}, RepairAction::kLowerRefcount,
                RepairSafety::kLossless, "it holds nothing but old refcounts of this image"});
  }
}

// Lowers what `finding` has found, but for clusters of `kept`.
void Lower(const CheckState& state, const Finding& finding, const PlanReason& reason,
           const ExtentSet& kept, StoredRefcounts& stored, PlanBuilder& plan) {
  const uint64_t size = state.geo().cluster_size();
  const uint64_t refcount = finding.expected.value_or(0);
  const auto lower = [&](uint64_t begin, uint64_t end) {
    if (begin == end) return;
    stored.Set(begin, end - begin, refcount, reason);
    if (refcount == 0 && begin < state.file_clusters) plan.AddFreed({begin * size, end * size});
  };
  const uint64_t first = FirstCluster(state, finding);
  const uint64_t end = first + finding.clusters;
  uint64_t begin = first;
  for (uint64_t cluster = first; cluster < end && !kept.empty(); ++cluster) {
    if (!kept.Touches(cluster * size, (cluster + 1) * size)) continue;
    if (cluster == first || cluster != begin) {
      plan.Decline(
          finding.code, HostOffset{cluster * size},
          "kept: the header or a snapshot leads to a table here that cannot be read whole");
    }
    lower(begin, cluster);
    begin = cluster + 1;
  }
  lower(begin, end);
}

}  // namespace

void PlanLoweredRefcounts(CheckState& state, PlanBuilder& plan) {
  if (!state.refcounts_readable) return;
  const bool nothing_lost = state.coverage.complete() && state.held_back.clusters == 0;
  // With the note all orphans are held back but those of bitmaps that are out of date. It was
  // needed for them, too, where the same repair gave something up.
  const bool something_given_up = plan.removes_evidence() || state.kept_by_repair;
  const bool orphans_are_waste = nothing_lost && !something_given_up;
  const bool free_orphans = plan.options().free_orphans;
  const ExtentSet kept = UncountedTables(state);
  StoredRefcounts stored(state, plan);
  plan.Flush();
  if (plan.options().mode == RepairMode::kAll) FreeOldRefcounts(state, plan, stored);
  for (const Finding& finding : state.findings.findings()) {
    std::string why;
    switch (finding.code) {
      case FindingCode::kLeakedCluster:
        if (!orphans_are_waste && !free_orphans) {
          plan.Decline(finding.code, finding.host_offset, kGivenUp);
          continue;
        }
        why = "nothing references these clusters, and nothing was lost that they could belong to";
        break;
      case FindingCode::kLeakSuspicious:
        if (!free_orphans) {
          plan.Decline(finding.code, finding.host_offset,
                       plan.removes_evidence()
                           ? std::string(kGivenUp)
                           : absl::StrCat("kept: they may be the only copy of something: ",
                                          state.held_back.why));
          continue;
        }
        why = "freed because --free-orphans asks for it";
        break;
      case FindingCode::kRefcountTooHigh:
        // What was lost may be in clusters that others use, too.
        if (!orphans_are_waste && !free_orphans) {
          plan.Decline(finding.code, finding.host_offset,
                       "kept: what is missing or could not be examined may reference it");
          continue;
        }
        why = absl::StrFormat("referenced %d times", *finding.expected);
        break;
      case FindingCode::kRefcountPastEnd:
        why = "there is nothing at this place: the file ends before it";
        break;
      default:
        continue;
    }
    PlanReason reason = ReasonFor(finding, std::move(why));
    reason.action = RepairAction::kLowerRefcount;
    Lower(state, finding, reason, kept, stored, plan);
  }
  plan.Flush();
}

}  // namespace qcow2check

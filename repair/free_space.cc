#include "repair/free_space.h"

#include <algorithm>

#include "common/checked_math.h"
#include "common/limits.h"
#include "common/snapshot_entry.h"

namespace qcow2check {

std::optional<uint64_t> FreeSpace::Take(uint64_t count, uint64_t refcount) {
  std::optional<uint64_t> first = TakeAtEnd(count);
  if (!first) first = FindInside(count);
  if (!first) {
    missing_bytes_ += count << state_.geo().cluster_bits;
    return std::nullopt;
  }
  for (uint64_t i = 0; i < count; ++i) taken_[*first + i] = refcount;
  return first;
}

void FreeSpace::GiveBack(uint64_t cluster) {
  taken_.erase(cluster);
  next_inside_ = std::min(next_inside_, cluster);
  no_run_of_ = kSaturated;
}

std::optional<uint64_t> FreeSpace::TakeAtEnd(uint64_t count) {
  if (plan_.options().fixed_size || EndIsInDoubt()) return std::nullopt;
  const uint64_t size = state_.geo().cluster_size();
  const uint64_t first =
      BehindCutOffSnapshotTable(DivideRoundingUp(plan_.image().size_bytes(), size), count);
  if (uncounted_.Touches(first * size, (first + count) * size)) return std::nullopt;
  // Where a damaged pointer leads, our structures would look like what it points to.
  for (uint64_t i = 0; i < count; ++i) {
    if (first + i < state_.tracked_clusters && state_.past_end->Contains(first + i)) {
      return std::nullopt;
    }
  }
  plan_.GrowTo((first + count) * size);
  return first;
}

// Where the header says that a snapshot table is, behind the end of the file, zeros say later that
// it was lost. Our structures would be read as snapshots.
uint64_t FreeSpace::BehindCutOffSnapshotTable(uint64_t first, uint64_t count) const {
  const Header& header = state_.header;
  const uint64_t size = state_.geo().cluster_size();
  const uint64_t snapshots = std::min<uint64_t>(header.nb_snapshots, kQemuMaxSnapshots);
  const uint64_t begin = header.snapshots_offset / size;
  const uint64_t end = begin + DivideRoundingUp(snapshots * kSnapshotFixedBytes, size);
  return snapshots != 0 && begin < first + count && first < end ? end : first;
}

// The file may have been cut off, and tables whose place is not known yet may have led behind the
// end: they must not lead to our structures.
bool FreeSpace::EndIsInDoubt() const {
  // A table of so many snapshots would end anywhere.
  if (state_.findings.Has(FindingCode::kSnapshotTooMany)) return true;
  if (plan_.grows_in_doubt()) return false;
  // How long its entries were cannot be told, and so not where it ended. Without snapshots there is
  // only a leftover offset to complain about.
  if (state_.header.nb_snapshots != 0 && state_.findings.Has(FindingCode::kSnapshotTableInvalid)) {
    return true;
  }
  const uint64_t size = state_.geo().cluster_size();
  const uint64_t end = plan_.old_size_bytes() / size;
  if (refcounts_.HasBlockFor(end) && !plan_.old_blocks().contains(refcounts_.TableIndexOf(end))) {
    return false;
  }
  for (const FindingCode code :
       {FindingCode::kL1OffsetInvalid, FindingCode::kL1Lost, FindingCode::kL1EntryWithoutOffset,
        FindingCode::kL2TableMisaligned, FindingCode::kL2TablePastEnd,
        FindingCode::kSnapshotL1Invalid}) {
    if (state_.findings.Has(code)) return true;
  }
  return false;
}

std::optional<uint64_t> FreeSpace::FindInside(uint64_t count) {
  if (count >= no_run_of_) return std::nullopt;
  uint64_t run = 0;
  // One cluster after the other is asked for most often; a longer run starts from the beginning.
  for (uint64_t cluster = count == 1 ? next_inside_ : 1;
       cluster < state_.file.size_bytes() >> state_.geo().cluster_bits; ++cluster) {
    run = IsFree(cluster) ? run + 1 : 0;
    if (run < count) continue;
    if (count == 1) next_inside_ = cluster + 1;
    return cluster + 1 - count;
  }
  no_run_of_ = count;
  return std::nullopt;
}

bool FreeSpace::IsFree(uint64_t cluster) const {
  if (cluster >= state_.file_clusters || state_.expected->Get(cluster) != 0 ||
      taken_.contains(cluster) || refcounts_.Get(cluster) != 0) {
    return false;
  }
  const uint64_t size = state_.geo().cluster_size();
  if (uncounted_.Touches(cluster * size, (cluster + 1) * size)) return false;
  return (nothing_lost_ && refcounts_.HasBlockFor(cluster)) ||
         ReadsAsZeros(plan_.image(), cluster * size, size);
}

}  // namespace qcow2check

#include "repair/sector_history.h"

#include <algorithm>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "absl/types/span.h"
#include "common/checked_math.h"
#include "common/digest.h"
#include "common/limits.h"

namespace qcow2check {
namespace {

Extent WholeSectors(uint64_t begin_bytes, uint64_t end_bytes) {
  return {begin_bytes / kSectorBytes * kSectorBytes, RoundUp(end_bytes, kSectorBytes)};
}

bool BeginsBefore(const Extent& a, const Extent& b) { return a.begin_bytes < b.begin_bytes; }

std::vector<const PlannedWrite*> AllWrites(const Plan& plan) {
  std::vector<const PlannedWrite*> writes;
  for (const PlanStep& step : plan.steps) {
    for (const PlannedWrite& write : step.writes) writes.push_back(&write);
  }
  for (const PlannedWrite& write : plan.closing.writes) writes.push_back(&write);
  return writes;
}

// All sectors that the plan touches, merged. Those that it adds to the file count, too: who finds
// something there that the plan did not write must not cut it off.
std::vector<Extent> TouchedSectors(const Plan& plan) {
  std::vector<Extent> touched;
  for (const PlannedWrite* write : AllWrites(plan)) {
    touched.push_back(WholeSectors(write->offset_bytes, write->offset_bytes + write->length_bytes));
  }
  for (const Extent& discard : plan.discards) {
    touched.push_back(WholeSectors(discard.begin_bytes, discard.end_bytes));
  }
  if (plan.new_size_bytes > plan.old_size_bytes) {
    touched.push_back(WholeSectors(plan.old_size_bytes, plan.new_size_bytes));
  }
  std::sort(touched.begin(), touched.end(), BeginsBefore);
  std::vector<Extent> merged;
  for (const Extent& extent : touched) {
    if (extent.empty()) continue;
    if (!merged.empty() && extent.begin_bytes <= merged.back().end_bytes) {
      merged.back().end_bytes = std::max(merged.back().end_bytes, extent.end_bytes);
    } else {
      merged.push_back(extent);
    }
  }
  return merged;
}

// Goes through the stretches in ascending order and plays the plan on each of them alone, so that
// no more than one has to be in memory.
class HistoryMaker {
 public:
  HistoryMaker(const ImageFile& image, const Plan& plan)
      : image_(image), writes_(AllWrites(plan)), discards_(plan.discards) {
    std::sort(discards_.begin(), discards_.end(), BeginsBefore);
    for (size_t i = 0; i < writes_.size(); ++i) by_offset_.push_back(i);
    std::sort(by_offset_.begin(), by_offset_.end(), [this](size_t a, size_t b) {
      return writes_[a]->offset_bytes < writes_[b]->offset_bytes;
    });
  }

  // Fills `history` for its extent, which lies behind that of the call before.
  absl::Status Make(const Extent& extent, SectorHistory& history) {
    const uint64_t length = extent.end_bytes - extent.begin_bytes;
    history.offset_bytes = extent.begin_bytes;
    history.old_bytes.resize(length);
    history.sectors.assign(length / kSectorBytes, {});
    absl::Status status =
        image_.ReadAt(HostOffset{extent.begin_bytes}, absl::MakeSpan(history.old_bytes));
    if (!status.ok()) return status;
    now_ = history.old_bytes;
    for (const size_t index : WritesIn(extent)) {
      status = Play(*writes_[index], extent, history);
      if (!status.ok()) return status;
    }
    MarkDiscarded(extent, history);
    return absl::OkStatus();
  }

 private:
  // The writes that touch the extent, in the order of the plan.
  std::vector<size_t> WritesIn(const Extent& extent) {
    while (next_ < by_offset_.size() &&
           writes_[by_offset_[next_]]->offset_bytes < extent.end_bytes) {
      active_.push_back(by_offset_[next_++]);
    }
    std::erase_if(active_, [&](size_t i) {
      return writes_[i]->offset_bytes + writes_[i]->length_bytes <= extent.begin_bytes;
    });
    std::sort(active_.begin(), active_.end());
    return active_;
  }

  // The part of the write that lies in the extent: on now_ and in the history.
  absl::Status Play(const PlannedWrite& write, const Extent& extent, SectorHistory& history) {
    const uint64_t begin = std::max(write.offset_bytes, extent.begin_bytes);
    const uint64_t end = std::min(write.offset_bytes + write.length_bytes, extent.end_bytes);
    const uint64_t skipped = begin - write.offset_bytes;
    const absl::Span<uint8_t> bytes =
        absl::MakeSpan(now_).subspan(begin - extent.begin_bytes, end - begin);
    const bool as_expected =
        write.old_bytes.empty()
            ? std::all_of(bytes.begin(), bytes.end(), [](uint8_t byte) { return byte == 0; })
            : std::equal(bytes.begin(), bytes.end(), write.old_bytes.begin() + skipped);
    if (!as_expected) {
      return absl::AbortedError(absl::StrFormat(
          "the image changed while it was examined, between 0x%x and 0x%x", begin, end));
    }
    if (write.copy_from_bytes) {
      const absl::Status status =
          image_.ReadAt(HostOffset{*write.copy_from_bytes + skipped}, bytes);
      if (!status.ok()) return status;
    } else {
      std::memcpy(bytes.data(), &write.new_bytes[skipped], bytes.size());
    }
    const Extent sectors = WholeSectors(begin, end);
    for (uint64_t at = sectors.begin_bytes; at < sectors.end_bytes; at += kSectorBytes) {
      const uint64_t position = at - extent.begin_bytes;
      history.sectors[position / kSectorBytes].written.push_back(
          DigestOf(absl::MakeConstSpan(now_).subspan(position, kSectorBytes)));
    }
    return absl::OkStatus();
  }

  void MarkDiscarded(const Extent& extent, SectorHistory& history) {
    while (next_discard_ < discards_.size() &&
           discards_[next_discard_].end_bytes <= extent.begin_bytes) {
      ++next_discard_;
    }
    for (size_t i = next_discard_;
         i < discards_.size() && discards_[i].begin_bytes < extent.end_bytes; ++i) {
      const uint64_t begin = std::max(discards_[i].begin_bytes, extent.begin_bytes);
      const uint64_t end = std::min(discards_[i].end_bytes, extent.end_bytes);
      for (uint64_t at = begin; at < end; at += kSectorBytes) {
        history.sectors[(at - extent.begin_bytes) / kSectorBytes].discarded = true;
      }
    }
  }

  const ImageFile& image_;
  std::vector<const PlannedWrite*> writes_;  // in the order of the plan
  std::vector<size_t> by_offset_;            // positions in writes_
  size_t next_ = 0;                          // the first in by_offset_ that was not reached yet
  std::vector<size_t> active_;               // those that may reach into the current extent
  std::vector<Extent> discards_;             // sorted
  size_t next_discard_ = 0;                  // the first that was not passed yet
  std::vector<uint8_t> now_;                 // the extent as the plan has it so far
};

}  // namespace

absl::Status ForEachHistory(const ImageFile& image, const Plan& plan,
                            absl::FunctionRef<absl::Status(const SectorHistory&)> visit) {
  HistoryMaker maker(image, plan);
  SectorHistory history;
  for (const Extent& touched : TouchedSectors(plan)) {
    for (uint64_t at = touched.begin_bytes; at < touched.end_bytes; at += kMaxHistoryBytes) {
      const Extent extent{at, std::min(at + kMaxHistoryBytes, touched.end_bytes)};
      absl::Status status = maker.Make(extent, history);
      if (!status.ok()) return status;
      status = visit(history);
      if (!status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

}  // namespace qcow2check

#include "repair/plan_builder.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/byte_order.h"
#include "common/checked_math.h"
#include "common/limits.h"

namespace qcow2check {
namespace {

bool IsZero(const std::vector<uint8_t>& bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](uint8_t byte) { return byte == 0; });
}

// What may be copied beyond the size of the image, of which much can be in holes.
constexpr uint64_t kExtraCopyBytes = 64u << 20;

constexpr char kBehindEndOfDevice[] = "the device ends before the place to write";

// No more than that is one write, whatever changes in it.
constexpr uint64_t kPageBytes = 4096;

// The stretches in which `bytes` differ from `old`, of whole sectors of the file: of a new refcount
// block for a cluster far away, one sector is not all zeros.
std::vector<Extent> Changes(uint64_t offset_bytes, absl::Span<const uint8_t> old,
                            absl::Span<const uint8_t> bytes) {
  if (bytes.size() <= kPageBytes) {
    if (old == bytes) return {};
    return {{offset_bytes, offset_bytes + bytes.size()}};
  }
  std::vector<Extent> changes;
  for (uint64_t at = offset_bytes, end; at < offset_bytes + bytes.size(); at = end) {
    end = std::min(RoundUp(at + 1, kSectorBytes), offset_bytes + bytes.size());
    const size_t first = at - offset_bytes;
    if (old.subspan(first, end - at) == bytes.subspan(first, end - at)) continue;
    if (!changes.empty() && changes.back().end_bytes == at) {
      changes.back().end_bytes = end;
    } else {
      changes.push_back({at, end});
    }
  }
  return changes;
}

}  // namespace

PlanReason ReasonFor(const Finding& finding, std::string text) {
  const FindingCodeInfo& info = InfoOf(finding.code);
  return {finding.code, finding.host_offset, info.action, info.safety, std::move(text)};
}

PlanBuilder::PlanBuilder(const ImageFile& file, const RepairOptions& options)
    : options_(options),
      image_(file),
      part_{.before = image_},
      copies_left_bytes_(SaturatingAdd(file.allocated_bytes(), kExtraCopyBytes)) {
  plan_.old_size_bytes = file.size_bytes();
}

PlanBuilder PlanBuilder::NextPart(bool grows_in_doubt) const {
  PlanBuilder next = *this;
  next.part_ = {.before = next.image_, .grows_in_doubt = grows_in_doubt};
  next.plan_.declined.clear();
  next.flush_before_loss_ = false;
  next.Flush();
  return next;
}

void PlanBuilder::Flush() { new_step_ = true; }

std::vector<PlannedWrite> PlanBuilder::MakeWrites(uint64_t offset_bytes,
                                                  absl::Span<const uint8_t> bytes,
                                                  const PlanReason& reason) {
  std::vector<uint8_t> old(bytes.size());
  const uint64_t end = offset_bytes + bytes.size();
  absl::Status status = absl::OkStatus();
  if (bytes.size() <= kPageBytes || !image_.IsHole({offset_bytes, end})) {
    status = image_.ReadAt(HostOffset{offset_bytes}, absl::MakeSpan(old));
  }
  const std::vector<Extent> changes = Changes(offset_bytes, old, bytes);
  if (status.ok() && changes.empty()) return {};
  if (status.ok()) status = image_.HoldEdges(offset_bytes, bytes.size());
  std::vector<PlannedWrite> writes;
  for (const Extent& part : changes) {
    if (!status.ok()) break;
    const size_t first = part.begin_bytes - offset_bytes;
    const size_t length = part.end_bytes - part.begin_bytes;
    std::vector<uint8_t> old_part(&old[first], &old[first] + length);
    if (IsZero(old_part)) old_part = {};
    writes.push_back({.reason = reason,
                      .offset_bytes = part.begin_bytes,
                      .length_bytes = length,
                      .old_bytes = std::move(old_part),
                      .new_bytes = {&bytes[first], &bytes[first] + length}});
    status = image_.Patch(part.begin_bytes, bytes.subspan(first, length));
  }
  if (!status.ok()) {
    Decline(reason.code, reason.finding_offset,
            absl::StrCat("what is there now cannot be kept: ", status.message()));
    return {};
  }
  ++writes_;
  part_.gives_up_evidence |=
      reason.safety == RepairSafety::kLossy || reason.action == RepairAction::kCopyOut;
  return writes;
}

PlanBuilder::BuiltStep& PlanBuilder::CurrentStep() {
  if (new_step_) steps_.emplace_back();
  new_step_ = false;
  return steps_.back();
}

void PlanBuilder::Write(uint64_t offset_bytes, absl::Span<const uint8_t> bytes,
                        const PlanReason& reason) {
  // A structure in the last cluster of a file that ends inside that cluster.
  const uint64_t end = offset_bytes + bytes.size();
  if (end > image_.size_bytes()) {
    if (options_.fixed_size) {
      Decline(reason.code, reason.finding_offset, kBehindEndOfDevice);
      return;
    }
    GrowTo(end);
  }
  std::vector<PlannedWrite> writes = MakeWrites(offset_bytes, bytes, reason);
  if (writes.empty()) return;
  if (flush_before_loss_ && reason.safety == RepairSafety::kLossy) {
    Flush();
    flush_before_loss_ = false;
  }
  for (PlannedWrite& write : writes) CurrentStep().Add(std::move(write));
}

void PlanBuilder::Write64(uint64_t offset_bytes, uint64_t value, const PlanReason& reason) {
  uint8_t bytes[8];
  Store64(bytes, value);
  Write(offset_bytes, bytes, reason);
}

size_t PlanBuilder::StepBehind(uint64_t offset_bytes, uint64_t length_bytes) const {
  const uint64_t end = offset_bytes + length_bytes;
  const bool is_new = end > EndOfFirst();
  size_t behind = steps_.size();
  while (behind != 0) {
    const BuiltStep& built = steps_[behind - 1];
    if (is_new && built.step.grow_to_bytes) break;
    if (built.touched.Touches(offset_bytes, end)) break;
    --behind;
  }
  return behind;
}

void PlanBuilder::WriteFirst(uint64_t offset_bytes, absl::Span<const uint8_t> bytes,
                             const PlanReason& reason) {
  // The last refcount block may lie in a cluster that the file ends inside. To complete that
  // cluster puts nothing where a pointer could lead: it may come before all else.
  const uint64_t end = offset_bytes + bytes.size();
  const bool completes_cluster = end > image_.size_bytes();
  if (completes_cluster && options_.fixed_size) {
    Decline(reason.code, reason.finding_offset, kBehindEndOfDevice);
    return;
  }
  const size_t behind = StepBehind(offset_bytes, bytes.size());
  const bool comes_first = behind == 0 && (completes_cluster || end <= EndOfFirst());
  if (!comes_first && behind == steps_.size()) {
    Write(offset_bytes, bytes, reason);
    return;
  }
  std::vector<PlannedWrite> writes = MakeWrites(offset_bytes, bytes, reason);
  if (writes.empty()) return;
  if (completes_cluster) {
    image_.Grow(end);
    first_.grow_to_bytes = end;
  }
  if (comes_first) {
    std::move(writes.begin(), writes.end(), std::back_inserter(first_.writes));
    return;
  }
  if (!raising_step_ || *raising_step_ < behind) {
    steps_.emplace(steps_.begin() + static_cast<int64_t>(behind));
    raising_step_ = behind;
  }
  for (PlannedWrite& write : writes) steps_[*raising_step_].Add(std::move(write));
}

void PlanBuilder::WriteLast(uint64_t offset_bytes, absl::Span<const uint8_t> bytes,
                            const PlanReason& reason) {
  for (PlannedWrite& write : MakeWrites(offset_bytes, bytes, reason)) {
    plan_.closing.writes.push_back(std::move(write));
  }
}

void PlanBuilder::CopyData(uint64_t from_bytes, uint64_t to_bytes, uint64_t length_bytes,
                           const PlanReason& reason) {
  if (image_.IsPatched(from_bytes, length_bytes) || !ReadsAsZeros(image_, to_bytes, length_bytes)) {
    CopyOriginal(from_bytes, to_bytes, length_bytes, reason);
    return;
  }
  copies_left_bytes_ -= std::min(copies_left_bytes_, length_bytes);
  image_.PatchCopy(from_bytes, to_bytes, length_bytes);
  CurrentStep().Add({.reason = reason,
                     .offset_bytes = to_bytes,
                     .length_bytes = length_bytes,
                     .copy_from_bytes = from_bytes});
  ++writes_;
}

void PlanBuilder::CopyOriginal(uint64_t from_bytes, uint64_t to_bytes, uint64_t length_bytes,
                               const PlanReason& reason) {
  copies_left_bytes_ -= std::min(copies_left_bytes_, length_bytes);
  std::vector<uint8_t> bytes(length_bytes);
  const absl::Status status = part_.before.ReadAt(HostOffset{from_bytes}, absl::MakeSpan(bytes));
  if (status.ok()) {
    Write(to_bytes, bytes, reason);
  } else {
    Decline(reason.code, reason.finding_offset, std::string(status.message()));
  }
}

void PlanBuilder::GrowTo(uint64_t size_bytes) {
  if (size_bytes <= image_.size_bytes()) return;
  // Pointers behind the end must be gone before there is something that they lead to.
  if (!new_step_ && !steps_.back().step.grow_to_bytes) Flush();
  image_.Grow(size_bytes);
  CurrentStep().step.grow_to_bytes = size_bytes;
}

void PlanBuilder::TakeBackGrowth(uint64_t size_bytes) {
  if (image_.size_bytes() == size_bytes) return;
  image_.Grow(size_bytes);
  while (!steps_.empty() && steps_.back().step.grow_to_bytes > size_bytes) {
    if (!steps_.back().step.writes.empty()) {
      steps_.back().step.grow_to_bytes = size_bytes;
      break;
    }
    steps_.pop_back();
  }
  Flush();
}

void PlanBuilder::Decline(FindingCode code, std::optional<HostOffset> host_offset,
                          std::string reason) {
  const uint64_t place = host_offset ? host_offset->bytes : kSaturated;
  if (!part_.declined.insert({code, place}).second) return;
  plan_.declined.push_back({code, host_offset, std::move(reason)});
}

std::vector<uint64_t> PlanBuilder::OldBlocksNear(uint64_t offset_bytes,
                                                 const Geometry& geometry) const {
  const uint64_t own = (offset_bytes >> geometry.cluster_bits) / geometry.refcount_block_entries();
  std::vector<uint64_t> near;
  for (const uint64_t index : {own, own + 1}) {
    if (part_.old_blocks.contains(index)) near.push_back(index);
  }
  return near;
}

void PlanBuilder::AddLostRange(uint64_t guest_offset_bytes, uint64_t length_bytes) {
  lost_.Add(guest_offset_bytes, length_bytes);
}

Plan PlanBuilder::Take() && {
  if (first_.grow_to_bytes || !first_.writes.empty()) plan_.steps.push_back(std::move(first_));
  for (BuiltStep& built : steps_) plan_.steps.push_back(std::move(built.step));
  plan_.new_size_bytes = image_.size_bytes();
  plan_.discards = std::move(freed_);
  plan_.lost_guest_ranges = lost_.Merged(kSaturated);
  return std::move(plan_);
}

}  // namespace qcow2check

// The note that a repair leaves in the image (common/header_extension.h): orphans are to be kept
// although nothing in the image shows any more why.
//
// It is a header extension behind the others. In the first sector it is written in one step with
// the backing file's name moving out of its way: the disk writes a sector as a whole. Elsewhere
// everything is in place before eight bytes, the extension's head where the end marker was, make it
// valid.
#include <algorithm>
#include <vector>

#include "common/byte_order.h"
#include "common/checked_math.h"
#include "common/header_extension.h"
#include "common/limits.h"
#include "repair/planners.h"

namespace qcow2check {
namespace {

constexpr uint64_t kBackingOffsetField = 8;
constexpr uint64_t kHeadBytes = 8;

PlanReason Reason(std::string text) {
  return {FindingCode::kKeptByRepair, std::nullopt, RepairAction::kHoldBack,
          RepairSafety::kLossless, std::move(text)};
}

const HeaderExtension* FindNote(const CheckState& state) {
  for (const HeaderExtension& extension : state.extensions.extensions) {
    if (extension.type == kExtensionRepairNote && DecodeRepairNote(extension.data)) {
      return &extension;
    }
  }
  return nullptr;
}

bool IsZero(const std::vector<uint8_t>& bytes, uint64_t begin, uint64_t end) {
  return std::all_of(bytes.begin() + static_cast<int64_t>(begin),
                     bytes.begin() + static_cast<int64_t>(end),
                     [](uint8_t byte) { return byte == 0; });
}

// Whether `wanted` overwrites nothing but zeros, and what an interrupted repair wrote of it.
bool CanTake(const std::vector<uint8_t>& bytes, uint64_t begin, absl::Span<const uint8_t> wanted) {
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (bytes[begin + i] != 0 && bytes[begin + i] != wanted[i]) return false;
  }
  return true;
}

// The backing file name, which QEMU writes right behind the extensions, is copied out of the way.
bool CopyBackingName(const CheckState& state, PlanBuilder& plan, uint64_t to) {
  const Header& header = state.header;
  const std::vector<uint8_t>& cluster = state.first_cluster;
  const uint64_t from = header.backing_file_offset;
  const uint64_t end = to + header.backing_file_size;
  if (end > cluster.size() || !IsZero(cluster, from + header.backing_file_size, to)) return false;
  const std::vector<uint8_t> name(
      cluster.begin() + static_cast<int64_t>(from),
      cluster.begin() + static_cast<int64_t>(from + header.backing_file_size));
  if (!CanTake(cluster, to, name)) return false;
  plan.Write(to, name, Reason("the backing file's name moves to make room for the note"));
  plan.Flush();
  return true;
}

}  // namespace

bool PlanNote(CheckState& state, OrphanNote orphans, PlanBuilder& plan) {
  const std::string why = "unreferenced clusters are kept: they may be what was lost";
  const std::vector<uint8_t> data = EncodeRepairNote({.orphans = orphans});
  if (const HeaderExtension* note = FindNote(state)) {
    plan.Write(note->offset_bytes + kHeadBytes, data, Reason(why));
    plan.Flush();
    return true;
  }
  if (state.extensions.overflow || !state.extensions.has_end_marker) return false;
  const uint64_t head = state.extensions.end_bytes - kHeadBytes;
  const uint64_t end = head + kHeadBytes + data.size() + kHeadBytes;
  const Header& header = state.header;
  // Where the fields are wrong, nobody knows where the name is; but no name is made of zeros.
  const bool knows_name = !state.findings.Has(FindingCode::kBackingNameInvalid) &&
                          !state.findings.Has(FindingCode::kBackingNameOverlap);
  const uint64_t name = knows_name ? header.backing_file_offset : 0;
  const uint64_t name_end = name + header.backing_file_size;
  if (end > state.first_cluster.size()) return false;
  std::vector<uint8_t> extension(kHeadBytes);
  Store32(&extension[0], kExtensionRepairNote);
  Store32(&extension[4], kRepairNoteBytes);
  extension.insert(extension.end(), data.begin(), data.end());
  extension.resize(end - head);
  uint64_t name_moves_to = 0;
  if (name != 0 && name < end) {
    // Behind both the note and the old name, so that neither is overwritten while it counts.
    if (!IsZero(state.first_cluster, head + kHeadBytes, name)) return false;
    name_moves_to = RoundUp(std::max(end, name_end), 8);
    extension.resize(std::max(end, name_end) - head);
    if (!CopyBackingName(state, plan, name_moves_to)) return false;
  } else if (!CanTake(state.first_cluster, head + kHeadBytes,
                      absl::MakeConstSpan(extension).subspan(kHeadBytes))) {
    // The head is the end marker's, whose length says nothing.
    return false;
  }
  const bool at_once = head + extension.size() <= kSectorBytes;
  if (name_moves_to != 0) {
    // Not one write from here to the note: the feature bits between are cleared at the plan's end.
    plan.Write64(kBackingOffsetField, name_moves_to, Reason("the backing file's name has moved"));
    if (!at_once) plan.Flush();
  }
  if (at_once) {
    plan.Write(head, extension, Reason(why));
    plan.Flush();
    return true;
  }
  plan.Write(head + kHeadBytes, absl::MakeConstSpan(extension).subspan(kHeadBytes), Reason(why));
  plan.Flush();
  plan.Write(head, absl::MakeConstSpan(extension).first(kHeadBytes), Reason(why));
  plan.Flush();
  return true;
}

void PlanNoteWithdrawn(CheckState& state, PlanBuilder& plan) {
  const HeaderExtension* note = FindNote(state);
  if (note == nullptr || !state.kept_by_repair || state.orphan_clusters != 0 ||
      state.findings.Has(FindingCode::kRefcountTooHigh) ||
      state.findings.Has(FindingCode::kLeakedCluster)) {
    return;
  }
  PlanReason reason = Reason("no unreferenced clusters are left");
  reason.finding_offset = HostOffset{note->offset_bytes};
  plan.Write(note->offset_bytes + kHeadBytes, EncodeRepairNote({.orphans = OrphanNote::kVoid}),
             reason);
  plan.Flush();
}

}  // namespace qcow2check

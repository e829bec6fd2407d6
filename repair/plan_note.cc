// The note that a repair leaves in the image (common/header_extension.h): orphans are to be kept
// although nothing in the image shows any more why.
//
// It is a header extension behind the others. Everything is in place before eight bytes, the
// extension's head where the end marker was, make it valid.
#include <algorithm>
#include <vector>

#include "common/byte_order.h"
#include "common/checked_math.h"
#include "common/header_extension.h"
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

// The backing file name, which QEMU writes right behind the extensions, moves out of the way.
bool MoveBackingName(const CheckState& state, PlanBuilder& plan, uint64_t to) {
  const Header& header = state.header;
  const std::vector<uint8_t>& cluster = state.first_cluster;
  const uint64_t from = header.backing_file_offset;
  const uint64_t end = to + header.backing_file_size;
  if (end > cluster.size() || !IsZero(cluster, from + header.backing_file_size, end)) return false;
  const std::vector<uint8_t> name(
      cluster.begin() + static_cast<int64_t>(from),
      cluster.begin() + static_cast<int64_t>(from + header.backing_file_size));
  plan.Write(to, name, Reason("the backing file's name moves to make room for the note"));
  plan.Flush();
  plan.Write64(kBackingOffsetField, to, Reason("the backing file's name has moved"));
  plan.Flush();
  return true;
}

}  // namespace

bool PlanNote(CheckState& state, PlanBuilder& plan) {
  const std::string why = "unreferenced clusters are kept: they may be what was lost";
  const std::vector<uint8_t> data = EncodeRepairNote({.keep_orphans = true});
  if (const HeaderExtension* note = FindNote(state)) {
    plan.Write(note->offset_bytes + kHeadBytes, data, Reason(why));
    plan.Flush();
    return true;
  }
  if (state.extensions.overflow || !state.extensions.has_end_marker ||
      state.findings.Has(FindingCode::kBackingNameInvalid) ||
      state.findings.Has(FindingCode::kBackingNameOverlap)) {
    return false;
  }
  const uint64_t head = state.extensions.end_bytes - kHeadBytes;
  const uint64_t end = head + kHeadBytes + data.size() + kHeadBytes;
  const Header& header = state.header;
  const uint64_t name = header.backing_file_offset;
  const uint64_t name_end = name + header.backing_file_size;
  if (end > state.first_cluster.size()) return false;
  if (name != 0 && name < end) {
    // Behind both the note and the old name, so that neither is overwritten while it counts.
    if (!IsZero(state.first_cluster, head + kHeadBytes, name)) return false;
    if (!MoveBackingName(state, plan, RoundUp(std::max(end, name_end), 8))) return false;
  } else if (!IsZero(state.first_cluster, head + kHeadBytes, end)) {
    return false;
  }
  std::vector<uint8_t> body = data;
  body.resize(std::max(end, name != 0 && name < end ? name_end : end) - head - kHeadBytes);
  plan.Write(head + kHeadBytes, body, Reason(why));
  plan.Flush();
  uint8_t type_and_length[kHeadBytes];
  Store32(type_and_length, kExtensionRepairNote);
  Store32(type_and_length + 4, kRepairNoteBytes);
  plan.Write(head, type_and_length, Reason(why));
  plan.Flush();
  return true;
}

void PlanNoteWithdrawn(CheckState& state, PlanBuilder& plan) {
  const HeaderExtension* note = FindNote(state);
  if (note == nullptr || !state.kept_by_repair || state.orphan_clusters != 0) return;
  PlanReason reason = Reason("no unreferenced clusters are left");
  reason.finding_offset = HostOffset{note->offset_bytes};
  plan.Write(note->offset_bytes + kHeadBytes, EncodeRepairNote({.keep_orphans = false}), reason);
  plan.Flush();
}

}  // namespace qcow2check

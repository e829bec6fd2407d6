#include "repair/bitmap_writer.h"

#include <algorithm>
#include <optional>

#include "common/byte_order.h"
#include "common/checked_math.h"
#include "common/limits.h"
#include "repair/refcount_structures.h"

namespace qcow2check {
namespace {

constexpr uint64_t kAutoclearField = 88;
constexpr int kUsualGranularityBits = 16;

}  // namespace

// The autoclear bit that says that the bitmaps are up to date.
void BitmapWriter::SetConsistent(bool consistent, const PlanReason& reason) {
  uint8_t bytes[8];
  if (!plan_.image().ReadAt(HostOffset{kAutoclearField}, bytes).ok()) return;
  const uint64_t others = Load64(bytes) & ~uint64_t{kBitmapsConsistent};
  plan_.Flush();
  plan_.Write64(kAutoclearField, others | (consistent ? uint64_t{kBitmapsConsistent} : 0), reason);
  plan_.Flush();
}

void BitmapWriter::MarkInUse(const BitmapEntry& entry, const PlanReason& reason) {
  uint8_t flags[4];
  Store32(flags, (entry.flags & kBitmapAuto) | kBitmapInUse);
  plan_.Flush();
  plan_.Write(entry.offset_bytes + kBitmapFlagsField, flags, reason);
  plan_.Flush();
  const bool granularity_fits = entry.granularity_bits >= kQemuMinGranularityBits &&
                                entry.granularity_bits <= kQemuMaxGranularityBits;
  const uint8_t type_and_granularity[] = {
      kBitmapTypeDirtyTracking,
      granularity_fits ? entry.granularity_bits : uint8_t{kUsualGranularityBits}};
  plan_.Write(entry.offset_bytes + kBitmapTypeField, type_and_granularity, reason);
  plan_.Flush();
}

void BitmapWriter::EmptyTable(const BitmapEntry& entry, const PlanReason& reason) {
  std::vector<uint64_t> used;
  ForEachTableEntry(plan_.image(), entry.table_offset, entry.table_entries,
                    [&](uint64_t index, uint64_t) { used.push_back(index); });
  for (const uint64_t index : used) plan_.Write64(entry.table_offset + index * 8, 0, reason);
  plan_.Flush();
}

void BitmapWriter::WriteDirectory(const BitmapsPlace& place, const std::vector<BitmapEntry>& kept,
                                  const std::vector<BitmapEntry>& emptied,
                                  const PlanReason& reason) {
  std::vector<uint8_t> directory;
  for (const BitmapEntry& entry : kept) {
    std::vector<uint8_t> bytes(entry.length_bytes);
    if (!plan_.image().ReadAt(HostOffset{entry.offset_bytes}, absl::MakeSpan(bytes)).ok()) return;
    directory.insert(directory.end(), bytes.begin(), bytes.end());
  }
  const int bits = state_.geo().cluster_bits;
  RefcountStructures structures(state_, plan_);
  const std::optional<uint64_t> first =
      structures.space().Take(DivideRoundingUp(directory.size(), state_.geo().cluster_size()));
  if (!first) {
    plan_.Decline(reason.code, reason.finding_offset,
                  "there is no free room for a new bitmap directory");
    return;
  }
  if (!structures.Commit(reason)) return;
  for (const BitmapEntry& entry : emptied) {
    MarkInUse(entry, reason);
    EmptyTable(entry, reason);
  }
  plan_.Write(*first << bits, directory, reason);
  plan_.Flush();
  SetExtension(place,
               {.nb_bitmaps = static_cast<uint32_t>(kept.size()),
                .directory_size_bytes = directory.size(),
                .directory_offset = *first << bits},
               reason);
}

// The three fields must change together. Where a sector ends between them, the bitmaps are out of
// date while they change; a crash just then leaves them so.
void BitmapWriter::SetExtension(const BitmapsPlace& place, const BitmapsExtension& fields,
                                const PlanReason& reason) {
  std::vector<uint8_t> bytes(kBitmapsExtensionBytes);
  Store32(bytes.data(), fields.nb_bitmaps);
  Store32(&bytes[4], fields.reserved);
  Store64(&bytes[8], fields.directory_size_bytes);
  Store64(&bytes[16], fields.directory_offset);
  const uint64_t at = place.offset_bytes + kExtensionHeadBytes;
  const bool in_one_sector = at / kSectorBytes == (at + bytes.size() - 1) / kSectorBytes;
  if (!in_one_sector) SetConsistent(false, reason);
  plan_.Flush();
  plan_.Write(at, bytes, reason);
  plan_.Flush();
  if (!in_one_sector) SetConsistent(true, reason);
}

// First what the extension names, then the extension, then the bit that says that there is one:
// wherever this ends, the next repair sees that it must go on.
void BitmapWriter::DropAll(const std::optional<BitmapsPlace>& place, const PlanReason& reason) {
  if (place && place->is_last) {
    const uint64_t data = place->offset_bytes + kExtensionHeadBytes;
    const uint64_t end =
        std::min<uint64_t>(RoundUp(data + place->length_bytes, 8), state_.first_cluster.size());
    plan_.Flush();
    if (end > data) plan_.Write(data, std::vector<uint8_t>(end - data), reason);
    plan_.Flush();
    plan_.Write64(place->offset_bytes, 0, reason);
  }
  SetConsistent(false, reason);
}

}  // namespace qcow2check

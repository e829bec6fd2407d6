#include "checker/cluster_batch.h"

#include <algorithm>
#include <numeric>

namespace qcow2check {

void ClusterBatch::Read(const ImageFile& file, absl::Span<const uint64_t> offsets_bytes,
                        uint64_t length_bytes, Structure structure, PartNotes& notes) {
  const size_t count = offsets_bytes.size();
  pieces_.assign(count, {});
  requests_.clear();
  by_place_.resize(count);
  std::iota(by_place_.begin(), by_place_.end(), 0u);
  std::sort(by_place_.begin(), by_place_.end(),
            [&](uint32_t a, uint32_t b) { return offsets_bytes[a] < offsets_bytes[b]; });
  // The buffer only grows: to fill it with zeros again would cost as much as to read it.
  if (buffer_.size() < count * length_bytes) buffer_.resize(count * length_bytes);
  std::vector<bool> holes;
  if (looks_for_holes_) {
    extents_.clear();
    for (const uint32_t i : by_place_) {
      const uint64_t offset = offsets_bytes[i];
      extents_.push_back({offset, std::min(offset + length_bytes, file.size_bytes())});
    }
    holes = file.FindHoles(extents_);
  }
  size_t used = 0;
  for (size_t at = 0; at < count; ++at) {
    if (looks_for_holes_ && holes[at]) continue;
    const uint32_t i = by_place_[at];
    const uint64_t offset = offsets_bytes[i];
    uint8_t* const place = &buffer_[used];
    pieces_[i].bytes = place;
    used += length_bytes;
    if (!requests_.empty()) {
      ReadRequest& last = requests_.back();
      if (last.offset.bytes + last.dst.size() == offset) {
        last.dst = absl::MakeSpan(last.dst.data(), last.dst.size() + length_bytes);
        continue;
      }
    }
    requests_.push_back({HostOffset{offset}, absl::MakeSpan(place, length_bytes), {}});
  }
  file.ReadMany(absl::MakeSpan(requests_));
  bool all_read = true;
  for (const ReadRequest& request : requests_) {
    ++notes.reads;
    notes.bytes_read += request.dst.size();
    all_read = all_read && request.status.ok();
  }
  if (all_read) return;
  for (const uint32_t i : by_place_) {
    if (pieces_[i].bytes == nullptr) continue;
    uint8_t* const place = &buffer_[static_cast<size_t>(pieces_[i].bytes - buffer_.data())];
    pieces_[i].complete = ReadMetadata(file, HostOffset{offsets_bytes[i]},
                                       absl::MakeSpan(place, length_bytes), structure, notes);
  }
}

}  // namespace qcow2check

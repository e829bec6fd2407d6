// Reads metadata of many small records, one behind the other, in a few larger reads.
#ifndef QCOW2CHECK_CHECKER_METADATA_WINDOW_H_
#define QCOW2CHECK_CHECKER_METADATA_WINDOW_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "checker/check_state.h"

namespace qcow2check {

class MetadataWindow {
 public:
  MetadataWindow(CheckState& state, Structure structure) : state_(state), structure_(structure) {}

  // The `length_bytes` (up to a few KiB) at `offset`, as CheckState::Read gives them: zeros, and a
  // finding, where they cannot be read.
  std::vector<uint8_t> Read(uint64_t offset, uint64_t length_bytes) {
    std::vector<uint8_t> bytes(length_bytes);
    if (!Contains(offset, length_bytes)) Move(offset);
    if (Contains(offset, length_bytes)) {
      std::copy_n(bytes_.begin() + static_cast<int64_t>(offset - begin_), length_bytes,
                  bytes.begin());
    } else if (length_bytes != 0) {
      state_.Read(HostOffset{offset}, absl::MakeSpan(bytes), structure_);
    }
    return bytes;
  }

 private:
  static constexpr uint64_t kLeastBytes = 1u << 10;
  static constexpr uint64_t kMostBytes = 64u << 10;

  bool Contains(uint64_t offset, uint64_t length_bytes) const {
    return offset >= begin_ && offset - begin_ <= bytes_.size() &&
           length_bytes <= bytes_.size() - (offset - begin_);
  }

  // Empty if a sector cannot be read: what the records do not need is no finding.
  void Move(uint64_t offset) {
    // Records that follow each other are worth reading far ahead; others leave large gaps.
    const bool follows = offset >= begin_ && offset - begin_ <= window_bytes_;
    window_bytes_ = follows ? std::min(window_bytes_ * 2, kMostBytes) : kLeastBytes;
    begin_ = offset;
    const uint64_t size = state_.file.size_bytes();
    bytes_.resize(offset < size ? std::min(window_bytes_, size - offset) : 0);
    if (bytes_.empty()) return;
    PartNotes notes = state_.NewPart();
    notes.reads = 1;
    notes.bytes_read = bytes_.size();
    if (!state_.file.ReadAt(HostOffset{offset}, absl::MakeSpan(bytes_)).ok()) bytes_.clear();
    state_.Absorb(std::move(notes));
  }

  CheckState& state_;
  const Structure structure_;
  uint64_t begin_ = 0;
  uint64_t window_bytes_ = kLeastBytes;
  std::vector<uint8_t> bytes_;
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_CHECKER_METADATA_WINDOW_H_

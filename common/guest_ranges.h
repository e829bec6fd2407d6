// A growing set of guest ranges, e.g. "what was lost": merged, sorted, clipped on output.
#ifndef QCOW2CHECK_COMMON_GUEST_RANGES_H_
#define QCOW2CHECK_COMMON_GUEST_RANGES_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/checked_math.h"

namespace qcow2check {

struct GuestRange {
  uint64_t offset_bytes = 0;
  uint64_t length_bytes = 0;

  uint64_t end_bytes() const { return SaturatingAdd(offset_bytes, length_bytes); }
  friend bool operator==(const GuestRange&, const GuestRange&) = default;
};

class GuestRanges {
 public:
  // Adds a range; adjacent additions in ascending order are merged at once.
  void Add(uint64_t offset_bytes, uint64_t length_bytes) {
    if (length_bytes == 0) return;
    if (!ranges_.empty() && ranges_.back().end_bytes() == offset_bytes) {
      ranges_.back().length_bytes = SaturatingAdd(ranges_.back().length_bytes, length_bytes);
      return;
    }
    ranges_.push_back({offset_bytes, length_bytes});
  }

  void Append(const GuestRanges& next) {
    for (const GuestRange& range : next.ranges_) Add(range.offset_bytes, range.length_bytes);
  }

  // The union, sorted, without overlaps, cut at `limit_bytes` (the virtual size).
  std::vector<GuestRange> Merged(uint64_t limit_bytes) const {
    std::vector<GuestRange> sorted = ranges_;
    std::sort(sorted.begin(), sorted.end(), [](const GuestRange& a, const GuestRange& b) {
      return a.offset_bytes < b.offset_bytes;
    });
    std::vector<GuestRange> merged;
    for (const GuestRange& range : sorted) {
      if (range.offset_bytes >= limit_bytes) break;
      const uint64_t end =
          std::min(SaturatingAdd(range.offset_bytes, range.length_bytes), limit_bytes);
      if (!merged.empty() && range.offset_bytes <= merged.back().end_bytes()) {
        const uint64_t new_end = std::max(end, merged.back().end_bytes());
        merged.back().length_bytes = new_end - merged.back().offset_bytes;
      } else {
        merged.push_back({range.offset_bytes, end - range.offset_bytes});
      }
    }
    return merged;
  }

 private:
  std::vector<GuestRange> ranges_;
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_GUEST_RANGES_H_

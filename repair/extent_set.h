// Stretches of a file, merged where they overlap or adjoin.
//
// Adding and asking take logarithmic time; memory: a few words for each merged stretch.
#ifndef QCOW2CHECK_REPAIR_EXTENT_SET_H_
#define QCOW2CHECK_REPAIR_EXTENT_SET_H_

#include <algorithm>
#include <cstdint>
#include <iterator>

#include "absl/container/btree_map.h"

namespace qcow2check {

class ExtentSet {
 public:
  void Add(uint64_t begin_bytes, uint64_t end_bytes) {
    auto it = ends_.upper_bound(begin_bytes);
    if (it != ends_.begin() && std::prev(it)->second >= begin_bytes) --it;
    while (it != ends_.end() && it->first <= end_bytes) {
      begin_bytes = std::min(begin_bytes, it->first);
      end_bytes = std::max(end_bytes, it->second);
      it = ends_.erase(it);
    }
    ends_[begin_bytes] = end_bytes;
  }

  bool empty() const { return ends_.empty(); }
  // Whether any byte of [begin, end) is in the set.
  bool Touches(uint64_t begin_bytes, uint64_t end_bytes) const {
    auto it = ends_.upper_bound(begin_bytes);
    if (it != ends_.begin() && std::prev(it)->second > begin_bytes) return true;
    return it != ends_.end() && it->first < end_bytes;
  }

 private:
  absl::btree_map<uint64_t, uint64_t> ends_;  // by begin
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_REPAIR_EXTENT_SET_H_

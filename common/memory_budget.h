// How much memory the structures that grow with an image may take in all.
#ifndef QCOW2CHECK_COMMON_MEMORY_BUDGET_H_
#define QCOW2CHECK_COMMON_MEMORY_BUDGET_H_

#include <atomic>
#include <cstdint>

namespace qcow2check {

// Thread-safe.
class MemoryBudget {
 public:
  // 0: no limit.
  explicit MemoryBudget(uint64_t limit_bytes = 0)
      : limit_bytes_(limit_bytes == 0 ? ~uint64_t{0} : limit_bytes) {}

  // Says that so many bytes are about to be allocated; false if that would be too much. Whoever
  // gets that answer does without, and the check ends soon (exceeded).
  bool Take(uint64_t bytes) {
    const uint64_t before = taken_bytes_.fetch_add(bytes, std::memory_order_relaxed);
    if (before + bytes <= limit_bytes_) return true;
    exceeded_.store(true, std::memory_order_relaxed);
    return false;
  }

  void GiveBack(uint64_t bytes) { taken_bytes_.fetch_sub(bytes, std::memory_order_relaxed); }

  bool exceeded() const { return exceeded_.load(std::memory_order_relaxed); }

 private:
  const uint64_t limit_bytes_;
  std::atomic<uint64_t> taken_bytes_{0};
  std::atomic<bool> exceeded_{false};
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_MEMORY_BUDGET_H_

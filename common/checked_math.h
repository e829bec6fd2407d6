// Arithmetic on values from an image: saturating, so that a sum or product that does not fit in
// 64 bits becomes the largest number and fails the bounds check that follows it.
#ifndef QCOW2CHECK_COMMON_CHECKED_MATH_H_
#define QCOW2CHECK_COMMON_CHECKED_MATH_H_

#include <cstdint>
#include <limits>

namespace qcow2check {

inline constexpr uint64_t kSaturated = std::numeric_limits<uint64_t>::max();

inline constexpr uint64_t SaturatingAdd(uint64_t a, uint64_t b) {
  uint64_t sum = 0;
  return __builtin_add_overflow(a, b, &sum) ? kSaturated : sum;
}

inline constexpr uint64_t SaturatingMultiply(uint64_t a, uint64_t b) {
  uint64_t product = 0;
  return __builtin_mul_overflow(a, b, &product) ? kSaturated : product;
}

// ceil(value / divisor); divisor > 0.
inline constexpr uint64_t DivideRoundingUp(uint64_t value, uint64_t divisor) {
  return value / divisor + (value % divisor != 0 ? 1 : 0);
}

// The smallest multiple of `unit` (a power of two) that is >= value; saturates.
inline constexpr uint64_t RoundUp(uint64_t value, uint64_t unit) {
  return SaturatingAdd(value, unit - 1) == kSaturated ? kSaturated
                                                      : (value + unit - 1) & ~(unit - 1);
}

inline constexpr bool IsAligned(uint64_t value, uint64_t unit) { return (value & (unit - 1)) == 0; }

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_CHECKED_MATH_H_

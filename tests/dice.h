// Random numbers that are the same everywhere for the same seed.
#ifndef QCOW2CHECK_TESTS_DICE_H_
#define QCOW2CHECK_TESTS_DICE_H_

#include <cstdint>
#include <random>
#include <vector>

namespace qcow2check::testing {

class Dice {
 public:
  explicit Dice(uint64_t seed) : generator_(seed) {}

  uint64_t Below(uint64_t limit) { return generator_() % limit; }
  uint64_t Between(uint64_t low, uint64_t high) { return low + Below(high - low + 1); }
  bool Percent(uint64_t percent) { return Below(100) < percent; }
  template <typename T>
  const T& OneOf(const std::vector<T>& values) {
    return values[Below(values.size())];
  }

 private:
  std::mt19937_64 generator_;
};

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_DICE_H_

// Random structural damage: one accident at a time, from a flipped bit in a pointer to a table
// written over or a file cut off.
#ifndef QCOW2CHECK_TESTS_RANDOM_DAMAGE_H_
#define QCOW2CHECK_TESTS_RANDOM_DAMAGE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "tests/dice.h"
#include "tests/image_places.h"

namespace qcow2check::testing {

// Does one random accident to `bytes`, which began as the image of `places`, and says what it did.
std::string DamageAtRandom(Dice& dice, const ImagePlaces& places, std::vector<uint8_t>& bytes);

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_RANDOM_DAMAGE_H_

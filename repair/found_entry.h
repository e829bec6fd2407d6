// An L1 or L2 entry that a finding is about, and which findings are about what of it.
#ifndef QCOW2CHECK_REPAIR_FOUND_ENTRY_H_
#define QCOW2CHECK_REPAIR_FOUND_ENTRY_H_

#include <cstdint>

#include "common/finding.h"

namespace qcow2check {

struct FoundEntry {
  const Finding& finding;
  uint64_t place_bytes = 0;
  uint64_t l2_index = 0;  // of an L2 entry
  uint64_t entry = 0;
  uint64_t bitmap_word = 0;  // of an extended L2 entry
  GuestOffset guest;
  bool is_l1 = false;
};

// Where the entry leads.
bool IsAboutTarget(FindingCode code);
// Its flags and reserved bits.
bool IsAboutFlags(FindingCode code);
// That others lead to the same place.
bool IsAboutCollision(FindingCode code);
// That more lead to a place than its refcount says.
bool IsAboutTooFew(FindingCode code);

// An entry of an L1 table, not of an L2 table.
bool IsL1(const Finding& finding);

}  // namespace qcow2check

#endif  // QCOW2CHECK_REPAIR_FOUND_ENTRY_H_

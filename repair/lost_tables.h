// L2 tables that are none: what the walk found to be something else, and those that lie on other
// metadata that is what it should be.
#ifndef QCOW2CHECK_REPAIR_LOST_TABLES_H_
#define QCOW2CHECK_REPAIR_LOST_TABLES_H_

#include <cstdint>
#include <vector>

#include "checker/check_state.h"
#include "common/image_file.h"
#include "repair/stored_refcounts.h"

namespace qcow2check {

struct LostTable {
  const Finding* finding = nullptr;  // of the state; says why it is none
  uint64_t offset_bytes = 0;
  uint64_t l1_index = 0;
};

// Each once, in the order of the findings. Only what is certain. Reads the tables in question.
std::vector<LostTable> FindLostTables(const CheckState& state, const ImageFile& image,
                                      const StoredRefcounts& stored);

}  // namespace qcow2check

#endif  // QCOW2CHECK_REPAIR_LOST_TABLES_H_

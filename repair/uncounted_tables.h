// Tables that are in use though no reference to them is counted.
#ifndef QCOW2CHECK_REPAIR_UNCOUNTED_TABLES_H_
#define QCOW2CHECK_REPAIR_UNCOUNTED_TABLES_H_

#include "checker/check_state.h"
#include "repair/extent_set.h"

namespace qcow2check {

// The places of L1 tables that the file ends inside, as the header and the snapshots have them, and
// of a snapshot table that cannot be read. The clusters look like orphans, or like free ones, but a
// reader goes through what is there of the tables: they must not be freed, nor may anything else be
// put there, also where the file was cut off. Of a snapshot table only the start is known, or the
// start of the first entry that cannot be read.
ExtentSet UncountedTables(const CheckState& state);

}  // namespace qcow2check

#endif  // QCOW2CHECK_REPAIR_UNCOUNTED_TABLES_H_

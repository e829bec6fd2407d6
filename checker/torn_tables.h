// L2 tables of which a part is zero that once held mappings.
#ifndef QCOW2CHECK_CHECKER_TORN_TABLES_H_
#define QCOW2CHECK_CHECKER_TORN_TABLES_H_

#include <vector>

#include "checker/check_state.h"
#include "checker/orphan_tables.h"

namespace qcow2check {

// Reports tables that are zero behind their last entry, or in whole sectors before an entry, while
// the clusters that would come next, or before, are orphans, or counted more often than they are
// referenced: as after a write that was cut off, or sectors that were lost. Not if those begin with
// one of `orphan_tables`, or with what one of them maps: then it is that table that was lost. Needs
// the orphans. Reads the L2 tables once more, if there are enough such clusters side by side.
void ReportTornL2Tables(CheckState& state, const std::vector<OrphanTable>& orphan_tables);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CHECKER_TORN_TABLES_H_

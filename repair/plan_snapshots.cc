// Snapshots: the table's place and length, its entries, their L1 tables.
#include "repair/planners.h"

namespace qcow2check {

void PlanSnapshots(CheckState&, PlanBuilder&) {}

}  // namespace qcow2check

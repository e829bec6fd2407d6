// The planner: from an image to a plan that repairs it. Pure: it reads, and writes nothing.
#ifndef QCOW2CHECK_REPAIR_PLAN_H_
#define QCOW2CHECK_REPAIR_PLAN_H_

#include "common/image_file.h"
#include "repair/repair_plan.h"

namespace qcow2check {

// Plans the repair of the image in `file`. Damage is repaired on a copy in memory of what changes
// (PatchedFile), which is checked again after each kind of repair until nothing is left that could
// be proven; so what the plan leads to has been checked before a byte is written. The same image
// gives the same plan. Memory: the bytes that change, before and after. An empty plan if there is
// nothing to do; what is left undone is in `declined`.
Plan MakePlan(const ImageFile& file, const RepairOptions& options);

}  // namespace qcow2check

#endif  // QCOW2CHECK_REPAIR_PLAN_H_

// The planner: from an image to a plan that repairs it. Pure: it reads, and writes nothing.
#ifndef QCOW2CHECK_REPAIR_PLAN_H_
#define QCOW2CHECK_REPAIR_PLAN_H_

#include "checker/check.h"
#include "checker/report.h"
#include "common/image_file.h"
#include "repair/repair_plan.h"

namespace qcow2check {

// Plans the repair of the image in `file`. Damage is repaired on a copy in memory of what changes
// (PatchedFile), which is checked again after each kind of repair until nothing is left that could
// be proven; so what the plan leads to has been checked before a byte is written. The same image
// gives the same plan, and one repair is enough: what only the end of a plan makes possible is a
// part of it. Memory: the bytes that change, before and after, and once more if there are such
// parts. Cost: a check for each kind of damage that there is, and one or two. An empty plan if
// there is nothing to do; what is left undone is in `declined`.
Plan MakePlan(const ImageFile& file, const RepairOptions& options);

struct PlanAndReport {
  Plan plan;
  Report report;  // of the image as it is
};

// A check of the image, as CheckImage does it, and a plan of its repair. One check does for both
// unless that has to look at more than the metadata. Of findings that are too many to be all
// listed, some may have no owners that CheckImage would name.
PlanAndReport CheckAndPlan(const ImageFile& file, const CheckOptions& check,
                           const RepairOptions& options);

}  // namespace qcow2check

#endif  // QCOW2CHECK_REPAIR_PLAN_H_

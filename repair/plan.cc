#include "repair/plan.h"

namespace qcow2check {

Plan MakePlan(const ImageFile& file, const RepairOptions&) {
  Plan plan;
  plan.old_size_bytes = plan.new_size_bytes = file.size_bytes();
  return plan;
}

}  // namespace qcow2check

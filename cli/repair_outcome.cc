#include "cli/repair_outcome.h"

namespace qcow2check {

absl::string_view NameOf(RepairMode mode) { return mode == RepairMode::kAll ? "all" : "leaks"; }

void ForEachWrite(const Plan& plan,
                  absl::FunctionRef<void(uint64_t step, const PlannedWrite& write)> visit) {
  uint64_t step = 0;
  for (const PlanStep& planned : plan.steps) {
    ++step;
    for (const PlannedWrite& write : planned.writes) visit(step, write);
  }
  for (const PlannedWrite& write : plan.closing.writes) visit(step + 1, write);
}

bool LosesData(const Plan& plan) {
  bool loses = !plan.lost_guest_ranges.empty();
  ForEachWrite(plan, [&loses](uint64_t, const PlannedWrite& write) {
    loses |= write.reason.safety == RepairSafety::kLossy;
  });
  return loses;
}

bool CopiesSharedData(const Plan& plan) {
  bool copies = false;
  ForEachWrite(plan, [&copies](uint64_t, const PlannedWrite& write) {
    copies |= write.reason.action == RepairAction::kCopyOut;
  });
  return copies;
}

}  // namespace qcow2check

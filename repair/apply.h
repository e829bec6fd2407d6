// Writing an image: the only file that does. A plan's steps, each write after a look at what is
// there now; and the old bytes, for an undo.
#ifndef QCOW2CHECK_REPAIR_APPLY_H_
#define QCOW2CHECK_REPAIR_APPLY_H_

#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "checker/check.h"
#include "checker/report.h"
#include "common/image_file.h"
#include "repair/repair_plan.h"

namespace qcow2check {

struct ApplyResult {
  absl::Status status;
  bool changed = false;  // whether the image may have been changed
  // Of step 3, if nothing was written to the image behind it.
  std::optional<Report> report;
};

// Carries out `plan` on the image that it was made for:
//   1. writes the undo log and flushes it (nullptr: no log),
//   2. writes the steps, with a flush behind each,
//   3. checks the image; only if nothing is wrong but what the plan leaves,
//   4. writes the closing step, punches the discards, and marks the log as finished.
// Stops at the first error, with the image as the log describes it. kAborted: the image is not
// what the plan was made for. `check`: without verify_data, which a plan says nothing about.
//
// Cost: a check, and for each stretch of sectors that a step writes a read and a write, of up to
// 1 MiB; a flush for each step.
ApplyResult ApplyPlan(WritableImageFile& image, const Plan& plan, WritableImageFile* undo_log,
                      const CheckOptions& check = {});

// One step, flushed at the end. kAborted, before the write in question, if old bytes differ.
absl::Status ApplyStep(WritableImageFile& image, const PlanStep& step);

// For undo (repair/undo.h): bytes and length as they were. Flushed by FlushRestored.
absl::Status RestoreBytes(WritableImageFile& image, HostOffset offset,
                          absl::Span<const uint8_t> bytes);
absl::Status RestoreSize(WritableImageFile& image, uint64_t size_bytes);
absl::Status FlushRestored(WritableImageFile& image);

}  // namespace qcow2check

#endif  // QCOW2CHECK_REPAIR_APPLY_H_

// Checking an image that a program is writing (-U): what looks wrong is looked at again.
#ifndef QCOW2CHECK_CHECKER_SECOND_LOOK_H_
#define QCOW2CHECK_CHECKER_SECOND_LOOK_H_

#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "checker/check.h"
#include "checker/report.h"
#include "common/image_file.h"

namespace qcow2check {

// Opens the image for one look: each look must see the file's length of its own time, if it can
// change.
using OpenImage = std::function<absl::StatusOr<std::shared_ptr<const ImageFile>>()>;

// Checks until nothing is wrong, or two looks in a row find the same. A writer's half-done change
// differs from look to look; damage stays. If the looks never agree, the report has only what the
// last two have in common (of the findings that are listed), and the finding image-changing, which
// makes the verdict incomplete.
Report CheckChangingImage(const OpenImage& open, const CheckOptions& options);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CHECKER_SECOND_LOOK_H_

// What a plan does to each sector of an image: the bytes before, and every version on the way.
#ifndef QCOW2CHECK_REPAIR_SECTOR_HISTORY_H_
#define QCOW2CHECK_REPAIR_SECTOR_HISTORY_H_

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "common/image_file.h"
#include "repair/repair_plan.h"

namespace qcow2check {

// The versions of a sector (what a disk writes whole or not at all) after the one before the
// repair.
struct SectorVersions {
  std::vector<uint64_t> written;  // digests after each write, in order
  bool discarded = false;         // may read as zeros at the end
};

// A stretch of whole sectors that a plan changes. What lies behind the end of a file reads as
// zeros.
struct SectorHistory {
  uint64_t offset_bytes = 0;
  std::vector<uint8_t> old_bytes;
  std::vector<SectorVersions> sectors;
};

// A history is at most this long.
inline constexpr uint64_t kMaxHistoryBytes = 1 << 20;

// Calls `visit` for each stretch that `plan` writes, discards or adds to the file, in the order of
// their offsets, without overlaps; stops at the first error. kAborted if the image does not hold
// what the plan expects. Memory: one stretch, and two numbers for each write.
absl::Status ForEachHistory(const ImageFile& image, const Plan& plan,
                            absl::FunctionRef<absl::Status(const SectorHistory&)> visit);

}  // namespace qcow2check

#endif  // QCOW2CHECK_REPAIR_SECTOR_HISTORY_H_

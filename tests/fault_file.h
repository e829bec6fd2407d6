// A file that fails the way disks and file systems fail: sectors that cannot be read, and a length
// that is not what the bytes are.
#ifndef QCOW2CHECK_TESTS_FAULT_FILE_H_
#define QCOW2CHECK_TESTS_FAULT_FILE_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "common/image_file.h"
#include "common/memory_file.h"

namespace qcow2check::testing {

// Not thread-safe while faults are added; reading is.
class FaultFile : public ImageFile {
 public:
  explicit FaultFile(std::vector<uint8_t> bytes) : file_(std::move(bytes)) {}

  // Every read that touches one of these bytes fails (kDataLoss).
  void Break(uint64_t offset, uint64_t length) { broken_.push_back({offset, offset + length}); }

  // The file says that it is this long. Longer than its bytes: the rest reads as zeros, as a sparse
  // file, or one that was cut off after it was opened. Shorter: bytes behind the length are zeros.
  void ClaimSize(uint64_t size) { claimed_size_ = size; }

  uint64_t size_bytes() const override { return claimed_size_.value_or(file_.size_bytes()); }
  absl::Status ReadAt(HostOffset offset, absl::Span<uint8_t> dst) const override;

 private:
  MemoryFile file_;
  std::vector<Extent> broken_;
  std::optional<uint64_t> claimed_size_;
};

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_FAULT_FILE_H_

// An image in memory, for tests and fuzzing.
#ifndef QCOW2CHECK_COMMON_MEMORY_FILE_H_
#define QCOW2CHECK_COMMON_MEMORY_FILE_H_

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "common/image_file.h"

namespace qcow2check {

class MemoryFile : public ImageFile {
 public:
  explicit MemoryFile(std::vector<uint8_t> bytes) : bytes_(std::move(bytes)) {}

  uint64_t size_bytes() const override { return bytes_.size(); }

  absl::Status ReadAt(HostOffset offset, absl::Span<uint8_t> dst) const override {
    const uint64_t begin = std::min<uint64_t>(offset.bytes, bytes_.size());
    const uint64_t count = std::min<uint64_t>(dst.size(), bytes_.size() - begin);
    std::copy_n(bytes_.begin() + static_cast<int64_t>(begin), count, dst.begin());
    std::fill(dst.begin() + static_cast<int64_t>(count), dst.end(), uint8_t{0});
    return absl::OkStatus();
  }

 private:
  std::vector<uint8_t> bytes_;
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_MEMORY_FILE_H_

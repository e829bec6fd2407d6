// An image in memory, for tests and fuzzing.
#ifndef QCOW2CHECK_COMMON_MEMORY_FILE_H_
#define QCOW2CHECK_COMMON_MEMORY_FILE_H_

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "common/check.h"
#include "common/image_file.h"

namespace qcow2check {

class MemoryFile : public WritableImageFile {
 public:
  explicit MemoryFile(std::vector<uint8_t> bytes) : bytes_(std::move(bytes)) {}

  const std::vector<uint8_t>& bytes() const { return bytes_; }

  uint64_t size_bytes() const override { return bytes_.size(); }

  absl::Status ReadAt(HostOffset offset, absl::Span<uint8_t> dst) const override {
    const uint64_t begin = std::min<uint64_t>(offset.bytes, bytes_.size());
    const uint64_t count = std::min<uint64_t>(dst.size(), bytes_.size() - begin);
    std::copy_n(bytes_.begin() + static_cast<int64_t>(begin), count, dst.begin());
    std::fill(dst.begin() + static_cast<int64_t>(count), dst.end(), uint8_t{0});
    return absl::OkStatus();
  }

  absl::Status WriteAt(HostOffset offset, absl::Span<const uint8_t> src) override {
    QCOW2CHECK_CHECK(offset.bytes <= bytes_.size() && src.size() <= bytes_.size() - offset.bytes);
    std::copy(src.begin(), src.end(), bytes_.begin() + static_cast<int64_t>(offset.bytes));
    return absl::OkStatus();
  }

  absl::Status Resize(uint64_t size_bytes) override {
    bytes_.resize(size_bytes);
    return absl::OkStatus();
  }

  absl::Status Discard(const Extent& extent) override {
    const uint64_t end = std::min<uint64_t>(extent.end_bytes, bytes_.size());
    const uint64_t begin = std::min(extent.begin_bytes, end);
    std::fill(bytes_.begin() + static_cast<int64_t>(begin),
              bytes_.begin() + static_cast<int64_t>(end), uint8_t{0});
    return absl::OkStatus();
  }

  absl::Status Flush() override { return absl::OkStatus(); }

 private:
  std::vector<uint8_t> bytes_;
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_MEMORY_FILE_H_

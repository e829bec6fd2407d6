// A file that counts what is read from it.
#ifndef QCOW2CHECK_TESTS_COUNTING_FILE_H_
#define QCOW2CHECK_TESTS_COUNTING_FILE_H_

#include <atomic>
#include <cstdint>

#include "absl/types/span.h"
#include "common/image_file.h"

namespace qcow2check::testing {

class CountingFile : public ImageFile {
 public:
  // `file` must outlive this object.
  explicit CountingFile(const ImageFile& file) : file_(file) {}

  uint64_t reads() const { return reads_; }
  uint64_t bytes_read() const { return bytes_read_; }

  uint64_t size_bytes() const override { return file_.size_bytes(); }
  absl::Status ReadAt(HostOffset offset, absl::Span<uint8_t> dst) const override {
    ++reads_;
    bytes_read_ += dst.size();
    return file_.ReadAt(offset, dst);
  }
  Extent NextData(HostOffset offset) const override { return file_.NextData(offset); }
  bool IsHole(const Extent& extent) const override { return file_.IsHole(extent); }

 private:
  const ImageFile& file_;
  mutable std::atomic<uint64_t> reads_{0};
  mutable std::atomic<uint64_t> bytes_read_{0};
};

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_COUNTING_FILE_H_

// A file that fails the way disks and file systems fail: sectors that cannot be read, reads that
// fail once or take their time, a length that is not what the bytes are, bytes that another program
// takes away meanwhile. For writes that fail see FailingFile (tests/recording_file.h).
#ifndef QCOW2CHECK_TESTS_FAULT_FILE_H_
#define QCOW2CHECK_TESTS_FAULT_FILE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "common/image_file.h"
#include "common/memory_file.h"
#include "tests/sparse_file.h"

namespace qcow2check::testing {

// Not thread-safe while faults are added; reading is.
class FaultFile : public WritableImageFile {
 public:
  explicit FaultFile(std::vector<uint8_t> bytes)
      : file_(std::make_unique<MemoryFile>(std::move(bytes))) {}
  // Its holes are known.
  explicit FaultFile(SparseFile file) : file_(std::make_unique<SparseFile>(std::move(file))) {}

  // Every read that touches one of these bytes fails (kDataLoss).
  void Break(uint64_t offset, uint64_t length) { broken_.push_back({offset, offset + length}); }

  // Reads are numbered from 0. These fail (kDataLoss), whatever they are of.
  void FailReads(uint64_t first, uint64_t count = 1) { failing_ = {first, first + count}; }

  // From read number `read` on the file is `size` bytes long. It still says how long it was when it
  // was opened, as files do; what is gone reads as zeros.
  void ResizeAtRead(uint64_t read, uint64_t size) {
    resized_at_ = read;
    size_then_ = size;
  }

  // The file says that it is this long. Longer than its bytes: the rest reads as zeros, as in a
  // sparse file. Shorter: bytes behind the length are zeros.
  void ClaimSize(uint64_t size) { claimed_size_ = size; }

  // Every read takes so long at least.
  void SlowDown(absl::Duration time_of_a_read) { time_of_a_read_ = time_of_a_read; }

  uint64_t reads() const { return reads_; }
  uint64_t bytes_read() const { return bytes_read_; }
  // The whole file.
  std::vector<uint8_t> bytes() const;

  uint64_t size_bytes() const override { return claimed_size_.value_or(file_->size_bytes()); }
  absl::Status ReadAt(HostOffset offset, absl::Span<uint8_t> dst) const override;
  absl::Status availability() const override;
  Extent NextData(HostOffset offset) const override;
  uint64_t allocated_bytes() const override;
  absl::Status WriteAt(HostOffset offset, absl::Span<const uint8_t> src) override {
    return file_->WriteAt(offset, src);
  }
  absl::Status Resize(uint64_t size_bytes) override { return file_->Resize(size_bytes); }
  absl::Status Discard(const Extent& extent) override { return file_->Discard(extent); }
  absl::Status Flush() override { return file_->Flush(); }

 private:
  // Of what can be read now.
  uint64_t SizeAt(uint64_t read) const;

  std::unique_ptr<WritableImageFile> file_;
  std::vector<Extent> broken_;
  std::pair<uint64_t, uint64_t> failing_ = {0, 0};  // [first, end)
  uint64_t resized_at_ = UINT64_MAX;
  uint64_t size_then_ = 0;
  std::optional<uint64_t> claimed_size_;
  absl::Duration time_of_a_read_;
  mutable std::atomic<uint64_t> reads_ = 0;
  mutable std::atomic<uint64_t> bytes_read_ = 0;
};

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_FAULT_FILE_H_

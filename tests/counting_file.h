// A sparse image file in a directory of its own that counts what is done to it.
#ifndef QCOW2CHECK_TESTS_COUNTING_FILE_H_
#define QCOW2CHECK_TESTS_COUNTING_FILE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "common/image_file.h"
#include "common/writable_posix_file.h"
#include "tests/program.h"

namespace qcow2check::testing {

class CountingFile : public WritableImageFile {
 public:
  // Empty.
  CountingFile();

  const std::string& path() const { return path_; }

  uint64_t reads() const { return reads_; }
  uint64_t bytes_read() const { return bytes_read_; }
  uint64_t writes() const { return writes_; }
  uint64_t flushes() const { return flushes_; }
  // Counts from 0 again.
  void Restart() { reads_ = bytes_read_ = writes_ = flushes_ = 0; }

  uint64_t size_bytes() const override { return file_->size_bytes(); }
  absl::Status ReadAt(HostOffset offset, absl::Span<uint8_t> dst) const override;
  void ReadMany(absl::Span<ReadRequest> requests) const override;
  Extent NextData(HostOffset offset) const override { return file_->NextData(offset); }
  uint64_t allocated_bytes() const override { return file_->allocated_bytes(); }
  bool IsHole(const Extent& extent) const override;
  absl::Status WriteAt(HostOffset offset, absl::Span<const uint8_t> src) override;
  absl::Status Resize(uint64_t size_bytes) override { return file_->Resize(size_bytes); }
  absl::Status Discard(const Extent& extent) override { return file_->Discard(extent); }
  absl::Status Flush() override;

 private:
  TempDir dir_;
  std::string path_;
  std::unique_ptr<WritablePosixFile> file_;
  mutable std::atomic<uint64_t> reads_ = 0;
  mutable std::atomic<uint64_t> bytes_read_ = 0;
  uint64_t writes_ = 0;
  uint64_t flushes_ = 0;
};

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_COUNTING_FILE_H_

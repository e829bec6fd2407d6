// A file in memory that may be as long as an image claims to be, for inputs that are small and
// claim much: only what is written takes memory, in pages of 4 KiB. As on most file systems zeros
// that are written over something else stay data; those that are written into a hole leave it one.
#ifndef QCOW2CHECK_TESTS_SPARSE_FILE_H_
#define QCOW2CHECK_TESTS_SPARSE_FILE_H_

#include <array>
#include <cstdint>
#include <map>
#include <vector>

#include "absl/types/span.h"
#include "common/image_file.h"

namespace qcow2check::testing {

class SparseFile : public WritableImageFile {
 public:
  static constexpr uint64_t kPageBytes = 4096;

  SparseFile() = default;
  explicit SparseFile(uint64_t size_bytes) : size_bytes_(size_bytes) {}
  explicit SparseFile(absl::Span<const uint8_t> bytes);

  // Whether they have the same length and the same bytes.
  friend bool operator==(const SparseFile& a, const SparseFile& b);

  // What the file takes on a disk.
  uint64_t stored_bytes() const { return pages_.size() * kPageBytes; }
  // Any length; what is behind the end reads as zeros.
  std::vector<uint8_t> Bytes(uint64_t offset_bytes, uint64_t length_bytes) const;
  // The whole file.
  std::vector<uint8_t> Bytes() const { return Bytes(0, size_bytes_); }
  uint64_t Word(uint64_t offset_bytes) const;  // big endian, 8 bytes

  uint64_t size_bytes() const override { return size_bytes_; }
  absl::Status ReadAt(HostOffset offset, absl::Span<uint8_t> dst) const override;
  Extent NextData(HostOffset offset) const override;
  uint64_t allocated_bytes() const override { return stored_bytes(); }
  absl::Status WriteAt(HostOffset offset, absl::Span<const uint8_t> src) override;
  absl::Status Resize(uint64_t size_bytes) override;
  absl::Status Discard(const Extent& extent) override;
  absl::Status Flush() override { return absl::OkStatus(); }

 private:
  using Page = std::array<uint8_t, kPageBytes>;

  uint64_t size_bytes_ = 0;
  std::map<uint64_t, Page> pages_;  // by number
};

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_SPARSE_FILE_H_

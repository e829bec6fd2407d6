// An image as it will be after the writes planned so far: the file itself, with changed bytes,
// copied clusters and a new length kept in memory.
//
// The planner checks it like any image: what was not changed is read from the file as fast as
// without it. Memory: a page of 4 KiB for each page with changed bytes, neighbours that are equal
// as a whole sharing one; copies of data cost only a record each.
#ifndef QCOW2CHECK_REPAIR_PATCHED_FILE_H_
#define QCOW2CHECK_REPAIR_PATCHED_FILE_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>

#include "absl/container/btree_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/image_file.h"

namespace qcow2check {

class PatchedFile : public ImageFile {
 public:
  // `base` must outlive this object.
  explicit PatchedFile(const ImageFile& base) : base_(&base), size_bytes_(base.size_bytes()) {}

  uint64_t size_bytes() const override { return size_bytes_; }
  absl::Status ReadAt(HostOffset offset, absl::Span<uint8_t> dst) const override;
  void ReadMany(absl::Span<ReadRequest> requests) const override;
  bool is_remote() const override { return base_->is_remote(); }
  absl::Status availability() const override { return base_->availability(); }
  uint64_t allocated_bytes() const override { return base_->allocated_bytes(); }
  bool IsHole(const Extent& extent) const override;
  std::vector<bool> FindHoles(absl::Span<const Extent> extents) const override;
  Extent NextData(HostOffset offset) const override;

  // Keeps the pages of which [offset, offset + length) is only a part: no Patch inside it can fail
  // from now on. Error if they cannot be read.
  absl::Status HoldEdges(uint64_t offset_bytes, uint64_t length_bytes);
  // Bytes [offset, offset + size) become `bytes`. Error, and nothing changed, if a page that is
  // changed in part cannot be read.
  absl::Status Patch(uint64_t offset_bytes, absl::Span<const uint8_t> bytes);
  // Bytes [to, to + length) become those of the base file at `from`. All three are multiples of
  // 512 bytes; nothing in [to, to + length) was patched before.
  void PatchCopy(uint64_t from_bytes, uint64_t to_bytes, uint64_t length_bytes);
  void Grow(uint64_t size_bytes) { size_bytes_ = size_bytes; }

  // How many reads of the base file have failed, by way of this object or a copy of it.
  uint64_t failed_reads() const { return *failed_reads_; }

  bool IsPatched(uint64_t offset_bytes, uint64_t length_bytes) const;

 private:
  static constexpr uint64_t kPageBytes = 4096;
  using Page = std::array<uint8_t, kPageBytes>;

  struct Copy {
    uint64_t from_bytes = 0;
    uint64_t length_bytes = 0;
  };

  // Whether there is a byte to read that lies in no page here, and not behind the base's end.
  bool NeedsBase(const ReadRequest& request) const;
  // Puts what was changed over what the base file has.
  absl::Status PutCopies(HostOffset offset, absl::Span<uint8_t> dst) const;
  void PutPages(HostOffset offset, absl::Span<uint8_t> dst) const;
  // The page at this offset as it reads now, shared with no other.
  absl::StatusOr<Page*> OwnPage(uint64_t page);
  // The first copy that ends behind `offset_bytes`.
  absl::btree_map<uint64_t, Copy>::const_iterator FirstCopy(uint64_t offset_bytes) const;

  const ImageFile* base_;
  uint64_t size_bytes_;
  std::shared_ptr<std::atomic<uint64_t>> failed_reads_ = std::make_shared<std::atomic<uint64_t>>(0);
  // By offset, a multiple of the page size. Never changed while shared.
  absl::btree_map<uint64_t, std::shared_ptr<Page>> pages_;
  absl::btree_map<uint64_t, Copy> copies_;  // by target offset
};

// Whether [offset, offset + length) reads as zeros. False if it cannot be read.
bool ReadsAsZeros(const ImageFile& file, uint64_t offset_bytes, uint64_t length_bytes);

// The same for one stretch after the other, in ascending order: the file is asked for each hole
// once. The file must not change meanwhile.
class ZeroSearch {
 public:
  // `file` must outlive this object.
  explicit ZeroSearch(const ImageFile& file) : file_(file) {}

  bool ReadsAsZeros(uint64_t offset_bytes, uint64_t length_bytes);

 private:
  const ImageFile& file_;
  Extent hole_;  // the last one found
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_REPAIR_PATCHED_FILE_H_

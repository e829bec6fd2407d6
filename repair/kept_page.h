// Records that are read one after the other, many to a page: the page is read once.
#ifndef QCOW2CHECK_REPAIR_KEPT_PAGE_H_
#define QCOW2CHECK_REPAIR_KEPT_PAGE_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "common/image_file.h"

namespace qcow2check {

// A file that keeps the last page that was read of it. The file must not change meanwhile. A page
// is as much as a disk fails to read at once: nothing is lost that a shorter read would get. Not
// thread-safe.
class KeptPage : public ImageFile {
 public:
  // `file` must outlive this object.
  explicit KeptPage(const ImageFile& file) : file_(file) {}

  uint64_t size_bytes() const override { return file_.size_bytes(); }
  absl::Status ReadAt(HostOffset offset, absl::Span<uint8_t> dst) const override {
    const uint64_t page = offset.bytes / kPageBytes * kPageBytes;
    const uint64_t begin = offset.bytes - page;
    if (dst.size() > kPageBytes - begin) return file_.ReadAt(offset, dst);
    if (bytes_.empty() || page != page_) {
      page_ = page;
      bytes_.resize(kPageBytes);
      absl::Status status = file_.ReadAt(HostOffset{page}, absl::MakeSpan(bytes_));
      if (!status.ok()) {
        bytes_.clear();
        return status;
      }
    }
    std::copy_n(&bytes_[begin], dst.size(), dst.begin());
    return absl::OkStatus();
  }
  absl::Status availability() const override { return file_.availability(); }
  Extent NextData(HostOffset offset) const override { return file_.NextData(offset); }

 private:
  static constexpr uint64_t kPageBytes = 4096;

  const ImageFile& file_;
  mutable uint64_t page_ = 0;
  mutable std::vector<uint8_t> bytes_;  // of the page; empty if none is kept
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_REPAIR_KEPT_PAGE_H_

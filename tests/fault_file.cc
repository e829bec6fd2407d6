#include "tests/fault_file.h"

#include <algorithm>

#include "absl/strings/str_format.h"

namespace qcow2check::testing {

absl::Status FaultFile::ReadAt(HostOffset offset, absl::Span<uint8_t> dst) const {
  const uint64_t end = offset.bytes + dst.size();
  for (const Extent& bad : broken_) {
    if (offset.bytes < bad.end_bytes && bad.begin_bytes < end) {
      return absl::DataLossError(absl::StrFormat("bad sector at 0x%x", bad.begin_bytes));
    }
  }
  const uint64_t size = size_bytes();
  const uint64_t inside =
      offset.bytes < size ? std::min<uint64_t>(dst.size(), size - offset.bytes) : 0;
  std::fill(dst.begin() + static_cast<int64_t>(inside), dst.end(), uint8_t{0});
  return file_.ReadAt(offset, dst.first(inside));
}

}  // namespace qcow2check::testing

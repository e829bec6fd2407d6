#include "tests/fault_file.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/types/span.h"
#include "common/check.h"

namespace qcow2check::testing {

std::vector<uint8_t> FaultFile::bytes() const {
  std::vector<uint8_t> bytes(file_->size_bytes());
  QCOW2CHECK_CHECK(file_->ReadAt(HostOffset{0}, absl::MakeSpan(bytes)).ok());
  return bytes;
}

uint64_t FaultFile::SizeAt(uint64_t read) const {
  return read < resized_at_ ? size_bytes() : std::min(size_then_, size_bytes());
}

absl::Status FaultFile::ReadAt(HostOffset offset, absl::Span<uint8_t> dst) const {
  const uint64_t read = reads_++;
  bytes_read_ += dst.size();
  if (time_of_a_read_ != absl::ZeroDuration()) absl::SleepFor(time_of_a_read_);
  if (failing_.first <= read && read < failing_.second) {
    return absl::DataLossError(absl::StrFormat("bad luck at 0x%x", offset.bytes));
  }
  const uint64_t end = offset.bytes + dst.size();
  for (const Extent& bad : broken_) {
    if (offset.bytes < bad.end_bytes && bad.begin_bytes < end) {
      return absl::DataLossError(absl::StrFormat("bad sector at 0x%x", bad.begin_bytes));
    }
  }
  const uint64_t size = SizeAt(read);
  const uint64_t inside =
      offset.bytes < size ? std::min<uint64_t>(dst.size(), size - offset.bytes) : 0;
  std::fill(dst.begin() + static_cast<int64_t>(inside), dst.end(), uint8_t{0});
  return file_->ReadAt(offset, dst.first(inside));
}

absl::Status FaultFile::availability() const {
  if (reads_ <= resized_at_ || size_then_ == size_bytes()) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrFormat("%d bytes long instead of %d", size_then_, size_bytes()));
}

Extent FaultFile::NextData(HostOffset offset) const {
  return claimed_size_ ? ImageFile::NextData(offset) : file_->NextData(offset);
}

uint64_t FaultFile::allocated_bytes() const {
  return claimed_size_ ? size_bytes() : file_->allocated_bytes();
}

}  // namespace qcow2check::testing

#include "tests/counting_file.h"

#include <utility>

#include "absl/status/statusor.h"
#include "common/check.h"

namespace qcow2check::testing {

CountingFile::CountingFile() : path_(dir_.Path("image")) {
  // Only who may give a file away looks at the other one.
  constexpr int kLikeNoOther = -1;
  absl::StatusOr<std::unique_ptr<WritablePosixFile>> file =
      WritablePosixFile::Create(path_, kLikeNoOther);
  QCOW2CHECK_CHECK(file.ok());
  file_ = *std::move(file);
}

absl::Status CountingFile::ReadAt(HostOffset offset, absl::Span<uint8_t> dst) const {
  ++reads_;
  bytes_read_ += dst.size();
  return file_->ReadAt(offset, dst);
}

void CountingFile::ReadMany(absl::Span<ReadRequest> requests) const {
  for (const ReadRequest& request : requests) {
    ++reads_;
    bytes_read_ += request.dst.size();
  }
  file_->ReadMany(requests);
}

// A file that was made here and never closed does not know that it has holes.
bool CountingFile::IsHole(const Extent& extent) const {
  const Extent data = file_->NextData(HostOffset{extent.begin_bytes});
  return data.empty() || data.begin_bytes >= extent.end_bytes;
}

absl::Status CountingFile::WriteAt(HostOffset offset, absl::Span<const uint8_t> src) {
  ++writes_;
  return file_->WriteAt(offset, src);
}

absl::Status CountingFile::Flush() {
  ++flushes_;
  return file_->Flush();
}

}  // namespace qcow2check::testing

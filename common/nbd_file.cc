#include "common/nbd_file.h"

#include <algorithm>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace qcow2check {
namespace {

// Of one request: lengths have 32 bits, and a server that writes the zeros should not be busy with
// one for long.
constexpr uint64_t kMostZeroBytes = uint64_t{1} << 30;

}  // namespace

bool IsNbdUri(absl::string_view name) {
  constexpr absl::string_view kSchemes[] = {"nbd://", "nbds://", "nbd+unix://", "nbds+unix://"};
  return absl::c_any_of(
      kSchemes, [name](absl::string_view scheme) { return absl::StartsWith(name, scheme); });
}

absl::StatusOr<std::unique_ptr<NbdFile>> NbdFile::Open(const std::string& uri,
                                                       const NbdOpenOptions& options) {
  absl::StatusOr<std::unique_ptr<NbdReader>> reader = NbdReader::Open(uri, options);
  if (!reader.ok()) return reader.status();
  return std::unique_ptr<NbdFile>(new NbdFile(*std::move(reader)));
}

absl::StatusOr<std::unique_ptr<WritableNbdFile>> WritableNbdFile::Open(const std::string& uri) {
  absl::StatusOr<std::unique_ptr<NbdReader>> reader = NbdReader::Open(uri, {.writes = true});
  if (!reader.ok()) return reader.status();
  const NbdExport& facts = (*reader)->facts();
  if (facts.read_only) {
    return absl::PermissionDeniedError(
        absl::StrCat("cannot write '", uri, "': the server offers it read-only"));
  }
  if (!facts.can_flush && !facts.can_fua) {
    return absl::FailedPreconditionError(
        absl::StrCat("cannot write '", uri,
                     "': the server has no flush command, without which a power cut could destroy "
                     "what is being changed"));
  }
  return std::unique_ptr<WritableNbdFile>(new WritableNbdFile(*std::move(reader), uri));
}

absl::Status WritableNbdFile::Run(absl::Span<NbdRequest> requests) {
  reader_->ForgetHoles();
  reader_->connection().Run(requests);
  for (const NbdRequest& request : requests) {
    if (request.status.ok()) continue;
    return absl::Status(request.status.code(),
                        absl::StrCat("'", uri_, "': ", request.status.message()));
  }
  return absl::OkStatus();
}

absl::Status WritableNbdFile::WriteAt(HostOffset offset, absl::Span<const uint8_t> src) {
  QCOW2CHECK_CHECK(offset.bytes <= size_bytes() && src.size() <= size_bytes() - offset.bytes);
  if (src.empty()) return absl::OkStatus();
  const Extent blocks = reader_->BlocksAround({offset.bytes, offset.bytes + src.size()});
  std::vector<uint8_t> whole;
  absl::Span<const uint8_t> bytes = src;
  if (blocks.end_bytes - blocks.begin_bytes != src.size()) {
    whole.resize(blocks.end_bytes - blocks.begin_bytes);
    absl::Status status = ReadAt(HostOffset{blocks.begin_bytes}, absl::MakeSpan(whole));
    if (!status.ok()) return status;
    std::copy(src.begin(), src.end(),
              whole.begin() + static_cast<int64_t>(offset.bytes - blocks.begin_bytes));
    bytes = whole;
  }
  std::vector<NbdRequest> pieces;
  reader_->AddPieces({.kind = NbdRequest::Kind::kWrite,
                      .offset_bytes = blocks.begin_bytes,
                      .length_bytes = bytes.size(),
                      .from = bytes.data(),
                      .durable = !reader_->facts().can_flush},
                     pieces);
  return Run(absl::MakeSpan(pieces));
}

absl::Status WritableNbdFile::Resize(uint64_t /*size_bytes*/) {
  return absl::FailedPreconditionError(
      absl::StrCat("'", uri_, "' is on an NBD server, where its size cannot be changed"));
}

absl::Status WritableNbdFile::Discard(const Extent& extent) {
  const NbdExport& facts = reader_->facts();
  if (!facts.can_zero) return absl::OkStatus();
  const uint64_t block = facts.block_bytes;
  const uint64_t begin = (extent.begin_bytes + block - 1) / block * block;
  const uint64_t end = std::min(extent.end_bytes, facts.size_bytes) / block * block;
  for (uint64_t at = begin; at < end; at += std::min(end - at, kMostZeroBytes)) {
    NbdRequest request = {.kind = NbdRequest::Kind::kZero,
                          .offset_bytes = at,
                          .length_bytes = std::min(end - at, kMostZeroBytes),
                          .durable = !facts.can_flush,
                          .fast = facts.can_fast_zero};
    const absl::Status status = Run(absl::MakeSpan(&request, 1));
    if (absl::IsUnimplemented(status)) return absl::OkStatus();
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status WritableNbdFile::Flush() {
  if (!reader_->facts().can_flush) return absl::OkStatus();
  NbdRequest request = {.kind = NbdRequest::Kind::kFlush};
  return Run(absl::MakeSpan(&request, 1));
}

}  // namespace qcow2check

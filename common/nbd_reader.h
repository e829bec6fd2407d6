// Reading an NBD export as a file is read: any offset and length, many reads at once, holes told.
// What the read-only and the writable kind of file (nbd_file.h) share.
#ifndef QCOW2CHECK_COMMON_NBD_READER_H_
#define QCOW2CHECK_COMMON_NBD_READER_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/image_file.h"
#include "common/nbd_connection.h"

namespace qcow2check {

// How an export is opened.
struct NbdOpenOptions {
  UriFrom uri_from = UriFrom::kUser;
  // Somebody writes to it meanwhile: nothing is kept of what the server has said.
  bool changes = false;
  // It will be written to: a write compares what it replaces with what the server has then.
  bool writes = false;
};

// Thread-safe, but for ForgetHoles.
class NbdReader {
 public:
  // Errors as NbdConnection::Open's; kInvalidArgument for an empty export.
  static absl::StatusOr<std::unique_ptr<NbdReader>> Open(const std::string& uri,
                                                         const NbdOpenOptions& options);

  NbdConnection& connection() const { return *connection_; }
  const NbdExport& facts() const { return connection_->facts(); }

  // As of ImageFile.
  void ReadMany(absl::Span<ReadRequest> requests) const;
  absl::Status ReadAt(HostOffset offset, absl::Span<uint8_t> dst) const;
  // Asks the server at most a few times; what is further away than that may hold data.
  Extent NextData(HostOffset offset) const;
  // As of ImageFile; best in the order of their places. Extents near each other are one question.
  std::vector<bool> FindHoles(absl::Span<const Extent> extents) const;

  // The export was written to: its holes are others now.
  void ForgetHoles();

  // The smallest stretch of whole blocks around `extent`, cut at the end of the export.
  Extent BlocksAround(const Extent& extent) const;
  // `request` in pieces that the server takes.
  void AddPieces(const NbdRequest& request, std::vector<NbdRequest>& pieces) const;

 private:
  NbdReader(std::unique_ptr<NbdConnection> connection, const NbdOpenOptions& options)
      : connection_(std::move(connection)), options_(options) {}

  const NbdStretch* KnownStretch(uint64_t offset) const;
  bool AskForStretches(uint64_t offset, uint64_t length) const;
  bool IsInStart(const Extent& extent) const;
  void ReadStart() const;

  const std::unique_ptr<NbdConnection> connection_;
  const NbdOpenOptions options_;

  // The first bytes of the export, if they are kept: read when one of them is asked for.
  mutable std::once_flag start_once_;
  mutable std::vector<uint8_t> start_;

  // The last answer about holes: stretches one behind the other.
  mutable std::mutex mutex_;
  mutable uint64_t known_from_ = 0;
  mutable std::vector<NbdStretch> stretches_;
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_NBD_READER_H_

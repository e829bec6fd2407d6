// An image that an NBD server exports, read-only or writable: nbd://HOST[:PORT]/[EXPORT],
// nbd+unix:///[EXPORT]?socket=PATH, and nbds for TLS.
//
// Nothing is locked, and nobody's lock is seen: the protocol has none. One connection a file. Reads
// of several threads are under way at the same time.
#ifndef QCOW2CHECK_COMMON_NBD_FILE_H_
#define QCOW2CHECK_COMMON_NBD_FILE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/image_file.h"
#include "common/nbd_reader.h"

namespace qcow2check {

// Whether `name` is such a URI, and not a path ("./nbd://x" is always a path).
bool IsNbdUri(absl::string_view name);

// The reading half of both kinds. An export keeps the length that it had when it was opened.
template <typename Kind>
class NbdFileOf : public Kind {
 public:
  uint64_t size_bytes() const override { return reader_->facts().size_bytes; }
  absl::Status ReadAt(HostOffset offset, absl::Span<uint8_t> dst) const override {
    return reader_->ReadAt(offset, dst);
  }
  void ReadMany(absl::Span<ReadRequest> requests) const override { reader_->ReadMany(requests); }
  Extent NextData(HostOffset offset) const override { return reader_->NextData(offset); }
  std::vector<bool> FindHoles(absl::Span<const Extent> extents) const override {
    return reader_->FindHoles(extents);
  }
  bool is_remote() const override { return true; }
  absl::Status availability() const override { return reader_->connection().status(); }

 protected:
  explicit NbdFileOf(std::unique_ptr<NbdReader> reader) : reader_(std::move(reader)) {}

  const std::unique_ptr<NbdReader> reader_;
};

class NbdFile : public NbdFileOf<ImageFile> {
 public:
  // Errors are one plain sentence each: kUnavailable if there is no connection, kInvalidArgument
  // for an empty export.
  static absl::StatusOr<std::unique_ptr<NbdFile>> Open(const std::string& uri,
                                                       const NbdOpenOptions& options);

 private:
  using NbdFileOf::NbdFileOf;
};

// A write that is no whole blocks of the server reads the blocks around it and writes them whole.
class WritableNbdFile : public NbdFileOf<WritableImageFile> {
 public:
  // Errors as NbdFile's; kPermissionDenied for an export that is read-only, kFailedPrecondition if
  // the server has no way to make a write durable.
  static absl::StatusOr<std::unique_ptr<WritableNbdFile>> Open(const std::string& uri);

  absl::Status WriteAt(HostOffset offset, absl::Span<const uint8_t> src) override;
  absl::Status Resize(uint64_t size_bytes) override;
  // The whole blocks in the stretch.
  absl::Status Discard(const Extent& extent) override;
  // The server's flush command; where it has none, each write was durable by itself.
  absl::Status Flush() override;
  bool has_fixed_size() const override { return true; }

 private:
  WritableNbdFile(std::unique_ptr<NbdReader> reader, std::string uri)
      : NbdFileOf(std::move(reader)), uri_(std::move(uri)) {}

  absl::Status Run(absl::Span<NbdRequest> requests);

  std::string uri_;
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_NBD_FILE_H_

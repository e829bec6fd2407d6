#include "repair/undo_log.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "common/byte_order.h"
#include "common/check.h"
#include "common/checked_math.h"
#include "common/digest.h"
#include "common/limits.h"

namespace qcow2check {
namespace {

using Bytes = std::vector<uint8_t>;

constexpr uint64_t kHeaderMagic = 0x5143'4b55'4e44'4f0a;  // "QCKUNDO\n"
constexpr uint64_t kMarkMagic = 0x5143'4b44'4f4e'450a;    // "QCKDONE\n"
constexpr uint32_t kVersion = 1;
constexpr uint32_t kBeingWritten = 0, kComplete = 1;
constexpr uint32_t kOldBytesAreZeros = 1;
constexpr uint32_t kDiscarded = uint32_t{1} << 31;
constexpr uint64_t kRecordHeaderBytes = 32;
constexpr uint64_t kDigestBytes = 8;
constexpr uint64_t kMaxIdentityBytes = 64 << 10;

bool IsZero(absl::Span<const uint8_t> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](uint8_t byte) { return byte == 0; });
}

template <typename T>
void Append(Bytes& bytes, T value) {
  bytes.resize(bytes.size() + sizeof(value));
  StoreBigEndian(&bytes[bytes.size() - sizeof(value)], value);
}

// A whole sector, its last 8 bytes the digest of those before.
Bytes SealedSector(Bytes bytes) {
  QCOW2CHECK_CHECK(bytes.size() <= kSectorBytes - kDigestBytes);
  bytes.resize(kSectorBytes - kDigestBytes);
  Append(bytes, DigestOf(bytes));
  return bytes;
}

bool IsSealed(absl::Span<const uint8_t> sector) {
  const uint64_t sealed = kSectorBytes - kDigestBytes;
  return Load64(&sector[sealed]) == DigestOf(sector.first(sealed));
}

Bytes EncodeHeader(const UndoLog& log, uint32_t state) {
  Bytes bytes;
  Append(bytes, kHeaderMagic);
  Append(bytes, kVersion);
  Append(bytes, state);
  for (const uint64_t value : {log.old_size_bytes, log.new_size_bytes, log.identity_bytes,
                               log.identity_digest, log.records, log.records_bytes}) {
    Append(bytes, value);
  }
  return SealedSector(std::move(bytes));
}

// What the finished mark must be for this log: marks of other logs do not count.
Bytes EncodeMark(absl::Span<const uint8_t> header) {
  Bytes bytes;
  Append(bytes, kMarkMagic);
  Append(bytes, DigestOf(header));
  return SealedSector(std::move(bytes));
}

Bytes EncodeRecord(const SectorHistory& history) {
  const bool zeros = IsZero(history.old_bytes);
  Bytes bytes;
  Append(bytes, uint64_t{0});  // the digest of all that follows
  Append(bytes, history.offset_bytes);
  Append(bytes, static_cast<uint32_t>(history.old_bytes.size()));
  Append(bytes, zeros ? kOldBytesAreZeros : uint32_t{0});
  Append(bytes, uint64_t{0});  // the length of what follows
  if (!zeros) bytes.insert(bytes.end(), history.old_bytes.begin(), history.old_bytes.end());
  for (const SectorVersions& sector : history.sectors) {
    QCOW2CHECK_CHECK(sector.written.size() < kDiscarded);
    Append(bytes,
           static_cast<uint32_t>(sector.written.size()) | (sector.discarded ? kDiscarded : 0));
    for (const uint64_t digest : sector.written) Append(bytes, digest);
  }
  Store64(&bytes[24], bytes.size() - kRecordHeaderBytes);
  Store64(bytes.data(), DigestOf(absl::MakeConstSpan(bytes).subspan(kDigestBytes)));
  return bytes;
}

// The bytes of a record, one after the other; says if there are too few.
class RecordReader {
 public:
  explicit RecordReader(absl::Span<const uint8_t> bytes) : bytes_(bytes) {}

  template <typename T>
  bool Read(T& value) {
    if (bytes_.size() < sizeof(value)) return false;
    value = LoadBigEndian<T>(bytes_.data());
    bytes_.remove_prefix(sizeof(value));
    return true;
  }
  bool Read(absl::Span<uint8_t> dst) {
    if (bytes_.size() < dst.size()) return false;
    std::copy_n(bytes_.begin(), dst.size(), dst.begin());
    bytes_.remove_prefix(dst.size());
    return true;
  }
  bool ReadDigests(uint64_t count, std::vector<uint64_t>& digests) {
    if (bytes_.size() / kDigestBytes < count) return false;
    digests.resize(count);
    for (uint64_t& digest : digests) Read(digest);
    return true;
  }
  bool at_end() const { return bytes_.empty(); }

 private:
  absl::Span<const uint8_t> bytes_;
};

// False if it is no record: its digest or a length is wrong.
bool DecodeRecord(absl::Span<const uint8_t> bytes, SectorHistory& history) {
  RecordReader reader(bytes);
  uint64_t digest = 0, payload = 0;
  uint32_t length = 0, flags = 0;
  if (!reader.Read(digest) || digest != DigestOf(bytes.subspan(kDigestBytes))) return false;
  if (!reader.Read(history.offset_bytes) || !reader.Read(length) || !reader.Read(flags) ||
      !reader.Read(payload)) {
    return false;
  }
  if (length == 0 || length > kMaxHistoryBytes || !IsAligned(length, kSectorBytes) ||
      !IsAligned(history.offset_bytes, kSectorBytes)) {
    return false;
  }
  history.old_bytes.assign(length, 0);
  if (flags != kOldBytesAreZeros && !reader.Read(absl::MakeSpan(history.old_bytes))) return false;
  history.sectors.assign(length / kSectorBytes, {});
  for (SectorVersions& sector : history.sectors) {
    uint32_t count = 0;
    if (!reader.Read(count)) return false;
    sector.discarded = (count & kDiscarded) != 0;
    if (!reader.ReadDigests(count & ~kDiscarded, sector.written)) return false;
  }
  return reader.at_end();
}

// Appends to a file, in pieces that are worth a system call.
class Appender {
 public:
  explicit Appender(WritableImageFile& file) : file_(file), end_bytes_(file.size_bytes()) {}

  absl::Status Append(absl::Span<const uint8_t> bytes) {
    buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
    return buffer_.size() < kBufferBytes ? absl::OkStatus() : Write();
  }
  absl::Status Write() {
    absl::Status status = file_.Resize(end_bytes_ + buffer_.size());
    if (status.ok()) status = file_.WriteAt(HostOffset{end_bytes_}, buffer_);
    end_bytes_ += buffer_.size();
    buffer_.clear();
    return status;
  }

 private:
  static constexpr size_t kBufferBytes = 1 << 20;

  WritableImageFile& file_;
  uint64_t end_bytes_;
  Bytes buffer_;
};

// The first cluster, as far as the header can say how large that is; not more, because the guest
// may write what lies behind it.
absl::Status ReadIdentity(const ImageFile& image, UndoLog& log) {
  Bytes bytes(kMaxIdentityBytes);
  const absl::Status status = image.ReadAt(HostOffset{0}, absl::MakeSpan(bytes));
  if (!status.ok()) return status;
  const uint32_t cluster_bits = Load32(&bytes[20]);
  const bool known = kMinClusterBits <= cluster_bits && cluster_bits <= kMaxClusterBits;
  bytes.resize(known ? std::min(kMaxIdentityBytes, uint64_t{1} << cluster_bits) : kSectorBytes);
  log.identity_bytes = bytes.size();
  log.identity_digest = DigestOf(bytes);
  return absl::OkStatus();
}

absl::Status WriteRecords(WritableImageFile& file, const ImageFile& image, const Plan& plan,
                          UndoLog& log) {
  Appender appender(file);
  absl::Status status = ForEachHistory(image, plan, [&](const SectorHistory& history) {
    const Bytes record = EncodeRecord(history);
    ++log.records;
    log.records_bytes += record.size();
    return appender.Append(record);
  });
  // The room of the finished mark: marking must not fail because the disk is full.
  if (status.ok()) status = appender.Append(Bytes(kSectorBytes));
  return status.ok() ? appender.Write() : status;
}

absl::Status WriteHeader(WritableImageFile& file, const UndoLog& log, uint32_t state) {
  const absl::Status status = file.WriteAt(HostOffset{0}, EncodeHeader(log, state));
  return status.ok() ? file.Flush() : status;
}

absl::Status Damaged(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("the undo file is damaged: ", what));
}

}  // namespace

absl::Status WriteUndoLog(WritableImageFile& file, const ImageFile& image, const Plan& plan) {
  QCOW2CHECK_CHECK(file.size_bytes() == 0);
  UndoLog log{.old_size_bytes = plan.old_size_bytes, .new_size_bytes = plan.new_size_bytes};
  absl::Status status = ReadIdentity(image, log);
  if (status.ok()) status = file.Resize(kSectorBytes);
  if (status.ok()) status = WriteHeader(file, log, kBeingWritten);
  if (status.ok()) status = WriteRecords(file, image, plan, log);
  // The header may say "complete" only when all the rest is on disk.
  if (status.ok()) status = file.Flush();
  return status.ok() ? WriteHeader(file, log, kComplete) : status;
}

absl::Status MarkFinished(WritableImageFile& file) {
  Bytes header(kSectorBytes);
  absl::Status status = file.ReadAt(HostOffset{0}, absl::MakeSpan(header));
  if (!status.ok()) return status;
  status = file.WriteAt(HostOffset{file.size_bytes() - kSectorBytes}, EncodeMark(header));
  return status.ok() ? file.Flush() : status;
}

absl::StatusOr<UndoLog> ReadUndoLog(const ImageFile& file) {
  Bytes header(kSectorBytes);
  absl::Status status = file.ReadAt(HostOffset{0}, absl::MakeSpan(header));
  if (!status.ok()) return status;
  // Made, but its first flush was not reached.
  if (file.size_bytes() <= kSectorBytes && IsZero(header)) return UndoLog{};
  if (Load64(header.data()) != kHeaderMagic) {
    return absl::InvalidArgumentError("this is no undo file of qcow2check");
  }
  if (const uint32_t version = Load32(&header[8]); version != kVersion) {
    return absl::InvalidArgumentError(absl::StrCat("the undo file has version ", version,
                                                   ", this program knows version ", kVersion));
  }
  if (!IsSealed(header)) return Damaged("its header has a wrong digest");
  if (Load32(&header[12]) != kComplete) return UndoLog{};
  UndoLog log{.state = UndoLogState::kUnfinished};
  const std::array<uint64_t*, 6> fields = {&log.old_size_bytes, &log.new_size_bytes,
                                           &log.identity_bytes, &log.identity_digest,
                                           &log.records,        &log.records_bytes};
  for (size_t i = 0; i < fields.size(); ++i) *fields[i] = Load64(&header[16 + 8 * i]);
  if (log.identity_bytes > kMaxIdentityBytes) return Damaged("its header makes no sense");
  const uint64_t mark_offset = SaturatingAdd(kSectorBytes, log.records_bytes);
  if (SaturatingAdd(mark_offset, kSectorBytes) != file.size_bytes()) {
    return Damaged("it is longer or shorter than it was when it was written");
  }
  Bytes mark(kSectorBytes);
  status = file.ReadAt(HostOffset{mark_offset}, absl::MakeSpan(mark));
  if (!status.ok()) return status;
  if (mark == EncodeMark(header)) log.state = UndoLogState::kFinished;
  return log;
}

absl::Status ForEachLoggedHistory(const ImageFile& file, const UndoLog& log,
                                  absl::FunctionRef<absl::Status(const SectorHistory&)> visit) {
  const uint64_t end = kSectorBytes + log.records_bytes;
  uint64_t at = kSectorBytes;
  uint64_t last_end = 0;
  Bytes record;
  SectorHistory history;
  for (uint64_t i = 0; i < log.records; ++i) {
    std::array<uint8_t, kRecordHeaderBytes> start;
    absl::Status status = file.ReadAt(HostOffset{at}, absl::MakeSpan(start));
    if (!status.ok()) return status;
    const uint64_t size = SaturatingAdd(kRecordHeaderBytes, Load64(&start[24]));
    const bool fits = size <= end - at;
    if (fits) {
      record.resize(size);
      status = file.ReadAt(HostOffset{at}, absl::MakeSpan(record));
      if (!status.ok()) return status;
    }
    if (!fits || !DecodeRecord(record, history) || history.offset_bytes < last_end) {
      return Damaged(absl::StrCat("record ", i + 1, " of ", log.records, " is not as written"));
    }
    at += size;
    last_end = SaturatingAdd(history.offset_bytes, history.old_bytes.size());
    status = visit(history);
    if (!status.ok()) return status;
  }
  return at == end ? absl::OkStatus() : Damaged("there is more in it than its header says");
}

}  // namespace qcow2check

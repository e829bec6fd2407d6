#include "fuzz/undo_mutator.h"

#include <algorithm>

#include "common/byte_order.h"
#include "common/digest.h"
#include "common/limits.h"

namespace qcow2check::testing {
namespace {

// docs/undo-file.md has the format.
constexpr uint64_t kRecordHeaderBytes = 32;
constexpr uint64_t kIdentityBytesField = 32, kIdentityDigestField = 40;
constexpr uint64_t kRecordsField = 48, kRecordsBytesField = 56;
constexpr uint64_t kMostIdentityBytes = 64 << 10;

void SealSector(absl::Span<uint8_t> sector) {
  Store64(&sector[kSectorBytes - 8], DigestOf(sector.first(kSectorBytes - 8)));
}

}  // namespace

void SealUndoLog(UndoInput& input, bool with_identity) {
  absl::Span<uint8_t> log = absl::MakeSpan(input.log);
  if (log.size() < 2 * kSectorBytes) return;
  const uint64_t end = log.size() - kSectorBytes;
  uint64_t at = kSectorBytes;
  uint64_t records = 0;
  while (at + kRecordHeaderBytes <= end) {
    const uint64_t payload = Load64(&log[at + 24]);
    if (payload > end - at - kRecordHeaderBytes) break;
    const absl::Span<uint8_t> record = log.subspan(at, kRecordHeaderBytes + payload);
    Store64(record.data(), DigestOf(record.subspan(8)));
    at += record.size();
    ++records;
  }
  Store64(&log[kRecordsField], records);
  Store64(&log[kRecordsBytesField], end - kSectorBytes);
  if (with_identity) {
    const uint64_t length = std::min(Load64(&log[kIdentityBytesField]), kMostIdentityBytes);
    Store64(&log[kIdentityBytesField], length);
    Store64(&log[kIdentityDigestField], DigestOf(input.image.Bytes(0, length)));
  }
  SealSector(log.first(kSectorBytes));
  const absl::Span<uint8_t> mark = log.last(kSectorBytes);
  if (Load64(mark.data()) == 0) return;
  Store64(&mark[8], DigestOf(log.first(kSectorBytes)));
  SealSector(mark);
}

}  // namespace qcow2check::testing

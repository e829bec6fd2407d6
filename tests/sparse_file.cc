#include "tests/sparse_file.h"

#include <algorithm>

#include "common/byte_order.h"
#include "common/check.h"

namespace qcow2check::testing {
namespace {

bool IsZero(absl::Span<const uint8_t> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](uint8_t byte) { return byte == 0; });
}

}  // namespace

bool operator==(const SparseFile& a, const SparseFile& b) {
  const auto skip_zeros = [](const SparseFile& file, auto it) {
    while (it != file.pages_.end() && IsZero(it->second)) ++it;
    return it;
  };
  auto in_a = skip_zeros(a, a.pages_.begin()), in_b = skip_zeros(b, b.pages_.begin());
  while (in_a != a.pages_.end() && in_b != b.pages_.end() && *in_a == *in_b) {
    in_a = skip_zeros(a, ++in_a);
    in_b = skip_zeros(b, ++in_b);
  }
  return a.size_bytes_ == b.size_bytes_ && in_a == a.pages_.end() && in_b == b.pages_.end();
}

SparseFile::SparseFile(absl::Span<const uint8_t> bytes) : size_bytes_(bytes.size()) {
  QCOW2CHECK_CHECK(WriteAt(HostOffset{0}, bytes).ok());
}

std::vector<uint8_t> SparseFile::Bytes(uint64_t offset_bytes, uint64_t length_bytes) const {
  std::vector<uint8_t> bytes(length_bytes);
  QCOW2CHECK_CHECK(ReadAt(HostOffset{offset_bytes}, absl::MakeSpan(bytes)).ok());
  return bytes;
}

uint64_t SparseFile::Word(uint64_t offset_bytes) const {
  std::array<uint8_t, 8> word;
  QCOW2CHECK_CHECK(ReadAt(HostOffset{offset_bytes}, absl::MakeSpan(word)).ok());
  return Load64(word.data());
}

absl::Status SparseFile::ReadAt(HostOffset offset, absl::Span<uint8_t> dst) const {
  std::fill(dst.begin(), dst.end(), uint8_t{0});
  const uint64_t begin = std::min(offset.bytes, size_bytes_);
  const uint64_t end = begin + std::min<uint64_t>(dst.size(), size_bytes_ - begin);
  for (auto it = pages_.lower_bound(begin / kPageBytes);
       it != pages_.end() && it->first * kPageBytes < end; ++it) {
    const uint64_t page_begin = it->first * kPageBytes;
    const uint64_t from = std::max(begin, page_begin);
    const uint64_t to = std::min(end, page_begin + kPageBytes);
    std::copy_n(it->second.begin() + static_cast<int64_t>(from - page_begin), to - from,
                dst.begin() + static_cast<int64_t>(from - begin));
  }
  return absl::OkStatus();
}

Extent SparseFile::NextData(HostOffset offset) const {
  auto it = pages_.lower_bound(offset.bytes / kPageBytes);
  if (offset.bytes >= size_bytes_) return {offset.bytes, offset.bytes};
  if (it == pages_.end()) return {size_bytes_, size_bytes_};
  const uint64_t begin = std::max(offset.bytes, it->first * kPageBytes);
  uint64_t last = it->first;
  while (++it != pages_.end() && it->first == last + 1) ++last;
  return {begin, std::min((last + 1) * kPageBytes, size_bytes_)};
}

absl::Status SparseFile::WriteAt(HostOffset offset, absl::Span<const uint8_t> src) {
  QCOW2CHECK_CHECK(offset.bytes <= size_bytes_ && src.size() <= size_bytes_ - offset.bytes);
  uint64_t at = offset.bytes;
  while (!src.empty()) {
    const uint64_t in_page = at % kPageBytes;
    const uint64_t length = std::min<uint64_t>(src.size(), kPageBytes - in_page);
    const absl::Span<const uint8_t> piece = src.first(length);
    const auto it = pages_.find(at / kPageBytes);
    if (it != pages_.end() || !IsZero(piece)) {
      Page& page = it != pages_.end() ? it->second : pages_[at / kPageBytes];
      std::copy(piece.begin(), piece.end(), page.begin() + static_cast<int64_t>(in_page));
    }
    src.remove_prefix(length);
    at += length;
  }
  return absl::OkStatus();
}

absl::Status SparseFile::Resize(uint64_t size_bytes) {
  if (size_bytes < size_bytes_) {
    const absl::Status status = Discard({size_bytes, size_bytes_});
    if (!status.ok()) return status;
  }
  size_bytes_ = size_bytes;
  return absl::OkStatus();
}

absl::Status SparseFile::Discard(const Extent& extent) {
  const uint64_t end = std::min(extent.end_bytes, size_bytes_);
  auto it = pages_.lower_bound(extent.begin_bytes / kPageBytes);
  while (it != pages_.end() && it->first * kPageBytes < end) {
    const uint64_t page_begin = it->first * kPageBytes;
    const uint64_t from = std::max(extent.begin_bytes, page_begin) - page_begin;
    const uint64_t to = std::min(end - page_begin, kPageBytes);
    std::fill(it->second.begin() + static_cast<int64_t>(from),
              it->second.begin() + static_cast<int64_t>(to), uint8_t{0});
    it = IsZero(it->second) ? pages_.erase(it) : std::next(it);
  }
  return absl::OkStatus();
}

}  // namespace qcow2check::testing

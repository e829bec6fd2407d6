#include "repair/patched_file.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>
#include <vector>

#include "common/checked_math.h"

namespace qcow2check {
namespace {

struct Overlap {
  uint64_t begin = 0;
  uint64_t end = 0;
  bool empty() const { return begin >= end; }
};

Overlap OverlapOf(uint64_t a, uint64_t a_length, uint64_t b, uint64_t b_length) {
  return {std::max(a, b), std::min(a + a_length, b + b_length)};
}

}  // namespace

absl::btree_map<uint64_t, PatchedFile::Copy>::const_iterator PatchedFile::FirstCopy(
    uint64_t offset_bytes) const {
  auto it = copies_.upper_bound(offset_bytes);
  if (it == copies_.begin()) return it;
  const auto before = std::prev(it);
  return before->first + before->second.length_bytes > offset_bytes ? before : it;
}

bool PatchedFile::NeedsBase(const ReadRequest& request) const {
  const uint64_t begin = request.offset.bytes;
  const uint64_t end = std::min(begin + request.dst.size(), base_->size_bytes());
  uint64_t page = begin / kPageBytes * kPageBytes;
  for (auto it = pages_.find(page); it != pages_.end() && it->first == page; ++it) {
    page += kPageBytes;
  }
  return page < end;
}

absl::Status PatchedFile::ReadAt(HostOffset offset, absl::Span<uint8_t> dst) const {
  ReadRequest request = {offset, dst, absl::OkStatus()};
  ReadMany(absl::MakeSpan(&request, 1));
  return request.status;
}

void PatchedFile::ReadMany(absl::Span<ReadRequest> requests) const {
  std::vector<ReadRequest> of_base;
  for (const ReadRequest& request : requests) {
    if (NeedsBase(request)) of_base.push_back(request);
  }
  base_->ReadMany(absl::MakeSpan(of_base));
  auto read = of_base.begin();
  for (ReadRequest& request : requests) {
    if (NeedsBase(request)) {
      request.status = std::move((read++)->status);
    } else {
      request.status = absl::OkStatus();
      std::fill(request.dst.begin(), request.dst.end(), 0);
    }
    if (request.status.ok()) request.status = PutCopies(request.offset, request.dst);
    if (request.status.ok()) {
      PutPages(request.offset, request.dst);
    } else {
      ++*failed_reads_;
    }
  }
}

absl::Status PatchedFile::PutCopies(HostOffset offset, absl::Span<uint8_t> dst) const {
  for (auto it = FirstCopy(offset.bytes);
       it != copies_.end() && it->first < offset.bytes + dst.size(); ++it) {
    const auto& [to, copy] = *it;
    const Overlap part = OverlapOf(to, copy.length_bytes, offset.bytes, dst.size());
    if (part.empty()) continue;
    absl::Status status =
        base_->ReadAt(HostOffset{copy.from_bytes + (part.begin - to)},
                      dst.subspan(part.begin - offset.bytes, part.end - part.begin));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

void PatchedFile::PutPages(HostOffset offset, absl::Span<uint8_t> dst) const {
  const uint64_t first_page = offset.bytes / kPageBytes * kPageBytes;
  for (auto it = pages_.lower_bound(first_page);
       it != pages_.end() && it->first < offset.bytes + dst.size(); ++it) {
    const Overlap part = OverlapOf(it->first, kPageBytes, offset.bytes, dst.size());
    if (part.empty()) continue;
    std::memcpy(&dst[part.begin - offset.bytes], &(*it->second)[part.begin - it->first],
                part.end - part.begin);
  }
}

bool PatchedFile::IsHole(const Extent& extent) const {
  return FindHoles(absl::MakeConstSpan(&extent, 1)).front();
}

std::vector<bool> PatchedFile::FindHoles(absl::Span<const Extent> extents) const {
  std::vector<Extent> of_base;
  std::vector<bool> holes(extents.size());
  std::vector<size_t> asked;
  for (size_t i = 0; i < extents.size(); ++i) {
    const Extent& extent = extents[i];
    if (IsPatched(extent.begin_bytes, extent.end_bytes - extent.begin_bytes)) continue;
    const Extent in_base = {extent.begin_bytes, std::min(extent.end_bytes, base_->size_bytes())};
    holes[i] = in_base.empty();
    if (in_base.empty()) continue;
    of_base.push_back(in_base);
    asked.push_back(i);
  }
  const std::vector<bool> holes_of_base = base_->FindHoles(of_base);
  for (size_t i = 0; i < asked.size(); ++i) holes[asked[i]] = holes_of_base[i];
  return holes;
}

Extent PatchedFile::NextData(HostOffset offset) const {
  if (offset.bytes >= size_bytes_) return {offset.bytes, offset.bytes};
  Extent next = base_->NextData(offset);
  if (next.empty()) next = {size_bytes_, size_bytes_};
  const auto take = [&next](uint64_t begin, uint64_t end) {
    // What lies between two stretches of data may be read as data, too.
    if (begin < next.begin_bytes) next = {begin, next.empty() ? end : next.end_bytes};
  };
  const auto page = pages_.lower_bound(offset.bytes / kPageBytes * kPageBytes);
  if (page != pages_.end()) take(std::max(page->first, offset.bytes), page->first + kPageBytes);
  const auto copy = FirstCopy(offset.bytes);
  if (copy != copies_.end()) {
    take(std::max(copy->first, offset.bytes), copy->first + copy->second.length_bytes);
  }
  return {next.begin_bytes, std::min(next.end_bytes, size_bytes_)};
}

absl::StatusOr<PatchedFile::Page*> PatchedFile::OwnPage(uint64_t page) {
  auto found = pages_.find(page);
  if (found == pages_.end()) {
    auto now = std::make_shared<Page>();
    absl::Status status = ReadAt(HostOffset{page}, absl::MakeSpan(*now));
    if (!status.ok()) return status;
    found = pages_.emplace(page, std::move(now)).first;
  } else if (found->second.use_count() > 1) {
    found->second = std::make_shared<Page>(*found->second);
  }
  return found->second.get();
}

absl::Status PatchedFile::HoldEdges(uint64_t offset_bytes, uint64_t length_bytes) {
  const uint64_t end = offset_bytes + length_bytes;
  for (const uint64_t edge : {offset_bytes, end}) {
    if (IsAligned(edge, kPageBytes)) continue;
    const absl::StatusOr<Page*> page = OwnPage(edge / kPageBytes * kPageBytes);
    if (!page.ok()) return page.status();
  }
  return absl::OkStatus();
}

absl::Status PatchedFile::Patch(uint64_t offset_bytes, absl::Span<const uint8_t> bytes) {
  const uint64_t end = offset_bytes + bytes.size();
  if (absl::Status status = HoldEdges(offset_bytes, bytes.size()); !status.ok()) return status;
  std::shared_ptr<Page> last;  // of those that are changed as a whole
  for (uint64_t page = offset_bytes / kPageBytes * kPageBytes; page < end; page += kPageBytes) {
    const Overlap part = OverlapOf(page, kPageBytes, offset_bytes, bytes.size());
    const uint8_t* const from = &bytes[part.begin - offset_bytes];
    const uint64_t length = part.end - part.begin;
    if (length < kPageBytes) {
      const absl::StatusOr<Page*> own = OwnPage(page);
      if (!own.ok()) return own.status();
      std::memcpy(&(**own)[part.begin - page], from, length);
      continue;
    }
    if (last == nullptr || std::memcmp(last->data(), from, kPageBytes) != 0) {
      last = std::make_shared<Page>();
      std::memcpy(last->data(), from, kPageBytes);
    }
    pages_[page] = last;
  }
  return absl::OkStatus();
}

void PatchedFile::PatchCopy(uint64_t from_bytes, uint64_t to_bytes, uint64_t length_bytes) {
  copies_[to_bytes] = {from_bytes, length_bytes};
}

bool PatchedFile::IsPatched(uint64_t offset_bytes, uint64_t length_bytes) const {
  const auto page = pages_.lower_bound(offset_bytes / kPageBytes * kPageBytes);
  if (page != pages_.end() && page->first < offset_bytes + length_bytes) return true;
  const auto copy = FirstCopy(offset_bytes);
  return copy != copies_.end() && copy->first < offset_bytes + length_bytes;
}

bool ReadsAsZeros(const ImageFile& file, uint64_t offset_bytes, uint64_t length_bytes) {
  constexpr uint64_t kPiece = 64u << 10;
  std::vector<uint8_t> piece;
  const uint64_t end = offset_bytes + length_bytes;
  for (uint64_t at = offset_bytes; at < end; at += piece.size()) {
    const Extent data = file.NextData(HostOffset{at});
    if (data.empty() || data.begin_bytes >= end) return true;
    at = std::max(at, data.begin_bytes);
    piece.resize(std::min(kPiece, end - at));
    if (!file.ReadAt(HostOffset{at}, absl::MakeSpan(piece)).ok()) return false;
    if (std::any_of(piece.begin(), piece.end(), [](uint8_t byte) { return byte != 0; })) {
      return false;
    }
  }
  return true;
}

bool ZeroSearch::ReadsAsZeros(uint64_t offset_bytes, uint64_t length_bytes) {
  if (offset_bytes < hole_.begin_bytes || offset_bytes >= hole_.end_bytes) {
    const Extent data = file_.NextData(HostOffset{offset_bytes});
    hole_ = {offset_bytes, data.empty() ? UINT64_MAX : data.begin_bytes};
  }
  return offset_bytes + length_bytes <= hole_.end_bytes ||
         qcow2check::ReadsAsZeros(file_, offset_bytes, length_bytes);
}

}  // namespace qcow2check

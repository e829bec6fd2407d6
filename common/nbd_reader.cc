#include "common/nbd_reader.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "absl/strings/str_cat.h"

namespace qcow2check {
namespace {

// What is asked about at once grows while there are only holes.
constexpr uint64_t kFirstWindowBytes = uint64_t{64} << 20;
constexpr uint64_t kLargestWindowBytes = uint64_t{1} << 31;  // lengths have 32 bits
constexpr int kMostQuestions = 16;
// What is taken for data when the questions are used up, or the server says nothing.
constexpr uint64_t kGuessBytes = 4096;
// Programs put the header, the refcount table with its first block, and the L1 table into the first
// clusters, mostly of 64 KiB. Each is looked at when the one before it is known: read at once, they
// cost one answer of the server.
constexpr uint64_t kStartBytes = uint64_t{256} << 10;

// The one of `stretches` that holds `offset`, which is not before the first, or nullptr.
const NbdStretch* FindStretch(const std::vector<NbdStretch>& stretches, uint64_t offset) {
  const auto stretch = std::upper_bound(
      stretches.begin(), stretches.end(), offset,
      [](uint64_t at, const NbdStretch& candidate) { return at < candidate.end_bytes; });
  return stretch == stretches.end() ? nullptr : &*stretch;
}

}  // namespace

absl::StatusOr<std::unique_ptr<NbdReader>> NbdReader::Open(const std::string& uri,
                                                           const NbdOpenOptions& options) {
  absl::StatusOr<std::unique_ptr<NbdConnection>> connection =
      NbdConnection::Open(uri, options.uri_from);
  if (!connection.ok()) return connection.status();
  if ((*connection)->facts().size_bytes == 0) {
    return absl::InvalidArgumentError(absl::StrCat("'", uri, "' is empty"));
  }
  return std::unique_ptr<NbdReader>(new NbdReader(*std::move(connection), options));
}

// Whether these bytes are kept now.
bool NbdReader::IsInStart(const Extent& extent) const {
  if (options_.changes || options_.writes || extent.end_bytes > kStartBytes) return false;
  std::call_once(start_once_, [this] { ReadStart(); });
  return extent.end_bytes <= start_.size();
}

// Keeps nothing if a part of it cannot be read: what can be is read when it is asked for.
void NbdReader::ReadStart() const {
  const uint64_t length = std::min(kStartBytes, facts().size_bytes);
  std::vector<uint8_t> start(BlocksAround({0, length}).end_bytes);
  std::vector<NbdRequest> pieces;
  AddPieces({.kind = NbdRequest::Kind::kRead, .length_bytes = start.size(), .into = start.data()},
            pieces);
  connection_->Run(absl::MakeSpan(pieces));
  const bool all_read = std::all_of(pieces.begin(), pieces.end(),
                                    [](const NbdRequest& piece) { return piece.status.ok(); });
  if (all_read) start_ = std::move(start);
}

Extent NbdReader::BlocksAround(const Extent& extent) const {
  const uint64_t block = facts().block_bytes;
  const uint64_t begin = extent.begin_bytes / block * block;
  const uint64_t past = extent.end_bytes % block;
  const uint64_t to_fill = past == 0 ? 0 : block - past;
  return {begin, extent.end_bytes + std::min(to_fill, facts().size_bytes - extent.end_bytes)};
}

void NbdReader::AddPieces(const NbdRequest& request, std::vector<NbdRequest>& pieces) const {
  for (uint64_t done = 0; done < request.length_bytes;) {
    NbdRequest piece = request;
    piece.offset_bytes += done;
    piece.length_bytes = std::min(request.length_bytes - done, facts().most_request_bytes);
    if (piece.into != nullptr) piece.into += done;
    if (piece.from != nullptr) piece.from += done;
    done += piece.length_bytes;
    pieces.push_back(std::move(piece));
  }
}

absl::Status NbdReader::ReadAt(HostOffset offset, absl::Span<uint8_t> dst) const {
  ReadRequest request{offset, dst, {}};
  ReadMany(absl::MakeSpan(&request, 1));
  return request.status;
}

void NbdReader::ReadMany(absl::Span<ReadRequest> requests) const {
  struct Part {
    Extent wanted;               // of the request, inside the export
    std::vector<uint8_t> whole;  // the blocks around it, if it is no whole blocks itself
    size_t pieces_end = 0;
  };
  std::vector<Part> parts(requests.size());
  std::vector<NbdRequest> pieces;
  for (size_t i = 0; i < requests.size(); ++i) {
    const ReadRequest& request = requests[i];
    Part& part = parts[i];
    const uint64_t begin = std::min(request.offset.bytes, facts().size_bytes);
    const uint64_t inside = std::min<uint64_t>(request.dst.size(), facts().size_bytes - begin);
    part.wanted = {begin, begin + inside};
    std::fill(request.dst.begin() + static_cast<int64_t>(inside), request.dst.end(), uint8_t{0});
    if (IsInStart(part.wanted)) {
      std::copy_n(start_.begin() + static_cast<int64_t>(begin), inside, request.dst.begin());
    } else if (inside != 0) {
      const Extent blocks = BlocksAround(part.wanted);
      const uint64_t length = blocks.end_bytes - blocks.begin_bytes;
      if (length != inside) part.whole.resize(length);
      AddPieces({.kind = NbdRequest::Kind::kRead,
                 .offset_bytes = blocks.begin_bytes,
                 .length_bytes = length,
                 .into = length != inside ? part.whole.data() : request.dst.data()},
                pieces);
    }
    part.pieces_end = pieces.size();
  }
  connection_->Run(absl::MakeSpan(pieces));
  size_t at = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    const Part& part = parts[i];
    requests[i].status = absl::OkStatus();
    for (; at < part.pieces_end; ++at) requests[i].status.Update(pieces[at].status);
    if (part.whole.empty()) continue;
    const auto from =
        part.whole.begin() + static_cast<int64_t>(part.wanted.begin_bytes % facts().block_bytes);
    std::copy_n(from, part.wanted.end_bytes - part.wanted.begin_bytes, requests[i].dst.begin());
  }
}

void NbdReader::ForgetHoles() { stretches_.clear(); }

// The known stretch that holds `offset`, or nullptr.
const NbdStretch* NbdReader::KnownStretch(uint64_t offset) const {
  return offset < known_from_ ? nullptr : FindStretch(stretches_, offset);
}

// False if the server does not tell about the bytes at `offset`.
bool NbdReader::AskForStretches(uint64_t offset, uint64_t length) const {
  const Extent asked =
      BlocksAround({offset, offset + std::min(length, facts().size_bytes - offset)});
  stretches_.clear();
  known_from_ = asked.begin_bytes;
  NbdRequest request = {.kind = NbdRequest::Kind::kBlockStatus,
                        .offset_bytes = asked.begin_bytes,
                        .length_bytes = asked.end_bytes - asked.begin_bytes,
                        .stretches = &stretches_};
  connection_->Run(absl::MakeSpan(&request, 1));
  return request.status.ok() && KnownStretch(offset) != nullptr;
}

Extent NbdReader::NextData(HostOffset offset) const {
  const uint64_t size = facts().size_bytes;
  if (offset.bytes >= size) return {offset.bytes, offset.bytes};
  if (!facts().tells_zeros) return {offset.bytes, size};
  const std::lock_guard lock(mutex_);
  if (options_.changes) stretches_.clear();
  uint64_t at = offset.bytes;
  uint64_t window = kFirstWindowBytes;
  int questions = 0;
  while (at < size) {
    const NbdStretch* stretch = KnownStretch(at);
    if (stretch == nullptr) {
      // An endless row of answers about next to nothing must not keep us.
      if (questions++ == kMostQuestions) return {at, std::min(size, at + kGuessBytes)};
      if (!AskForStretches(at, window)) return {at, size};
      window = std::min(window * 4, kLargestWindowBytes);
      stretch = KnownStretch(at);
    }
    const uint64_t end = std::min(stretch->end_bytes, size);
    if (!stretch->reads_as_zeros) return {at, end};
    at = end;
  }
  return {size, size};
}

std::vector<bool> NbdReader::FindHoles(absl::Span<const Extent> extents) const {
  std::vector<bool> holes(extents.size());
  if (!facts().tells_zeros) return holes;
  struct Question {
    Extent extent;
    size_t end = 0;  // behind the last of `extents` that it covers
    std::vector<NbdStretch> stretches;
  };
  std::vector<Question> questions;
  for (size_t i = 0; i < extents.size(); ++i) {
    const Extent blocks = BlocksAround(extents[i]);
    const bool is_near =
        !questions.empty() && blocks.begin_bytes >= questions.back().extent.begin_bytes &&
        blocks.end_bytes <= questions.back().extent.begin_bytes + kFirstWindowBytes;
    if (!is_near) questions.push_back({.extent = blocks});
    Extent& asked = questions.back().extent;
    asked.end_bytes = std::max(asked.end_bytes, blocks.end_bytes);
    questions.back().end = i + 1;
  }
  std::vector<NbdRequest> requests;
  for (Question& question : questions) {
    const Extent& asked = question.extent;
    requests.push_back(
        {.kind = NbdRequest::Kind::kBlockStatus,
         .offset_bytes = asked.begin_bytes,
         .length_bytes = std::min(asked.end_bytes - asked.begin_bytes, kLargestWindowBytes),
         .stretches = &question.stretches});
  }
  connection_->Run(absl::MakeSpan(requests));
  size_t i = 0;
  for (size_t asked = 0; asked < questions.size(); ++asked) {
    const Question& question = questions[asked];
    for (; i < question.end; ++i) {
      // What the server did not tell about, or not to its end, is no hole.
      const NbdStretch* stretch = FindStretch(question.stretches, extents[i].begin_bytes);
      holes[i] = requests[asked].status.ok() && stretch != nullptr && stretch->reads_as_zeros &&
                 stretch->end_bytes >= extents[i].end_bytes;
    }
  }
  return holes;
}

}  // namespace qcow2check

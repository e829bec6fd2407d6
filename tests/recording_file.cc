#include "tests/recording_file.h"

#include <algorithm>
#include <map>
#include <utility>

#include "common/checked_math.h"
#include "common/limits.h"

namespace qcow2check::testing {
namespace {

// The sector at `offset`; what lies behind the end is zero.
Bytes SectorOf(const Bytes& bytes, uint64_t offset) {
  Bytes sector(kSectorBytes);
  if (offset < bytes.size()) {
    std::copy_n(bytes.begin() + static_cast<int64_t>(offset),
                std::min<uint64_t>(kSectorBytes, bytes.size() - offset), sector.begin());
  }
  return sector;
}

template <typename T>
void AddIfNew(std::vector<T>& values, const T& value) {
  if (std::find(values.begin(), values.end(), value) == values.end()) values.push_back(value);
}

}  // namespace

absl::Status RecordingFile::WriteAt(HostOffset offset, absl::Span<const uint8_t> src) {
  disk_.events_.push_back(
      {RecordedDisk::Event::kWrite, number_, offset.bytes, Bytes(src.begin(), src.end())});
  return file_.WriteAt(offset, src);
}

absl::Status RecordingFile::Resize(uint64_t size_bytes) {
  disk_.events_.push_back({RecordedDisk::Event::kResize, number_, size_bytes, {}});
  return file_.Resize(size_bytes);
}

absl::Status RecordingFile::Discard(const Extent& extent) {
  const uint64_t end = std::min(extent.end_bytes, size_bytes());
  if (extent.begin_bytes >= end) return absl::OkStatus();
  disk_.events_.push_back({RecordedDisk::Event::kDiscard, number_, extent.begin_bytes,
                           Bytes(end - extent.begin_bytes)});
  return file_.Discard(extent);
}

absl::Status RecordingFile::Flush() {
  disk_.events_.push_back({RecordedDisk::Event::kFlush, number_, 0, {}});
  return file_.Flush();
}

uint64_t PowerCut::ways() const {
  uint64_t ways = 1;
  for (const UnsureSector& sector : sectors_) {
    ways = SaturatingMultiply(ways, sector.contents.size());
  }
  for (const std::vector<uint64_t>& lengths : lengths_) {
    ways = SaturatingMultiply(ways, lengths.size());
  }
  return ways;
}

DiskState PowerCut::Build(const std::vector<size_t>& content_of,
                          const std::vector<size_t>& length_of) const {
  DiskState state = flushed_;
  for (size_t i = 0; i < sectors_.size(); ++i) {
    const UnsureSector& sector = sectors_[i];
    Bytes& bytes = state[sector.file];
    const Bytes& content = sector.contents[content_of[i]];
    std::copy_n(content.begin(), std::min<uint64_t>(kSectorBytes, bytes.size() - sector.offset),
                bytes.begin() + static_cast<int64_t>(sector.offset));
  }
  for (size_t i = 0; i < state.size(); ++i) state[i].resize(lengths_[i][length_of[i]]);
  return state;
}

DiskState PowerCut::Way(uint64_t way) const {
  std::vector<size_t> content_of, length_of;
  for (const UnsureSector& sector : sectors_) {
    content_of.push_back(way % sector.contents.size());
    way /= sector.contents.size();
  }
  for (const std::vector<uint64_t>& lengths : lengths_) {
    length_of.push_back(way % lengths.size());
    way /= lengths.size();
  }
  return Build(content_of, length_of);
}

DiskState PowerCut::AtRandom(Dice& dice) const {
  std::vector<size_t> content_of, length_of;
  for (const UnsureSector& sector : sectors_) {
    content_of.push_back(dice.Below(sector.contents.size()));
  }
  for (const std::vector<uint64_t>& lengths : lengths_) {
    length_of.push_back(dice.Below(lengths.size()));
  }
  return Build(content_of, length_of);
}

RecordingFile& RecordedDisk::AddFile(Bytes bytes) {
  initial_.push_back(bytes);
  return files_.emplace_back(*this, files_.size(), std::move(bytes));
}

void RecordedDisk::Replay(const Event& event, Bytes& bytes) {
  if (event.kind == Event::kResize) bytes.resize(event.offset);
  if (event.kind == Event::kWrite || event.kind == Event::kDiscard) {
    std::copy(event.bytes.begin(), event.bytes.end(),
              bytes.begin() + static_cast<int64_t>(event.offset));
  }
}

bool RecordedDisk::IsAtFlush(size_t count) const {
  const auto is_flush = [&](size_t i) {
    return i < events_.size() && events_[i].kind == Event::kFlush;
  };
  return is_flush(count) || (count > 0 && is_flush(count - 1));
}

DiskState RecordedDisk::Killed(size_t count) const {
  DiskState state = initial_;
  for (size_t i = 0; i < count; ++i) Replay(events_[i], state[events_[i].file]);
  return state;
}

std::vector<DiskState> RecordedDisk::KilledInside(size_t count) const {
  if (count == 0 || events_[count - 1].kind != Event::kWrite) return {};
  const Event& last = events_[count - 1];
  const DiskState before = Killed(count - 1);
  std::vector<DiskState> states;
  const uint64_t end = last.offset + last.bytes.size();
  for (uint64_t cut = last.offset / kSectorBytes * kSectorBytes + kSectorBytes; cut < end;
       cut += kSectorBytes) {
    Event part = last;
    part.bytes.resize(cut - last.offset);
    states.push_back(before);
    Replay(part, states.back()[part.file]);
  }
  return states;
}

PowerCut RecordedDisk::PowerFails(size_t count) const {
  std::vector<size_t> flushed_at(initial_.size(), 0);
  for (size_t i = 0; i < count; ++i) {
    if (events_[i].kind == Event::kFlush) flushed_at[events_[i].file] = i;
  }
  PowerCut cut;
  cut.flushed_ = initial_;
  cut.lengths_.resize(initial_.size());
  for (size_t i = 0; i < count; ++i) {
    if (i < flushed_at[events_[i].file]) Replay(events_[i], cut.flushed_[events_[i].file]);
  }
  DiskState now = cut.flushed_;
  std::vector<std::map<uint64_t, std::vector<Bytes>>> contents(initial_.size());
  for (size_t i = 0; i < initial_.size(); ++i) cut.lengths_[i] = {now[i].size()};
  for (size_t i = 0; i < count; ++i) {
    const Event& event = events_[i];
    Bytes& bytes = now[event.file];
    if (i < flushed_at[event.file]) continue;
    const uint64_t first = event.offset / kSectorBytes * kSectorBytes;
    const uint64_t end = event.bytes.empty() ? first : event.offset + event.bytes.size();
    for (uint64_t at = first; at < end; at += kSectorBytes) {
      std::vector<Bytes>& of_sector = contents[event.file][at];
      if (of_sector.empty()) of_sector.push_back(SectorOf(bytes, at));
    }
    Replay(event, bytes);
    for (uint64_t at = first; at < end; at += kSectorBytes) {
      AddIfNew(contents[event.file][at], SectorOf(bytes, at));
    }
    AddIfNew<uint64_t>(cut.lengths_[event.file], bytes.size());
  }
  for (size_t i = 0; i < initial_.size(); ++i) {
    const auto& lengths = cut.lengths_[i];
    cut.flushed_[i].resize(*std::max_element(lengths.begin(), lengths.end()));
    for (auto& [offset, versions] : contents[i]) {
      if (versions.size() > 1) cut.sectors_.push_back({i, offset, std::move(versions)});
    }
  }
  return cut;
}

absl::Status FailingFile::WriteAt(HostOffset offset, absl::Span<const uint8_t> src) {
  if (!Fails()) return file_.WriteAt(offset, src);
  if (operations_ == fail_at_ + 1) {
    const uint64_t cut = (offset.bytes + src.size() / 2) / kSectorBytes * kSectorBytes;
    const uint64_t written = cut > offset.bytes ? cut - offset.bytes : 0;
    const absl::Status status = file_.WriteAt(offset, src.first(written));
    if (!status.ok()) return status;
  }
  return error_;
}

absl::Status FailingFile::Resize(uint64_t size_bytes) {
  return Fails() ? error_ : file_.Resize(size_bytes);
}

absl::Status FailingFile::Discard(const Extent& extent) {
  return Fails() ? error_ : file_.Discard(extent);
}

absl::Status FailingFile::Flush() { return Fails() ? error_ : file_.Flush(); }

}  // namespace qcow2check::testing

#include "checker/part_notes.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/limits.h"

namespace qcow2check {

void PartNotes::Add(Finding finding) {
  // One of each code, even if none is to be listed: FindingList::Absorb compares it.
  if (findings == nullptr)
    findings = std::make_unique<FindingList>(std::max<uint64_t>(max_findings, 1));
  findings->Add(std::move(finding));
}

void PartNotes::Skip(std::string what, std::string why) {
  if (skipped.size() <= kMostSkippedListed) skipped.push_back({std::move(what), std::move(why)});
}

bool ReadMetadata(const ImageFile& file, HostOffset offset, absl::Span<uint8_t> dst,
                  Structure structure, PartNotes& notes) {
  ++notes.reads;
  notes.bytes_read += dst.size();
  if (file.ReadAt(offset, dst).ok()) return true;
  // Something in the range cannot be read. Find out which sectors, and go on with the rest.
  bool complete = true;
  for (size_t at = 0; at < dst.size(); at += kSectorBytes) {
    const size_t length = std::min<size_t>(kSectorBytes, dst.size() - at);
    const HostOffset sector = {offset.bytes + at};
    if (file.ReadAt(sector, dst.subspan(at, length)).ok()) continue;
    complete = false;
    std::fill_n(dst.begin() + static_cast<int64_t>(at), length, uint8_t{0});
    notes.Add({.code = FindingCode::kUnreadable,
               .structure = structure,
               .host_offset = sector,
               .length_bytes = length,
               .detail = absl::StrFormat("a part of the %s", WordsOf(structure))});
  }
  if (!complete) {
    notes.Skip(absl::StrFormat("a part of the %s at 0x%x", WordsOf(structure), offset.bytes),
               "it cannot be read");
  }
  return complete;
}

}  // namespace qcow2check

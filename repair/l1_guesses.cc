#include "repair/l1_guesses.h"

#include "absl/strings/str_format.h"
#include "common/byte_order.h"

namespace qcow2check {
namespace {

constexpr uint64_t kHeaderL1OffsetField = 40;
constexpr uint64_t kL1OffsetField = 0;  // of a snapshot entry

}  // namespace

Guess SnapshotL1Guess(const SnapshotEntry& entry, uint64_t offset, int rank,
                      absl::string_view what) {
  return FieldGuess(
      entry.offset_bytes + kL1OffsetField, 8, offset, rank,
      absl::StrFormat("the unreferenced cluster at 0x%x is the snapshot's L1 table: %s", offset,
                      what));
}

void AddGuessesAboutHeader(const Header& header, const SnapshotEntry& entry,
                           std::vector<Guess>& guesses) {
  if (entry.l1_table_offset != header.l1_table_offset) return;
  std::vector<Guess> about_header;
  for (Guess& guess : guesses) {
    if (guess.place_bytes != entry.offset_bytes + kL1OffsetField) continue;
    guess.needed = Proof::kActiveFlagsAgree;
    const uint64_t offset = Load64(guess.bytes.data());
    about_header.push_back(FieldGuess(
        kHeaderL1OffsetField, 8, offset, guess.rank,
        absl::StrFormat("the unreferenced cluster at 0x%x is the L1 table: what the header names "
                        "is a snapshot's, and the COPIED flags fit only this way",
                        offset)));
    about_header.back().needed = Proof::kActiveFlagsAgree;
  }
  guesses.insert(guesses.end(), about_header.begin(), about_header.end());
}

}  // namespace qcow2check

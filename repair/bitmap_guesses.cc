#include "repair/bitmap_guesses.h"

#include <utility>

#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "common/byte_order.h"
#include "common/limits.h"
#include "common/quoted.h"
#include "common/table_entry.h"
#include "repair/patched_file.h"

namespace qcow2check {

std::vector<Guess> BitmapGuesses::ForExtension() const {
  std::vector<Guess> guesses;
  std::vector<HeaderExtension> extensions = state_.extensions.extensions;
  if (state_.extensions.overflow) extensions.push_back(*state_.extensions.overflow);
  for (const HeaderExtension& extension : extensions) {
    const uint32_t difference = extension.type ^ kExtensionBitmaps;
    if ((difference & (difference - 1)) == 0) AddExtensionWords(extension.offset_bytes, guesses);
  }
  return guesses;
}

// One flipped bit in the extension's head or data.
void BitmapGuesses::AddExtensionWords(uint64_t place, std::vector<Guess>& guesses) const {
  constexpr size_t kBytes = kExtensionHeadBytes + kBitmapsExtensionBytes;
  if (place + kBytes > state_.first_cluster.size()) return;
  const auto begin = state_.first_cluster.begin() + static_cast<int64_t>(place);
  const std::vector<uint8_t> words(begin, begin + kBytes);
  for (size_t word = 0; word < kBytes; word += 8) {
    for (const uint64_t value : OneBitAway(Load64(&words[word]), 64)) {
      std::vector<uint8_t> changed = words;
      Store64(&changed[word], value);
      AddIfDirectory(place, std::move(changed), word, 1, guesses);
    }
  }
  std::vector<uint8_t> no_reserved = words;
  Store32(&no_reserved[kExtensionHeadBytes + 4], 0);
  AddIfDirectory(place, std::move(no_reserved), kExtensionHeadBytes, 0, guesses);
}

// `words`: the extension with another word at `word`.
void BitmapGuesses::AddIfDirectory(uint64_t place, std::vector<uint8_t> words, size_t word,
                                   int rank, std::vector<Guess>& guesses) const {
  if (Load32(words.data()) != kExtensionBitmaps || Load32(&words[4]) != kBitmapsExtensionBytes) {
    return;
  }
  const std::optional<BitmapsExtension> fields =
      DecodeBitmapsExtension(absl::MakeSpan(words).subspan(kExtensionHeadBytes));
  const bool moved =
      !place_ || !place_->fields || fields->directory_offset != place_->fields->directory_offset;
  if (moved && !orphans_.Contain(fields->directory_offset, 1)) return;
  if (!IsWholeDirectory(image_, geometry_, *fields)) return;
  guesses.push_back(FieldGuess(
      place + word, 8, Load64(&words[word]), rank,
      absl::StrFormat("with it the extension names a whole directory of %d bitmaps at 0x%x",
                      fields->nb_bitmaps, fields->directory_offset)));
  guesses.back().needed = Proof::kFewerCorruptions;
}

std::vector<Guess> BitmapGuesses::ForDirectory() const {
  std::vector<Guess> guesses;
  if (!place_ || !place_->fields) return guesses;
  AddExtensionWords(place_->offset_bytes, guesses);
  const uint64_t data = place_->offset_bytes + kExtensionHeadBytes;
  for (const uint64_t offset : orphans_.Offsets()) {
    BitmapsExtension moved = *place_->fields;
    moved.directory_offset = offset;
    if (!IsWholeDirectory(image_, geometry_, moved)) continue;
    guesses.push_back(FieldGuess(data + 16, 8, offset, 2,
                                 absl::StrFormat("the unreferenced cluster at 0x%x is the only one "
                                                 "that is such a directory",
                                                 offset)));
  }
  AddEntryLengths(guesses);
  return guesses;
}

// Of the first entry that is none, or the one behind those that can be read.
void BitmapGuesses::AddEntryLengths(std::vector<Guess>& guesses) const {
  uint64_t at = place_->fields->directory_offset;
  for (const BitmapEntry& entry : ReadBitmapDirectory(image_, *place_->fields)) {
    if (!IsPlausible(entry, image_, geometry_)) break;
    at += entry.length_bytes;
  }
  std::vector<uint8_t> fixed(kBitmapFixedBytes);
  if (at >= state_.file.size_bytes() ||
      !image_.ReadAt(HostOffset{at}, absl::MakeSpan(fixed)).ok()) {
    return;
  }
  const auto add_length = [&](uint64_t field, int bytes, uint64_t value) {
    Guess guess = FieldGuess(at + field, bytes, value, 1,
                             "with this length all entries of the directory can be read");
    guess.needed = Proof::kFewerCorruptions;
    PatchedFile copy(image_);
    if (copy.Patch(guess.place_bytes, guess.bytes).ok() &&
        IsWholeDirectory(copy, geometry_, *place_->fields)) {
      guesses.push_back(std::move(guess));
    }
  };
  for (const uint64_t value : OneBitAway(Load16(&fixed[kBitmapNameSizeField]), 16)) {
    add_length(kBitmapNameSizeField, 2, value);
  }
  add_length(kBitmapExtraSizeField, 4, 0);
}

bool BitmapGuesses::IsBitmapTable(uint64_t offset, uint64_t entries, bool must_be_used) const {
  if (entries == 0 || entries > kQemuMaxBitmapTableEntries ||
      !orphans_.Contain(offset, entries * 8)) {
    return false;
  }
  bool used = false, good = true;
  const bool read = ForEachTableEntry(image_, offset, entries, [&](uint64_t, uint64_t entry) {
    used = true;
    good = good && IsTableEntry(entry, image_, geometry_) &&
           (EntryOffset(entry) == 0 || orphans_.Contain(EntryOffset(entry), 1));
  });
  return read && good && (used || !must_be_used);
}

std::vector<Guess> BitmapGuesses::ForTable(const BitmapEntry& entry) const {
  std::vector<Guess> guesses;
  const auto add_offset = [&](uint64_t offset, int rank, bool must_be_used,
                              absl::string_view what) {
    if (!IsBitmapTable(offset, entry.table_entries, must_be_used)) return;
    guesses.push_back(FieldGuess(entry.offset_bytes + kBitmapTableOffsetField, 8, offset, rank,
                                 absl::StrFormat("the unreferenced cluster at 0x%x is the table of "
                                                 "%s: %s",
                                                 offset, Quoted(entry.name), what)));
  };
  const auto add_size = [&](uint64_t entries, int rank) {
    if (!IsBitmapTable(entry.table_offset, entries, false)) return;
    guesses.push_back(
        FieldGuess(entry.offset_bytes + kBitmapTableSizeField, 4, entries, rank,
                   absl::StrFormat("the table of %s has %d entries", Quoted(entry.name), entries)));
  };
  add_size(TableEntriesNeeded(entry, geometry_), 0);
  for (const uint64_t entries : OneBitAway(entry.table_entries, 32)) add_size(entries, 1);
  for (const uint64_t offset : OneBitAway(entry.table_offset, 64)) {
    add_offset(offset, 1, false, "one flipped bit away");
  }
  for (const uint64_t offset : orphans_.Offsets()) {
    add_offset(offset, 2, true, "the only one that fits");
  }
  return guesses;
}

std::vector<Guess> BitmapGuesses::ForTableEntry(uint64_t place, uint64_t entry) const {
  std::vector<Guess> guesses;
  const auto add = [&](uint64_t value, int rank, absl::string_view what) {
    if (!IsTableEntry(value, image_, geometry_) ||
        !orphans_.Contain(EntryOffset(value), geometry_.cluster_size())) {
      return;
    }
    guesses.push_back(FieldGuess(
        place, 8, value, rank,
        absl::StrFormat("the unreferenced cluster at 0x%x is what it led to: %s", value, what)));
  };
  add(EntryOffset(entry), 0, "its other bits must be 0");
  for (const uint64_t value : OneBitAway(entry, 64)) add(value, 1, "one flipped bit away");
  for (const uint64_t offset : orphans_.Offsets()) add(offset, 2, "the only one that fits");
  return guesses;
}

}  // namespace qcow2check

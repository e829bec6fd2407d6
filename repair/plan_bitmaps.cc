// Bitmaps: a damaged pointer or number that can be proven is set right; a bitmap that cannot be
// trusted any more is marked as in use, so that nobody uses it for a backup; one that cannot be
// kept at all is dropped. Guest data is never touched, and where it shares a cluster with a bitmap
// the bitmap gives way.
//
// One kind of change for each check, as the next may show that more is wrong.
#include <algorithm>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_format.h"
#include "common/byte_order.h"
#include "common/limits.h"
#include "common/quoted.h"
#include "common/table_entry.h"
#include "repair/bitmap_directory.h"
#include "repair/bitmap_writer.h"
#include "repair/guess.h"
#include "repair/patched_file.h"
#include "repair/planners.h"

namespace qcow2check {
namespace {

// Bad entries of one bitmap table whose right value is looked for; each costs checks.
constexpr size_t kMostBadEntries = 8;

class BitmapPlanner {
 public:
  BitmapPlanner(CheckState& state, PlanBuilder& plan)
      : state_(state), plan_(plan), geometry_(state.geo()), orphans_(state), writer_(state, plan) {}

  void Run();

 private:
  using Step = void (BitmapPlanner::*)();

  const Finding* FirstOf(FindingCode code) const;
  PlanReason Drop(const Finding& finding, std::string text) const;
  bool WriteRight(const Finding& finding, std::vector<Guess> guesses);

  void RepairExtension();
  void GuessExtensionWords(uint64_t place, std::vector<Guess>& guesses) const;
  void AddIfDirectory(uint64_t place, std::vector<uint8_t> words, size_t word, int rank,
                      std::vector<Guess>& guesses) const;
  void RepairDirectory();
  void GuessDirectory(std::vector<Guess>& guesses) const;
  void RepairEntries();
  const Finding* FindingAbout(const BitmapEntry& entry) const;
  bool IsBitmapTable(uint64_t offset, uint64_t entries, bool must_be_used) const;
  std::vector<Guess> GuessTable(const BitmapEntry& entry) const;
  void DropEntries(const absl::flat_hash_set<uint64_t>& places, const PlanReason& reason);
  void RepairTables();
  bool IsInFile(const BitmapEntry& bitmap) const;
  bool OwnsTable(const BitmapEntry& bitmap) const;
  std::vector<Guess> GuessTableEntry(uint64_t place, uint64_t entry) const;
  void GiveUpEntries(const Finding& finding, const BitmapEntry& bitmap,
                     const std::vector<uint64_t>& places);
  void DropDuplicates();
  void GiveWay();
  bool GiveWayWithData();

  CheckState& state_;
  PlanBuilder& plan_;
  const Geometry& geometry_;
  const Orphans orphans_;
  BitmapWriter writer_;
  std::optional<BitmapsPlace> place_;
  std::vector<BitmapEntry> entries_;  // of the directory, whatever is in them
};

void BitmapPlanner::Run() {
  if (!state_.refcounts_readable || state_.header.version < 3 ||
      !state_.header.Has(kBitmapsConsistent) || state_.findings.Has(FindingCode::kUnreadable)) {
    return;
  }
  place_ = FindBitmapsExtension(state_);
  if (place_ && place_->fields) entries_ = ReadBitmapDirectory(plan_.image(), *place_->fields);
  const uint64_t before = plan_.writes();
  for (const Step step : {&BitmapPlanner::RepairExtension, &BitmapPlanner::RepairDirectory,
                          &BitmapPlanner::RepairEntries, &BitmapPlanner::RepairTables,
                          &BitmapPlanner::DropDuplicates, &BitmapPlanner::GiveWay}) {
    (this->*step)();
    if (plan_.writes() != before) return;
  }
}

const Finding* BitmapPlanner::FirstOf(FindingCode code) const {
  for (const Finding& finding : state_.findings.findings()) {
    if (finding.code == code) return &finding;
  }
  return nullptr;
}

PlanReason BitmapPlanner::Drop(const Finding& finding, std::string text) const {
  PlanReason reason = ReasonFor(finding, std::move(text));
  reason.action = RepairAction::kDropBitmap;
  reason.safety = RepairSafety::kLossless;
  return reason;
}

bool BitmapPlanner::WriteRight(const Finding& finding, std::vector<Guess> guesses) {
  const std::optional<Guess> right = OnlyRightGuess(state_, plan_, std::move(guesses));
  if (!right) return false;
  PlanReason reason = ReasonFor(finding, right->evidence);
  reason.action = RepairAction::kRelink;
  reason.safety = RepairSafety::kLossless;
  plan_.Flush();
  plan_.Write(right->place_bytes, right->bytes, reason);
  plan_.Flush();
  return true;
}

// --- The extension ---

void BitmapPlanner::RepairExtension() {
  const Finding* finding = FirstOf(FindingCode::kBitmapExtensionInvalid);
  if (finding == nullptr) return;
  std::vector<Guess> guesses;
  std::vector<HeaderExtension> extensions = state_.extensions.extensions;
  if (state_.extensions.overflow) extensions.push_back(*state_.extensions.overflow);
  for (const HeaderExtension& extension : extensions) {
    const uint32_t difference = extension.type ^ kExtensionBitmaps;
    if ((difference & (difference - 1)) == 0) GuessExtensionWords(extension.offset_bytes, guesses);
  }
  if (WriteRight(*finding, std::move(guesses))) return;
  writer_.DropAll(place_, Drop(*finding, "the bitmaps cannot be found: the image does without"));
}

// One flipped bit in the extension's head or data.
void BitmapPlanner::GuessExtensionWords(uint64_t place, std::vector<Guess>& guesses) const {
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
void BitmapPlanner::AddIfDirectory(uint64_t place, std::vector<uint8_t> words, size_t word,
                                   int rank, std::vector<Guess>& guesses) const {
  if (Load32(words.data()) != kExtensionBitmaps || Load32(&words[4]) != kBitmapsExtensionBytes) {
    return;
  }
  const std::optional<BitmapsExtension> fields =
      DecodeBitmapsExtension(absl::MakeSpan(words).subspan(kExtensionHeadBytes));
  const bool moved =
      !place_ || !place_->fields || fields->directory_offset != place_->fields->directory_offset;
  if (moved && !orphans_.Contain(fields->directory_offset, 1)) return;
  if (!IsWholeDirectory(plan_.image(), geometry_, *fields)) return;
  guesses.push_back(FieldGuess(
      place + word, 8, Load64(&words[word]), rank,
      absl::StrFormat("with it the extension names a whole directory of %d bitmaps at 0x%x",
                      fields->nb_bitmaps, fields->directory_offset)));
  guesses.back().needed = Proof::kFewerCorruptions;
}

// --- The directory ---

void BitmapPlanner::RepairDirectory() {
  const Finding* finding = FirstOf(FindingCode::kBitmapDirectoryInvalid);
  if (finding == nullptr || !place_ || !place_->fields) return;
  const BitmapsExtension& fields = *place_->fields;
  uint64_t used_bytes = 0;
  for (const BitmapEntry& entry : entries_) used_bytes += entry.length_bytes;
  if (entries_.size() == fields.nb_bitmaps && used_bytes == fields.directory_size_bytes &&
      fields.directory_offset + used_bytes <= state_.file.size_bytes()) {
    return;
  }
  std::vector<Guess> guesses;
  GuessDirectory(guesses);
  if (WriteRight(*finding, std::move(guesses))) return;
  const bool any = std::any_of(entries_.begin(), entries_.end(), [this](const BitmapEntry& entry) {
    return IsPlausible(entry, plan_.image(), geometry_);
  });
  if (!any) {
    writer_.DropAll(place_, Drop(*finding, "there is no bitmap directory: the image does without"));
    return;
  }
  writer_.SetExtension(*place_,
                       {.nb_bitmaps = static_cast<uint32_t>(entries_.size()),
                        .directory_size_bytes = used_bytes,
                        .directory_offset = fields.directory_offset},
                       Drop(*finding, absl::StrFormat("the directory has %d entries; what is "
                                                      "behind them is none",
                                                      entries_.size())));
}

// The directory is elsewhere, has another size, or an entry has another length.
void BitmapPlanner::GuessDirectory(std::vector<Guess>& guesses) const {
  GuessExtensionWords(place_->offset_bytes, guesses);
  const uint64_t data = place_->offset_bytes + kExtensionHeadBytes;
  for (const uint64_t offset : orphans_.Offsets()) {
    BitmapsExtension moved = *place_->fields;
    moved.directory_offset = offset;
    if (!IsWholeDirectory(plan_.image(), geometry_, moved)) continue;
    guesses.push_back(FieldGuess(data + 16, 8, offset, 2,
                                 absl::StrFormat("the unreferenced cluster at 0x%x is the only one "
                                                 "that is such a directory",
                                                 offset)));
  }
  // The first entry that is none, or the one behind those that can be read.
  uint64_t at = place_->fields->directory_offset;
  for (const BitmapEntry& entry : entries_) {
    if (!IsPlausible(entry, plan_.image(), geometry_)) break;
    at += entry.length_bytes;
  }
  std::vector<uint8_t> fixed(kBitmapFixedBytes);
  if (at >= state_.file.size_bytes() ||
      !plan_.image().ReadAt(HostOffset{at}, absl::MakeSpan(fixed)).ok()) {
    return;
  }
  const auto add_length = [&](uint64_t field, int bytes, uint64_t value) {
    Guess guess = FieldGuess(at + field, bytes, value, 1,
                             "with this length all entries of the directory can be read");
    guess.needed = Proof::kFewerCorruptions;
    PatchedFile copy(plan_.image());
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

// --- Its entries ---

const Finding* BitmapPlanner::FindingAbout(const BitmapEntry& entry) const {
  for (const Finding& finding : state_.findings.findings()) {
    if (finding.code == FindingCode::kBitmapDirectoryInvalid && finding.host_offset &&
        finding.host_offset->bytes <= entry.offset_bytes &&
        entry.offset_bytes < finding.host_offset->bytes + finding.length_bytes) {
      return &finding;
    }
  }
  return nullptr;
}

void BitmapPlanner::RepairEntries() {
  absl::flat_hash_set<uint64_t> dropped;
  const Finding* why = nullptr;
  const uint64_t before = plan_.writes();
  for (const BitmapEntry& entry : entries_) {
    const Finding* finding = FindingAbout(entry);
    if (finding == nullptr) continue;
    if (WriteRight(*finding, GuessTable(entry))) return;
    const bool has_name = entry.extra_data_bytes == 0 && entry.name_bytes != 0 &&
                          entry.name_bytes <= kMaxBitmapNameBytes;
    if (has_name && IsBitmapTable(entry.table_offset, entry.table_entries, false)) {
      writer_.MarkInUse(entry, Drop(*finding, absl::StrFormat("the bitmap %s is marked as in use: "
                                                              "it stays, but is not to be trusted",
                                                              Quoted(entry.name))));
      continue;
    }
    dropped.insert(entry.offset_bytes);
    why = finding;
  }
  if (plan_.writes() != before || why == nullptr) return;
  DropEntries(dropped, Drop(*why, "bitmaps whose tables cannot be found are dropped"));
}

// Whether these are orphans that hold nothing but entries that lead to orphans.
bool BitmapPlanner::IsBitmapTable(uint64_t offset, uint64_t entries, bool must_be_used) const {
  if (entries == 0 || entries > kQemuMaxBitmapTableEntries ||
      !orphans_.Contain(offset, entries * 8)) {
    return false;
  }
  bool used = false, good = true;
  const bool read =
      ForEachTableEntry(plan_.image(), offset, entries, [&](uint64_t, uint64_t entry) {
        used = true;
        good = good && IsTableEntry(entry, plan_.image(), geometry_) &&
               (EntryOffset(entry) == 0 || orphans_.Contain(EntryOffset(entry), 1));
      });
  return read && good && (used || !must_be_used);
}

// Where the table may be, and how many entries it may have.
std::vector<Guess> BitmapPlanner::GuessTable(const BitmapEntry& entry) const {
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

void BitmapPlanner::DropEntries(const absl::flat_hash_set<uint64_t>& places,
                                const PlanReason& reason) {
  std::vector<BitmapEntry> kept;
  for (const BitmapEntry& entry : entries_) {
    if (!places.contains(entry.offset_bytes)) kept.push_back(entry);
  }
  if (kept.empty()) {
    writer_.DropAll(place_, reason);
  } else {
    writer_.WriteDirectory(*place_, kept, {}, reason);
  }
}

// --- Tables ---

void BitmapPlanner::RepairTables() {
  const Finding* finding = FirstOf(FindingCode::kBitmapTableInvalid);
  if (finding == nullptr) return;
  absl::flat_hash_set<uint64_t> dropped;
  const uint64_t before = plan_.writes();
  for (const BitmapEntry& bitmap : state_.bitmaps) {
    std::vector<uint64_t> bad, bad_places;
    uint64_t good = 0;
    if (IsInFile(bitmap)) {
      ForEachTableEntry(plan_.image(), bitmap.table_offset, bitmap.table_entries,
                        [&](uint64_t index, uint64_t entry) {
                          if (IsTableEntry(entry, plan_.image(), geometry_)) {
                            ++good;
                          } else {
                            bad.push_back(entry);
                            bad_places.push_back(bitmap.table_offset + index * 8);
                          }
                        });
      if (bad.empty()) continue;
    }
    if (WriteRight(*finding, GuessTable(bitmap))) return;
    for (size_t i = 0; i < bad.size() && bad.size() <= kMostBadEntries; ++i) {
      if (WriteRight(*finding, GuessTableEntry(bad_places[i], bad[i]))) return;
    }
    // A table, with something wrong in it, or something else?
    if (OwnsTable(bitmap) && (bad.size() == 1 || bad.size() <= good)) {
      GiveUpEntries(*finding, bitmap, bad_places);
    } else {
      dropped.insert(bitmap.offset_bytes);
    }
  }
  if (plan_.writes() != before || dropped.empty()) return;
  DropEntries(dropped, Drop(*finding, "bitmaps whose tables cannot be read are dropped"));
}

bool BitmapPlanner::IsInFile(const BitmapEntry& bitmap) const {
  return SaturatingAdd(bitmap.table_offset, uint64_t{bitmap.table_entries} * 8) <=
         state_.file.size_bytes();
}

// Whether the clusters of the table are nothing else.
bool BitmapPlanner::OwnsTable(const BitmapEntry& bitmap) const {
  if (!IsInFile(bitmap)) return false;
  const uint64_t end = bitmap.table_offset + uint64_t{bitmap.table_entries} * 8;
  for (uint64_t at = bitmap.table_offset; at < end; at += geometry_.cluster_size()) {
    if (state_.expected->Get(at >> geometry_.cluster_bits) != 1) return false;
  }
  return true;
}

std::vector<Guess> BitmapPlanner::GuessTableEntry(uint64_t place, uint64_t entry) const {
  std::vector<Guess> guesses;
  const auto add = [&](uint64_t value, int rank, absl::string_view what) {
    if (!IsTableEntry(value, plan_.image(), geometry_) ||
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

// What these entries of the bitmap's table led to is not known any more.
void BitmapPlanner::GiveUpEntries(const Finding& finding, const BitmapEntry& bitmap,
                                  const std::vector<uint64_t>& places) {
  const PlanReason reason =
      Drop(finding, absl::StrFormat("a part of the bitmap %s is lost: it is marked as in use, and "
                                    "the part gives way",
                                    Quoted(bitmap.name)));
  writer_.MarkInUse(bitmap, reason);
  for (const uint64_t place : places) plan_.Write64(place, 0, reason);
  plan_.Flush();
}

// --- Names ---

void BitmapPlanner::DropDuplicates() {
  const Finding* finding = FirstOf(FindingCode::kBitmapDuplicate);
  if (finding == nullptr) return;
  absl::flat_hash_set<std::string> names;
  std::vector<BitmapEntry> kept, emptied;
  for (const BitmapEntry& entry : entries_) {
    if (names.insert(entry.name).second) {
      kept.push_back(entry);
    } else if (OwnsTable(entry)) {
      emptied.push_back(entry);
    }
  }
  writer_.WriteDirectory(*place_, kept, emptied,
                         Drop(*finding, "of two bitmaps with one name the second is dropped"));
}

// --- Clusters that a bitmap shares with something else ---

void BitmapPlanner::GiveWay() {
  if (!place_ || GiveWayWithData()) return;
  const auto collides = [this](Structure structure, uint64_t offset) -> const Finding* {
    for (const Finding& finding : state_.findings.findings()) {
      if (finding.code != FindingCode::kMetadataOverlap &&
          finding.code != FindingCode::kDataOnMetadata) {
        continue;
      }
      for (const Owner& owner : finding.owners) {
        if (owner.structure == structure && owner.host_offset.bytes == offset) return &finding;
      }
    }
    return nullptr;
  };
  absl::flat_hash_set<uint64_t> dropped;
  const Finding* why = nullptr;
  for (const BitmapEntry& bitmap : state_.bitmaps) {
    const Finding* finding = collides(Structure::kBitmapTable, bitmap.table_offset);
    if (finding == nullptr) continue;
    if (WriteRight(*finding, GuessTable(bitmap))) return;
    dropped.insert(bitmap.offset_bytes);
    why = finding;
  }
  if (why != nullptr) {
    plan_.ExpectLosses();
    DropEntries(dropped, Drop(*why,
                              "bitmaps whose tables are in the place of something else are "
                              "dropped"));
    return;
  }
  const Finding* finding =
      collides(Structure::kBitmapDirectory, place_->fields ? place_->fields->directory_offset : 0);
  if (finding == nullptr) return;
  std::vector<Guess> guesses;
  GuessDirectory(guesses);
  if (WriteRight(*finding, std::move(guesses))) return;
  plan_.ExpectLosses();
  writer_.WriteDirectory(*place_, entries_, {},
                         Drop(*finding, "the bitmap directory moves out of the way"));
}

// Bitmap data in a cluster that is something else, too: what is in it is no bitmap.
bool BitmapPlanner::GiveWayWithData() {
  absl::flat_hash_set<uint64_t> shared;
  const Finding* why = nullptr;
  for (const Finding& finding : state_.findings.findings()) {
    if (finding.code != FindingCode::kMetadataOverlap &&
        finding.code != FindingCode::kDataOnMetadata) {
      continue;
    }
    const bool has_bitmap_data =
        std::any_of(finding.owners.begin(), finding.owners.end(),
                    [](const Owner& owner) { return owner.structure == Structure::kBitmapData; });
    if (!has_bitmap_data) continue;
    shared.insert(finding.host_offset->bytes);
    why = &finding;
  }
  if (why == nullptr) return false;
  const uint64_t before = plan_.writes();
  plan_.ExpectLosses();
  for (const BitmapEntry& bitmap : state_.bitmaps) {
    std::vector<uint64_t> places;
    if (!OwnsTable(bitmap)) continue;
    ForEachTableEntry(plan_.image(), bitmap.table_offset, bitmap.table_entries,
                      [&](uint64_t index, uint64_t entry) {
                        if (shared.contains(EntryOffset(entry))) {
                          places.push_back(bitmap.table_offset + index * 8);
                        }
                      });
    if (!places.empty()) GiveUpEntries(*why, bitmap, places);
  }
  return plan_.writes() != before;
}

}  // namespace

void PlanBitmaps(CheckState& state, PlanBuilder& plan) { BitmapPlanner(state, plan).Run(); }

}  // namespace qcow2check

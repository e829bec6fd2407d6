// Bitmaps: a damaged pointer or number that can be proven is set right; a bitmap that cannot be
// trusted any more is marked as in use, so that nobody uses it for a backup; one that cannot be
// kept at all is dropped. Guest data is never touched, and where it shares a cluster with a bitmap
// the bitmap gives way.
//
// One kind of change for each check, as the next may show that more is wrong.
#include <algorithm>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_format.h"
#include "common/byte_order.h"
#include "common/limits.h"
#include "common/quoted.h"
#include "common/table_entry.h"
#include "repair/bitmap_directory.h"
#include "repair/bitmap_guesses.h"
#include "repair/bitmap_writer.h"
#include "repair/guess.h"
#include "repair/kept_page.h"
#include "repair/metadata_doubt.h"
#include "repair/planners.h"

namespace qcow2check {
namespace {

// Bad entries of one bitmap table whose right value is looked for; each costs checks.
constexpr size_t kMostBadEntries = 8;
// Bitmaps whose table is looked for.
constexpr uint64_t kMostTables = 256;

class BitmapPlanner {
 public:
  BitmapPlanner(CheckState& state, PlanBuilder& plan)
      : state_(state),
        plan_(plan),
        geometry_(state.geo()),
        guesses_(state, plan.image()),
        writer_(state, plan) {}

  void Run();
  // Only what is proven of the extension.
  void RelinkExtension();

 private:
  using Step = void (BitmapPlanner::*)();

  bool MayPlan() const;
  const Finding* FirstOf(FindingCode code) const;
  PlanReason Drop(const Finding& finding, std::string text) const;
  bool WriteRight(const Finding& finding, std::vector<Guess> guesses);
  bool WriteRightTable(const Finding& finding, const BitmapEntry& bitmap);

  void RepairExtension();
  void RepairDirectory();
  void RepairEntries();
  absl::flat_hash_map<uint64_t, const Finding*> FindingsAboutEntries() const;
  std::vector<BitmapEntry> EntriesToKeep() const;
  void KeepOnly(const std::vector<BitmapEntry>& kept, const PlanReason& reason);
  void DropEntries(const absl::flat_hash_set<uint64_t>& places, const PlanReason& reason);
  void RepairTables();
  bool IsInFile(const BitmapEntry& bitmap) const;
  bool OwnsTable(const BitmapEntry& bitmap) const;
  void GiveUpEntries(const Finding& finding, const BitmapEntry& bitmap,
                     const std::vector<uint64_t>& places);
  void DropDuplicates();
  void GiveWay();
  bool GiveWayWithData();
  bool IsOfOthers(const Finding& finding) const;

  CheckState& state_;
  PlanBuilder& plan_;
  const Geometry& geometry_;
  const BitmapGuesses guesses_;
  BitmapWriter writer_;
  std::optional<BitmapsPlace> place_;
  std::vector<BitmapEntry> entries_;  // of the directory, whatever is in them
  uint64_t tables_left_ = kMostTables;
};

bool BitmapPlanner::MayPlan() const {
  return state_.refcounts_readable && state_.header.version >= 3 &&
         state_.header.Has(kBitmapsConsistent) && !state_.findings.Has(FindingCode::kUnreadable);
}

void BitmapPlanner::Run() {
  if (!MayPlan()) return;
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
  return WriteOnlyRightGuess(state_, plan_, finding, std::move(guesses));
}

bool BitmapPlanner::WriteRightTable(const Finding& finding, const BitmapEntry& bitmap) {
  if (tables_left_ == 0) return false;
  --tables_left_;
  return WriteRight(finding, guesses_.ForTable(bitmap));
}

// --- The extension ---

void BitmapPlanner::RelinkExtension() {
  const Finding* finding = FirstOf(FindingCode::kBitmapExtensionInvalid);
  if (MayPlan() && finding != nullptr) WriteRight(*finding, guesses_.ForExtension());
}

void BitmapPlanner::RepairExtension() {
  const Finding* finding = FirstOf(FindingCode::kBitmapExtensionInvalid);
  if (finding == nullptr) return;
  if (WriteRight(*finding, guesses_.ForExtension())) return;
  writer_.DropAll(place_, Drop(*finding, "the bitmaps cannot be found: the image does without"));
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
  if (WriteRight(*finding, guesses_.ForDirectory())) return;
  KeepOnly(EntriesToKeep(),
           Drop(*finding, "bitmaps whose entries in the directory cannot be read are dropped"));
}

// --- Its entries ---

// What is wrong with entries of the directory, by their offsets.
absl::flat_hash_map<uint64_t, const Finding*> BitmapPlanner::FindingsAboutEntries() const {
  absl::flat_hash_map<uint64_t, const Finding*> about;
  for (const Finding& finding : state_.findings.findings()) {
    if (finding.code != FindingCode::kBitmapDirectoryInvalid || !finding.host_offset) continue;
    const uint64_t begin = finding.host_offset->bytes;
    for (auto entry = std::lower_bound(
             entries_.begin(), entries_.end(), begin,
             [](const BitmapEntry&e, uint64_t offset) { return e.offset_bytes < offset; });
         entry != entries_.end() && entry->offset_bytes < begin + finding.length_bytes; ++entry) {
      about.emplace(entry->offset_bytes, &finding);
    }
  }
  return about;
}

void BitmapPlanner::RepairEntries() {
  absl::flat_hash_set<uint64_t> dropped;
  const Finding* why = nullptr;
  const uint64_t before = plan_.writes();
  const auto findings = FindingsAboutEntries();
  for (const BitmapEntry& entry : entries_) {
    const auto about = findings.find(entry.offset_bytes);
    if (about == findings.end()) continue;
    const Finding* finding = about->second;
    if (WriteRightTable(*finding, entry)) return;
    const bool has_name = entry.extra_data_bytes == 0 && entry.name_bytes != 0 &&
                          entry.name_bytes <= kMaxBitmapNameBytes;
    if (has_name && guesses_.IsBitmapTable(entry.table_offset, entry.table_entries, false)) {
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

// Entries of the directory that are walked, or would be if those before them were right: what is
// left of it when something else was written into it.
std::vector<BitmapEntry> BitmapPlanner::EntriesToKeep() const {
  absl::flat_hash_set<uint64_t> walked;
  for (const BitmapEntry& bitmap : state_.bitmaps) walked.insert(bitmap.offset_bytes);
  const KeptPage directory(plan_.image());
  std::vector<BitmapEntry> kept;
  uint64_t at = place_->fields->directory_offset;
  const uint64_t end = std::min(DirectoryEnd(plan_.image(), *place_->fields), at + kMaxPieceBytes);
  while (at < end) {
    std::optional<BitmapEntry> entry = ReadBitmapEntry(directory, at, end);
    if (entry && (walked.contains(at) ||
                  (IsPlausible(*entry, plan_.image(), geometry_) &&
                   guesses_.IsBitmapTable(entry->table_offset, entry->table_entries, false)))) {
      at += entry->length_bytes;
      kept.push_back(*std::move(entry));
    } else {
      at += 8;
    }
  }
  return kept;
}

void BitmapPlanner::KeepOnly(const std::vector<BitmapEntry>& kept, const PlanReason& reason) {
  if (kept.empty()) {
    writer_.DropAll(place_, reason);
  } else {
    writer_.WriteDirectory(*place_, kept, {}, reason);
  }
}

void BitmapPlanner::DropEntries(const absl::flat_hash_set<uint64_t>& places,
                                const PlanReason& reason) {
  std::vector<BitmapEntry> kept = EntriesToKeep();
  kept.erase(
      std::remove_if(kept.begin(), kept.end(),
                     [&](const BitmapEntry& entry) { return places.contains(entry.offset_bytes); }),
      kept.end());
  KeepOnly(kept, reason);
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
    if (WriteRightTable(*finding, bitmap)) return;
    for (size_t i = 0; i < bad.size() && bad.size() <= kMostBadEntries; ++i) {
      if (WriteRight(*finding, guesses_.ForTableEntry(bad_places[i], bad[i]))) return;
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
  absl::flat_hash_map<std::pair<Structure, uint64_t>, const Finding*> collisions;
  for (const Finding& finding : state_.findings.findings()) {
    if (finding.code != FindingCode::kMetadataOverlap &&
        finding.code != FindingCode::kDataOnMetadata) {
      continue;
    }
    for (const Owner& owner : finding.owners) {
      collisions.emplace(std::pair(owner.structure, owner.host_offset.bytes), &finding);
    }
  }
  const auto collides = [&collisions](Structure structure, uint64_t offset) -> const Finding* {
    const auto found = collisions.find({structure, offset});
    return found == collisions.end() ? nullptr : found->second;
  };
  absl::flat_hash_set<uint64_t> dropped;
  const Finding* why = nullptr;
  for (const BitmapEntry& bitmap : state_.bitmaps) {
    const Finding* finding = collides(Structure::kBitmapTable, bitmap.table_offset);
    if (finding == nullptr) continue;
    if (WriteRightTable(*finding, bitmap)) return;
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
  if (WriteRight(*finding, guesses_.ForDirectory())) return;
  plan_.ExpectLosses();
  writer_.WriteDirectory(*place_, entries_, {},
                         Drop(*finding, "the bitmap directory moves out of the way"));
}

// Bitmap data in a cluster that is something else, too: what is in it is no bitmap.
bool BitmapPlanner::GiveWayWithData() {
  absl::flat_hash_map<uint64_t, const Finding*> shared;
  for (const Finding& finding : state_.findings.findings()) {
    if (finding.code != FindingCode::kMetadataOverlap &&
        finding.code != FindingCode::kDataOnMetadata) {
      continue;
    }
    for (const Owner& owner : finding.owners) {
      if (owner.structure == Structure::kBitmapData) shared[finding.host_offset->bytes] = &finding;
    }
  }
  if (shared.empty()) return false;
  const uint64_t before = plan_.writes();
  for (const BitmapEntry& bitmap : state_.bitmaps) {
    if (!OwnsTable(bitmap)) continue;
    std::vector<uint64_t> places;
    const Finding* why = nullptr;
    ForEachTableEntry(plan_.image(), bitmap.table_offset, bitmap.table_entries,
                      [&](uint64_t index, uint64_t entry) {
                        const auto found = shared.find(EntryOffset(entry));
                        if (found == shared.end()) return;
                        places.push_back(bitmap.table_offset + index * 8);
                        why = found->second;
                      });
    if (places.empty()) continue;
    if (places.size() == 1 && IsOfOthers(*why)) {
      uint8_t entry[8];
      if (plan_.image().ReadAt(HostOffset{places.front()}, entry).ok() &&
          WriteRight(*why, guesses_.ForTableEntry(places.front(), Load64(entry)))) {
        return true;
      }
    }
    plan_.ExpectLosses();
    GiveUpEntries(*why, bitmap, places);
  }
  return plan_.writes() != before;
}

// Whether all others who use the cluster are what should be there.
bool BitmapPlanner::IsOfOthers(const Finding& finding) const {
  if (finding.code != FindingCode::kMetadataOverlap) return false;
  const bool good_directory =
      !entries_.empty() && std::all_of(entries_.begin(), entries_.end(), [this](const auto& entry) {
        return IsPlausible(entry, plan_.image(), geometry_);
      });
  uint64_t data = 0;
  for (const Owner& owner : finding.owners) {
    const bool is_data = owner.structure == Structure::kBitmapData;
    data += is_data ? 1 : 0;
    const bool is_good = is_data ||
                         (owner.structure == Structure::kBitmapDirectory && good_directory) ||
                         !IsInDoubt(state_, plan_.image(), owner, *finding.host_offset);
    if (!is_good) return false;
  }
  return data == 1;
}

}  // namespace

void PlanBitmapsExtension(CheckState& state, PlanBuilder& plan) {
  BitmapPlanner(state, plan).RelinkExtension();
}

void PlanBitmaps(CheckState& state, PlanBuilder& plan) { BitmapPlanner(state, plan).Run(); }

}  // namespace qcow2check

// Snapshots: where their table is and how many entries it has, the lengths in its entries, the L1
// tables they name, and the extra data that version 3 requires.
//
// A snapshot is never given up. What was damaged is set right if exactly one value makes the whole
// image fit together (repair/guess.h), and declined otherwise: then the check holds the clusters
// back. One write at most for each check, as the next may show that more is wrong.
#include <algorithm>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_format.h"
#include "checker/table_shape.h"
#include "common/byte_order.h"
#include "common/limits.h"
#include "common/table_entry.h"
#include "repair/guess.h"
#include "repair/l1_guesses.h"
#include "repair/patched_file.h"
#include "repair/planners.h"
#include "repair/refcount_structures.h"
#include "repair/snapshot_suspicions.h"
#include "repair/snapshot_table.h"

namespace qcow2check {
namespace {

constexpr uint64_t kCountField = 60;
constexpr uint64_t kOffsetField = 64;
// In an entry.
constexpr uint64_t kL1SizeField = 8;
constexpr uint64_t kIdSizeField = 12;
constexpr uint64_t kNameSizeField = 14;
constexpr uint64_t kExtraSizeField = 36;
constexpr uint64_t kVmStateSizeField = 40;
constexpr uint64_t kDiskSizeField = 48;
// Of id and name together, where their lengths are looked for.
constexpr uint64_t kMostTextBytes = 4096;
// Snapshots whose L1 tables are looked for; each costs checks.
constexpr size_t kMostSearched = 8;

struct DeclineReason {
  FindingCode code;
  absl::string_view reason;
};
constexpr DeclineReason kDeclineReasons[] = {
    {FindingCode::kSnapshotTableInvalid,
     "not exactly one snapshot table explains it; the clusters of the snapshots are kept"},
    {FindingCode::kSnapshotTooMany,
     "it cannot be proven how many there are; the clusters of the snapshots are kept"},
    {FindingCode::kSnapshotEntryIncomplete,
     "the snapshot table cannot be read as a whole, so it is not written anew"},
    {FindingCode::kSnapshotExtraTooLarge,
     "not exactly one size explains the entry; the clusters of the snapshot are kept"},
    {FindingCode::kSnapshotL1Invalid,
     "not exactly one L1 table explains it; the clusters of the snapshot are kept"},
    {FindingCode::kSnapshotSizeMismatch,
     "it cannot be told whether the size of the disk or of the L1 table is wrong"},
    {FindingCode::kSnapshotDuplicate, "both snapshots are whole; delete or rename one of them"},
    {FindingCode::kDataFileSnapshots, "deleting the snapshots is up to you"},
};

class SnapshotPlanner {
 public:
  SnapshotPlanner(CheckState& state, PlanBuilder& plan)
      : state_(state), plan_(plan), orphans_(state), suspicions_(state) {
    for (const L2Table& table : state.l2_tables) {
      if (table.shape != L2Shape::kLost) l2_tables_.insert(table.offset_bytes);
    }
  }

  void Run();

 private:
  const Finding* FirstOf(std::initializer_list<FindingCode> codes) const;
  bool WriteRight(const Finding& finding, std::vector<Guess> guesses);
  bool RestoreCount();
  bool RestoreTable();
  const Finding* SuspicionAboutTable() const;
  void GuessTableOffset(std::vector<Guess>& guesses) const;
  void GuessEntryLengths(uint64_t entry_at, std::vector<Guess>& guesses) const;
  uint64_t TextBytes(uint64_t text_at) const;
  bool RestoreL1Tables();
  bool HasGoodL1(uint64_t snapshot, const Finding& finding) const;
  std::vector<Guess> GuessNearL1(uint64_t snapshot) const;
  void GuessSizes(const SnapshotEntry& entry, std::vector<Guess>& guesses) const;
  bool IsInFile(uint64_t offset, uint64_t entries) const;
  std::vector<Guess> GuessUnreferencedL1(const SnapshotEntry& entry) const;
  bool IsL1(uint64_t offset, uint64_t entries) const;
  bool LeadsToL2Tables(uint64_t offset, uint64_t entries) const;
  bool CompleteEntries();

  CheckState& state_;
  PlanBuilder& plan_;
  const Orphans orphans_;
  const SnapshotSuspicions suspicions_;
  absl::flat_hash_set<uint64_t> l2_tables_;  // in use, by offset
  std::vector<SnapshotEntry> entries_;       // those that are beyond doubt, from the first on
  // Whether what is there, of so many entries, is an L1 table: thousands of snapshots may name one.
  mutable absl::flat_hash_map<std::pair<uint64_t, uint64_t>, bool> is_l1_;
};

void SnapshotPlanner::Run() {
  if (!state_.refcounts_readable || state_.findings.Has(FindingCode::kUnreadable)) return;
  entries_ = ReadPlausibleEntries(plan_.image(), state_.header.snapshots_offset,
                                  state_.header.nb_snapshots);
  if (RestoreCount() || RestoreTable() || RestoreL1Tables() || CompleteEntries()) return;
  for (const Finding& finding : state_.findings.findings()) {
    for (const DeclineReason& decline : kDeclineReasons) {
      if (finding.code != decline.code) continue;
      plan_.Decline(finding.code, finding.host_offset, std::string(decline.reason));
    }
  }
}

const Finding* SnapshotPlanner::FirstOf(std::initializer_list<FindingCode> codes) const {
  for (const FindingCode code : codes) {
    for (const Finding& finding : state_.findings.findings()) {
      if (finding.code == code) return &finding;
    }
  }
  return nullptr;
}

bool SnapshotPlanner::WriteRight(const Finding& finding, std::vector<Guess> guesses) {
  return WriteOnlyRightGuess(state_, plan_, finding, std::move(guesses));
}

// The header says that there are none, but their table is there.
bool SnapshotPlanner::RestoreCount() {
  const Finding* finding = FirstOf({FindingCode::kSnapshotTableInvalid});
  if (finding == nullptr || state_.header.nb_snapshots != 0) return false;
  uint64_t at = state_.header.snapshots_offset;
  if (!IsAligned(at, state_.geo().cluster_size()) || at >= uint64_t{1} << 63) {
    plan_.Write64(kOffsetField, 0,
                  ReasonFor(*finding, "no table can be there, and none is needed"));
    plan_.Flush();
    return true;
  }
  uint64_t count = 0;
  while (count < kQemuMaxSnapshots) {
    const std::optional<SnapshotEntry> entry = ReadPlausibleEntry(plan_.image(), at);
    if (!entry || !orphans_.Contain(entry->l1_table_offset, uint64_t{entry->l1_size} * 8)) break;
    at += entry->length_bytes;
    ++count;
  }
  // What looks like one more may be one whose L1 table was damaged, or what was there before.
  const bool more_may_follow = ReadPlausibleEntry(plan_.image(), at).has_value();
  if (count == 0 || more_may_follow) return false;
  return WriteRight(*finding, {FieldGuess(kCountField, 4, count, 0,
                                          absl::StrFormat("the table at 0x%x has %d entries, and "
                                                          "nothing else references what they name",
                                                          state_.header.snapshots_offset, count))});
}

// Why the table may not be read as it was written; nullptr if nothing says so.
const Finding* SnapshotPlanner::SuspicionAboutTable() const {
  const Finding* finding =
      FirstOf({FindingCode::kSnapshotTableInvalid, FindingCode::kSnapshotTooMany,
               FindingCode::kSnapshotExtraTooLarge, FindingCode::kSnapshotEntryIncomplete,
               FindingCode::kSnapshotL1Invalid, FindingCode::kSnapshotSizeMismatch});
  if (finding != nullptr) return finding;
  // It reaches over other things.
  for (const Finding& other : state_.findings.findings()) {
    for (const Owner& owner : other.owners) {
      if (owner.structure == Structure::kSnapshotTable) return &other;
    }
  }
  return nullptr;
}

// The table is elsewhere, an entry has other lengths, or there are fewer entries.
bool SnapshotPlanner::RestoreTable() {
  const uint64_t wanted = state_.header.nb_snapshots;
  const Finding* finding = SuspicionAboutTable();
  if (finding == nullptr || wanted == 0 || entries_.size() == wanted) return false;
  std::vector<Guess> guesses;
  if (entries_.empty()) GuessTableOffset(guesses);
  if (wanted <= kQemuMaxSnapshots) {
    GuessEntryLengths(entries_.empty()
                          ? state_.header.snapshots_offset
                          : entries_.back().offset_bytes + entries_.back().length_bytes,
                      guesses);
  }
  // Refcounts that were lowered because snapshots cannot be read prove nothing about them.
  if (!plan_.options().free_orphans) {
    guesses.push_back(FieldGuess(kCountField, 4, entries_.size(), 3,
                                 absl::StrFormat("behind entry %d there is none, and with %d "
                                                 "snapshots every refcount is right",
                                                 entries_.size(), entries_.size())));
    guesses.back().needed = Proof::kAllAgrees;
  }
  return WriteRight(*finding, guesses);
}

void SnapshotPlanner::GuessTableOffset(std::vector<Guess>& guesses) const {
  const uint64_t count = state_.header.nb_snapshots;
  if (count > kQemuMaxSnapshots) return;
  const auto add_if_table = [&](uint64_t offset, int rank, absl::string_view what) {
    if (!orphans_.Contain(offset, 1) ||
        ReadPlausibleEntries(plan_.image(), offset, count).size() != count) {
      return;
    }
    guesses.push_back(
        FieldGuess(kOffsetField, 8, offset, rank,
                   absl::StrFormat("the unreferenced cluster at 0x%x is the snapshot table: %s",
                                   offset, what)));
  };
  for (const uint64_t offset : OneBitAway(state_.header.snapshots_offset, 64)) {
    add_if_table(offset, 1, "one flipped bit away");
  }
  for (const uint64_t offset : orphans_.Offsets())
    add_if_table(offset, 2, "the only one that fits");
}

// One of the three lengths in the entry there was damaged. With the right one, it and all that
// follow are entries.
void SnapshotPlanner::GuessEntryLengths(uint64_t entry_at, std::vector<Guess>& guesses) const {
  std::vector<uint8_t> fixed(kSnapshotFixedBytes);
  if (entry_at >= state_.file.size_bytes() ||
      !plan_.image().ReadAt(HostOffset{entry_at}, absl::MakeSpan(fixed)).ok()) {
    return;
  }
  const uint64_t missing = state_.header.nb_snapshots - entries_.size();
  const auto add_if_entries = [&](uint64_t field, int bytes, uint64_t value) {
    Guess guess = FieldGuess(entry_at + field, bytes, value, 1,
                             absl::StrFormat("with a length of %d the entry, and what follows, "
                                             "can be read",
                                             value));
    guess.needed = Proof::kFewerCorruptions;
    PatchedFile copy(plan_.image());
    if (!copy.Patch(guess.place_bytes, guess.bytes).ok() ||
        ReadPlausibleEntries(copy, entry_at, missing).size() != missing) {
      return;
    }
    guesses.push_back(std::move(guess));
  };
  for (const uint64_t value : {0, 16, 24}) add_if_entries(kExtraSizeField, 4, value);
  for (const uint64_t value : OneBitAway(Load32(&fixed[kExtraSizeField]), 32)) {
    add_if_entries(kExtraSizeField, 4, value);
  }
  const uint64_t text_bytes =
      TextBytes(entry_at + kSnapshotFixedBytes + Load32(&fixed[kExtraSizeField]));
  for (const auto& [field, other] :
       {std::pair(kIdSizeField, kNameSizeField), std::pair(kNameSizeField, kIdSizeField)}) {
    const uint64_t other_bytes = Load16(&fixed[other]);
    if (other_bytes < text_bytes) add_if_entries(field, 2, text_bytes - other_bytes);
    for (const uint64_t value : OneBitAway(Load16(&fixed[field]), 16)) {
      add_if_entries(field, 2, value);
    }
  }
}

// The length of id and name together: up to the padding, or to the next entry, which both start
// with a 0.
uint64_t SnapshotPlanner::TextBytes(uint64_t text_at) const {
  std::vector<uint8_t> text(kMostTextBytes);
  if (text_at >= state_.file.size_bytes() ||
      !plan_.image().ReadAt(HostOffset{text_at}, absl::MakeSpan(text)).ok()) {
    return 0;
  }
  return static_cast<uint64_t>(std::find(text.begin(), text.end(), 0) - text.begin());
}

// Whether the snapshot's L1 table is one, so that what is wrong with it must be elsewhere.
bool SnapshotPlanner::HasGoodL1(uint64_t snapshot, const Finding& finding) const {
  const SnapshotEntry& entry = entries_[snapshot];
  if (suspicions_.HasFinding(snapshot, FindingCode::kSnapshotL1Invalid) ||
      suspicions_.HasFinding(snapshot, FindingCode::kSnapshotSizeMismatch) ||
      finding.code == FindingCode::kRefcountTooLow) {
    return false;
  }
  return IsL1(entry.l1_table_offset, entry.l1_size) ||
         (finding.code == FindingCode::kMetadataOverlap && entry.l1_size != 0 &&
          ReadsAsZeros(plan_.image(), entry.l1_table_offset, uint64_t{entry.l1_size} * 8));
}

// A flipped bit says which snapshot it was, unless two snapshots are that near to one table. Where
// only unreferenced L1 tables are left to compare, they must not fit another damaged snapshot as
// well.
bool SnapshotPlanner::RestoreL1Tables() {
  std::vector<Guess> among_all;
  std::vector<std::pair<const Finding*, Guess>> right;
  const Finding* first = nullptr;
  size_t searched = 0;
  for (uint64_t i = 0; i < entries_.size() && searched < kMostSearched; ++i) {
    const Finding* finding = suspicions_.About(i);
    if (finding == nullptr || HasGoodL1(i, *finding)) continue;
    ++searched;
    std::vector<Guess> near = GuessNearL1(i), unreferenced = GuessUnreferencedL1(entries_[i]);
    AddGuessesAboutHeader(state_.header, entries_[i], near);
    AddGuessesAboutHeader(state_.header, entries_[i], unreferenced);
    std::optional<Guess> guess = OnlyRightGuess(state_, plan_, std::move(near));
    if (guess) right.push_back({finding, *std::move(guess)});
    if (first == nullptr) first = finding;
    among_all.insert(among_all.end(), unreferenced.begin(), unreferenced.end());
  }
  for (const auto& [finding, guess] : right) {
    const auto same = std::count_if(
        right.begin(), right.end(),
        [&bytes = guess.bytes](const auto& other) { return other.second.bytes == bytes; });
    const bool is_offset = guess.bytes.size() == 8;
    if (!is_offset || same == 1) return WriteRight(*finding, {guess});
  }
  return first != nullptr && right.empty() && WriteRight(*first, std::move(among_all));
}

// The fields of the entry that say where the L1 table is, how long it is, and how long it must be.
std::vector<Guess> SnapshotPlanner::GuessNearL1(uint64_t snapshot) const {
  const SnapshotEntry& entry = entries_[snapshot];
  const Geometry& geometry = state_.geo();
  std::vector<Guess> guesses;
  const uint64_t needed = L1EntriesNeeded(entry, geometry);
  // A table that ends too early looks as good as the whole one, but then something is left over.
  const auto add_size = [&](uint64_t entries, int rank, Proof proof) {
    const uint64_t offset = entry.l1_table_offset;
    if (!IsInFile(offset, entries)) return;
    const bool used = IsL1(offset, entries);
    if (!used && !ReadsAsZeros(plan_.image(), offset, entries * 8)) return;
    guesses.push_back(
        FieldGuess(entry.offset_bytes + kL1SizeField, 4, entries, rank,
                   absl::StrFormat("the snapshot's L1 table has %d entries", entries)));
    guesses.back().needed = used ? proof : Proof::kAllAgrees;
  };
  add_size(needed, 0, Proof::kAllAgrees);
  const bool is_wrong = suspicions_.HasFinding(snapshot, FindingCode::kSnapshotL1Invalid) ||
                        suspicions_.HasFinding(snapshot, FindingCode::kSnapshotSizeMismatch);
  for (const uint64_t entries : OneBitAway(entry.l1_size, 32)) {
    if (entries < needed) continue;
    add_size(entries, 1, is_wrong ? Proof::kFewerCorruptions : Proof::kAllAgrees);
  }
  if (suspicions_.HasFinding(snapshot, FindingCode::kSnapshotSizeMismatch))
    GuessSizes(entry, guesses);
  for (const uint64_t offset : OneBitAway(entry.l1_table_offset, 64)) {
    const uint64_t length = uint64_t{entry.l1_size} * 8;
    if (!IsInFile(offset, entry.l1_size)) continue;
    const bool is_l1 = IsL1(offset, entry.l1_size);
    if (!is_l1 && !ReadsAsZeros(plan_.image(), offset, length)) continue;
    guesses.push_back(SnapshotL1Guess(entry, offset, 1, "one flipped bit away"));
    if (!is_l1 || !orphans_.Contain(offset, length)) guesses.back().needed = Proof::kAllAgrees;
  }
  return guesses;
}

// One bit makes the disk, or the VM state, larger than anything the L1 table could map.
void SnapshotPlanner::GuessSizes(const SnapshotEntry& entry, std::vector<Guess>& guesses) const {
  const uint64_t mapped = SaturatingMultiply(entry.l1_size, state_.geo().l2_guest_bytes());
  const auto add_if_mapped = [&](const SnapshotEntry& other, uint64_t field, uint64_t size,
                                 uint64_t old_size) {
    if (size > old_size || old_size - size <= mapped ||
        L1EntriesNeeded(other, state_.geo()) > entry.l1_size) {
      return;
    }
    guesses.push_back(FieldGuess(entry.offset_bytes + field, 8, size, 1,
                                 "with this size, one flipped bit away, the snapshot's L1 table "
                                 "maps the disk and the VM state"));
    guesses.back().needed = Proof::kFewerCorruptions;
  };
  SnapshotEntry other = entry;
  for (const uint64_t size : OneBitAway(entry.disk_size.value_or(0), 64)) {
    if (!entry.disk_size || size == 0 || !IsAligned(size, kSectorBytes)) continue;
    other.disk_size = size;
    add_if_mapped(other, kDiskSizeField, size, *entry.disk_size);
  }
  other = entry;
  for (const uint64_t size : OneBitAway(entry.vm_state_size_64.value_or(0), 64)) {
    if (!entry.vm_state_size_64) continue;
    other.vm_state_size_64 = size;
    add_if_mapped(other, kVmStateSizeField, size, *entry.vm_state_size_64);
  }
}

bool SnapshotPlanner::IsInFile(uint64_t offset, uint64_t entries) const {
  return offset != 0 && IsAligned(offset, state_.geo().cluster_size()) && entries != 0 &&
         entries <= kQemuMaxL1Entries &&
         SaturatingAdd(offset, entries * 8) <= state_.file.size_bytes();
}

std::vector<Guess> SnapshotPlanner::GuessUnreferencedL1(const SnapshotEntry& entry) const {
  std::vector<Guess> guesses;
  const uint64_t length = uint64_t{entry.l1_size} * 8;
  for (const uint64_t offset : orphans_.Offsets()) {
    if (!orphans_.Contain(offset, length)) continue;
    if (IsL1(offset, entry.l1_size)) {
      guesses.push_back(SnapshotL1Guess(entry, offset, 2, "the only one that fits"));
    } else if (ReadsAsZeros(plan_.image(), offset, length)) {
      guesses.push_back(
          SnapshotL1Guess(entry, offset, 3, "the only one that fits, of an empty disk"));
      guesses.back().needed = Proof::kAllAgrees;
    }
  }
  return guesses;
}

bool SnapshotPlanner::IsL1(uint64_t offset, uint64_t entries) const {
  const auto [known, is_new] = is_l1_.try_emplace({offset, entries}, false);
  if (is_new) known->second = LeadsToL2Tables(offset, entries);
  return known->second;
}

// Whether all entries there do, and one of the L2 tables maps something: an L2 table whose data is
// zeros looks like an L1 table of empty ones.
bool SnapshotPlanner::LeadsToL2Tables(uint64_t offset, uint64_t entries) const {
  const uint64_t length = entries * 8;
  if (length > kMaxPieceBytes) return false;
  std::vector<uint8_t> table(length);
  if (!plan_.image().ReadAt(HostOffset{offset}, absl::MakeSpan(table)).ok()) return false;
  const uint64_t size = state_.geo().cluster_size();
  bool is_proven = false;
  for (uint64_t at = 0; at < length; at += 8) {
    const uint64_t entry = Load64(&table[at]);
    if (entry == 0) continue;
    if ((entry & kL1ReservedMask) != 0) return false;
    const uint64_t l2_offset = EntryOffset(entry);
    const bool is_used = l2_tables_.contains(l2_offset);
    if (!is_used && !orphans_.Contain(l2_offset, size)) return false;
    const bool maps = is_used || ProvesToBeL2Table(state_, l2_offset);
    if (!maps && !CouldBeEmptyL2Table(state_, l2_offset)) return false;
    is_proven |= maps;
  }
  return is_proven;
}

// A new table, in which the incomplete entries are completed; all others stay as they are.
bool SnapshotPlanner::CompleteEntries() {
  const Finding* finding = FirstOf({FindingCode::kSnapshotEntryIncomplete});
  if (finding == nullptr || entries_.size() != state_.header.nb_snapshots) return false;
  std::vector<uint8_t> table;
  for (const SnapshotEntry& entry : entries_) {
    const std::vector<uint8_t> bytes = entry.extra_data_bytes < 16
                                           ? CompletedEntryBytes(plan_.image(), entry, state_.geo())
                                           : EntryBytes(plan_.image(), entry);
    if (bytes.empty() || table.size() + bytes.size() > kQemuMaxSnapshotTableBytes) return false;
    table.insert(table.end(), bytes.begin(), bytes.end());
  }
  PlanReason reason =
      ReasonFor(*finding,
                "a new snapshot table with the extra data that version 3 requires: the disk size "
                "is the one of now, if the snapshot's L1 table can map that");
  reason.action = RepairAction::kRewriteSnapshotEntry;
  RefcountStructures structures(state_, plan_);
  const std::optional<uint64_t> first =
      structures.space().Take(DivideRoundingUp(table.size(), state_.geo().cluster_size()));
  if (!first) {
    plan_.Decline(reason.code, reason.finding_offset, "there is no free room for a new table");
    return false;
  }
  if (!structures.Commit(reason)) return false;
  const uint64_t offset = *first << state_.geo().cluster_bits;
  plan_.Write(offset, table, reason);
  plan_.Flush();
  plan_.Write64(kOffsetField, offset, reason);
  plan_.Flush();
  const uint64_t old_end = entries_.back().offset_bytes + entries_.back().length_bytes;
  structures.Free(state_.header.snapshots_offset, old_end, reason);
  return true;
}

}  // namespace

void PlanSnapshots(CheckState& state, PlanBuilder& plan) { SnapshotPlanner(state, plan).Run(); }

}  // namespace qcow2check

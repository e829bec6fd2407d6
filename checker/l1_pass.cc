// The L1 pass: the active and all snapshot L1 tables.
//
// Needs the snapshots. Makes the list of distinct L1 tables and, from their entries, the list of
// distinct L2 tables with how often each is referenced; claims both. An L1 table that several
// snapshots share is read once, an L2 table that many entries share is one L2Table with a weight.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "checker/check_state.h"
#include "checker/table_shape.h"
#include "common/byte_order.h"
#include "common/limits.h"
#include "common/table_entry.h"

namespace qcow2check {
namespace {

// Slots that lead to a table of another slot: this many are kept, the others only counted.
constexpr size_t kSharedListed = 10'000;

class L1Walk {
 public:
  explicit L1Walk(CheckState& state) : state_(state) {}

  void Run() {
    CollectTables();
    for (const L1Table& table : state_.l1_tables) {
      if (!state_.MayGoOn()) return;
      ClaimTable(table);
    }
    WalkTables();
    OrderTables();
  }

 private:
  void AddToEntry(FindingCode code, const L1Table& table, uint64_t index, uint64_t entry,
                  uint64_t count, std::string detail,
                  std::optional<uint64_t> expected = std::nullopt) {
    const bool active = ActiveWeight(table, index) != 0;
    state_.findings.Add({.code = code,
                         .structure = active ? Structure::kL1Table : Structure::kSnapshotL1Table,
                         .host_offset = HostOffset{table.offset_bytes + index * 8},
                         .length_bytes = 8,
                         .count = count,
                         .guest_offset = state_.geo().GuestOffsetOf(index, 0),
                         .guest_length_bytes = state_.geo().l2_guest_bytes(),
                         .l1_index = index,
                         .snapshot = active ? std::nullopt : table.users.back().snapshot,
                         .target = EntryOffset(entry) == 0
                                       ? std::nullopt
                                       : std::optional(HostOffset{EntryOffset(entry)}),
                         .stored = entry,
                         .expected = expected,
                         .detail = std::move(detail)});
  }

  // How many users see slot `index`, and how many of them are the active disk.
  static uint64_t Weight(const L1Table& table, uint64_t index) {
    const auto first =
        std::upper_bound(table.users.begin(), table.users.end(), index,
                         [](uint64_t slot, const L1User& user) { return slot < user.entries; });
    return static_cast<uint64_t>(table.users.end() - first);
  }
  static uint64_t ActiveWeight(const L1Table& table, uint64_t index) {
    return index < table.active_entries ? 1 : 0;
  }

  void CollectTables();
  bool AcceptActive();
  bool AcceptSnapshot(uint64_t index);
  void AddUser(uint64_t offset, L1User user);
  void ClaimTable(const L1Table& table);
  void WalkTables();
  bool WalkSmallTables(absl::Span<const L1Table> tables);
  void WalkTable(const L1Table& table);
  void WalkEntries(const L1Table& table, uint64_t first, absl::Span<const uint8_t> entries);
  void WalkEntry(const L1Table& table, uint64_t index, uint64_t entry);
  void AddL2(const L1Table& table, uint64_t index, uint64_t offset, uint64_t weight,
             uint64_t active_weight);
  void WalkMisaligned(const L1Table& table, uint64_t index, uint64_t entry, uint64_t weight,
                      uint64_t active);
  void OrderTables();

  CheckState& state_;
  absl::flat_hash_map<uint64_t, size_t> table_at_;  // L1 offset -> position in l1_tables
  absl::flat_hash_map<uint64_t, size_t> l2_at_;     // L2 offset -> position in l2_tables
};

bool L1Walk::AcceptActive() {
  const Header& header = state_.header;
  const Geometry& geometry = state_.geo();
  const uint64_t length = uint64_t{header.l1_size} * 8;
  const auto add = [&](FindingCode code, uint64_t stored, std::optional<uint64_t> expected,
                       std::string detail) {
    state_.findings.Add({.code = code,
                         .structure = Structure::kL1Table,
                         .host_offset = HostOffset{header.l1_table_offset},
                         .length_bytes = length,
                         .stored = stored,
                         .expected = expected,
                         .detail = std::move(detail)});
  };
  if (header.l1_size < geometry.l1_entries_needed()) {
    add(FindingCode::kL1TooSmall, header.l1_size, geometry.l1_entries_needed(),
        absl::StrFormat("%d entries map %d bytes of a disk of %d", header.l1_size,
                        SaturatingMultiply(header.l1_size, geometry.l2_guest_bytes()),
                        header.size));
  }
  if (header.l1_size > kQemuMaxL1Entries) {
    add(FindingCode::kL1TooLarge, header.l1_size, std::nullopt,
        absl::StrCat(header.l1_size, " entries"));
  }
  if (header.l1_size == 0) return false;
  const uint64_t offset = header.l1_table_offset;
  if (offset == 0 || !IsAligned(offset, geometry.cluster_size())) {
    state_.findings.Add(
        {.code = FindingCode::kL1OffsetInvalid,
         .structure = Structure::kL1Table,
         .host_offset = HostOffset{offset},
         .length_bytes = length,
         .guest_offset = GuestOffset{0},
         .guest_length_bytes = SaturatingMultiply(header.l1_size, geometry.l2_guest_bytes()),
         .stored = offset,
         .detail =
             absl::StrFormat("0x%x is not the start of a cluster behind the header", offset)});
    state_.Skip("the active L1 table", "its offset is impossible");
    return false;
  }
  if (SaturatingAdd(offset, length) > state_.file.size_bytes()) {
    const uint64_t missing_from =
        offset >= state_.file.size_bytes() ? 0 : (state_.file.size_bytes() - offset) / 8;
    state_.findings.Add(
        {.code = FindingCode::kL1OffsetInvalid,
         .structure = Structure::kL1Table,
         .host_offset = HostOffset{offset},
         .length_bytes = length,
         .guest_offset = geometry.GuestOffsetOf(missing_from, 0),
         .guest_length_bytes =
             SaturatingMultiply(header.l1_size - missing_from, geometry.l2_guest_bytes()),
         .stored = offset,
         .detail = absl::StrFormat("entries %d to %d of %d are behind the end of the file",
                                   missing_from, header.l1_size - 1, header.l1_size)});
    if (offset >= state_.file.size_bytes()) {
      state_.Skip("the active L1 table", "it is not in the file");
      return false;
    }
  }
  return true;
}

bool L1Walk::AcceptSnapshot(uint64_t index) {
  const SnapshotEntry& snapshot = state_.snapshots[index];
  const uint64_t length = uint64_t{snapshot.l1_size} * 8;
  std::string wrong;
  bool usable = false;
  if (!IsAligned(snapshot.l1_table_offset, state_.geo().cluster_size())) {
    wrong = "its offset is not aligned";
  } else if (snapshot.l1_size > kQemuMaxL1Entries) {
    wrong = absl::StrCat("it has ", snapshot.l1_size, " entries");
  } else if (snapshot.l1_size == 0) {
    return false;
  } else if (snapshot.l1_table_offset == 0) {
    wrong = "its offset is that of the header";
  } else if (SaturatingAdd(snapshot.l1_table_offset, length) > state_.file.size_bytes()) {
    wrong = "it is not (wholly) in the file";
    usable = snapshot.l1_table_offset < state_.file.size_bytes();
  } else {
    return true;
  }
  state_.findings.Add({.code = FindingCode::kSnapshotL1Invalid,
                       .structure = Structure::kSnapshotL1Table,
                       .host_offset = HostOffset{snapshot.l1_table_offset},
                       .length_bytes = length,
                       .snapshot = index,
                       .stored = snapshot.l1_table_offset,
                       .detail = absl::StrCat("snapshot ", index, ": ", wrong)});
  if (!usable) state_.Skip(absl::StrCat("snapshot ", index), wrong);
  return usable;
}

void L1Walk::AddUser(uint64_t offset, L1User user) {
  const auto [found, is_new] = table_at_.emplace(offset, state_.l1_tables.size());
  if (is_new) state_.l1_tables.push_back({.offset_bytes = offset});
  L1Table& table = state_.l1_tables[found->second];
  table.users.push_back(user);
  if (!user.snapshot) table.active_entries = user.entries;
}

void L1Walk::CollectTables() {
  if (AcceptActive()) {
    AddUser(state_.header.l1_table_offset, {std::nullopt, state_.header.l1_size});
  }
  for (uint64_t i = 0; i < state_.snapshots.size(); ++i) {
    if (AcceptSnapshot(i)) {
      AddUser(state_.snapshots[i].l1_table_offset, {i, state_.snapshots[i].l1_size});
    }
  }
  for (L1Table& table : state_.l1_tables) {
    std::stable_sort(table.users.begin(), table.users.end(),
                     [](const L1User& a, const L1User& b) { return a.entries < b.entries; });
  }
  state_.coverage.l1_tables = state_.l1_tables.size();
}

// Every user counts the clusters its own length reaches; done in steps of equal weight. Users whose
// table reaches outside, the last ones, count nothing.
void L1Walk::ClaimTable(const L1Table& table) {
  const uint64_t bits = static_cast<uint64_t>(state_.geo().cluster_bits);
  uint64_t next = table.offset_bytes >> bits;
  size_t inside = table.users.size();
  while (inside > 0 && state_.IsOutside(table.offset_bytes, table.users[inside - 1].entries * 8)) {
    --inside;
  }
  if (inside == 0) return;
  const L1User& longest = table.users[inside - 1];
  // Snapshots may claim tables that overlap all over the file, and holes cost nothing to claim.
  const uint64_t clusters = DivideRoundingUp(longest.entries * 8, uint64_t{1} << bits);
  if (!state_.Spend(clusters, Structure::kL1Table)) return;
  for (size_t i = 0; i < inside; ++i) {
    const uint64_t length = table.users[i].entries * 8;
    const uint64_t end = DivideRoundingUp(table.offset_bytes + length, uint64_t{1} << bits);
    if (end <= next) continue;
    state_.Count(next << bits, (end - next) << bits, inside - i);
    next = end;
  }
  const bool active = table.active_entries != 0;
  state_.regions.push_back({active ? Structure::kL1Table : Structure::kSnapshotL1Table,
                            table.offset_bytes, longest.entries * 8,
                            active ? std::nullopt : longest.snapshot});
}

// Behind the last entry that a user of the table has and that is in the file.
uint64_t EndOf(const CheckState& state, const L1Table& table) {
  return std::min(SaturatingAdd(table.offset_bytes, table.users.back().entries * 8),
                  state.file.size_bytes());
}

// Disks with hundreds of snapshots have as many small tables, which are read together.
void L1Walk::WalkTables() {
  constexpr size_t kTogether = 64;
  const absl::Span<const L1Table> tables = state_.l1_tables;
  for (size_t i = 0; i < tables.size() && state_.MayGoOn(); i += kTogether) {
    const absl::Span<const L1Table> some = tables.subspan(i, kTogether);
    if (WalkSmallTables(some)) continue;
    for (const L1Table& table : some) WalkTable(table);
  }
}

// False, and nothing done, if some of the tables are large, cannot be read, or may be holes.
bool L1Walk::WalkSmallTables(absl::Span<const L1Table> tables) {
  constexpr uint64_t kSmallBytes = 16u << 10;
  std::vector<Extent> extents;
  for (const L1Table& table : tables) {
    const uint64_t end = EndOf(state_, table);
    if (end <= table.offset_bytes || end - table.offset_bytes > kSmallBytes) return false;
    extents.push_back({table.offset_bytes, end});
  }
  const std::vector<bool> holes = state_.file.FindHoles(extents);
  if (std::find(holes.begin(), holes.end(), true) != holes.end()) return false;
  std::vector<std::vector<uint8_t>> buffers;
  std::vector<ReadRequest> requests;
  for (const auto& [begin, end] : extents) {
    buffers.emplace_back(RoundUp(end - begin, 8));
    requests.push_back({HostOffset{begin}, absl::MakeSpan(buffers.back()), absl::OkStatus()});
  }
  state_.file.ReadMany(absl::MakeSpan(requests));
  PartNotes notes = state_.NewPart();
  for (const ReadRequest& request : requests) {
    if (!request.status.ok()) return false;
    ++notes.reads;
    notes.bytes_read += request.dst.size();
  }
  state_.Absorb(std::move(notes));
  for (size_t i = 0; i < tables.size(); ++i) {
    if (!state_.Spend(buffers[i].size() / 8, Structure::kL1Table)) continue;
    WalkEntries(tables[i], 0, buffers[i]);
  }
  return true;
}

void L1Walk::WalkEntries(const L1Table& table, uint64_t first, absl::Span<const uint8_t> entries) {
  const uint64_t end = (EndOf(state_, table) - table.offset_bytes + 7) / 8;
  for (uint64_t i = 0; i < entries.size() / 8 && first + i < end; ++i) {
    const uint64_t entry = Load64(&entries[i * 8]);
    if (entry != 0) WalkEntry(table, first + i, entry);
  }
}

void L1Walk::WalkTable(const L1Table& table) {
  const uint64_t end = EndOf(state_, table);
  std::vector<uint8_t> piece;
  uint64_t at = table.offset_bytes;
  while (at < end && state_.MayGoOn()) {
    // Holes hold only unallocated entries.
    const Extent data = state_.file.NextData(HostOffset{at});
    if (data.empty() || data.begin_bytes >= end) break;
    at = std::max(at, data.begin_bytes & ~uint64_t{7});
    piece.resize(RoundUp(std::min({end - at, kMaxPieceBytes, data.end_bytes - at}), 8));
    if (!state_.Spend(piece.size() / 8, Structure::kL1Table)) return;
    state_.Read(HostOffset{at}, absl::MakeSpan(piece), Structure::kL1Table);
    WalkEntries(table, (at - table.offset_bytes) / 8, piece);
    at += piece.size();
  }
}

void L1Walk::WalkEntry(const L1Table& table, uint64_t index, uint64_t entry) {
  const uint64_t weight = Weight(table, index);
  const uint64_t active = ActiveWeight(table, index);
  if (active != 0) state_.active_l1.push_back({index, entry});
  const uint64_t offset = EntryOffset(entry);
  if ((entry & kL1ReservedMask) != 0) {
    AddToEntry(FindingCode::kL1EntryReservedBits, table, index, entry, weight,
               absl::StrFormat("0x%016x", entry), entry & ~kL1ReservedMask);
  }
  if (offset == 0) {
    if ((entry & kL1ReservedMask) == 0) {
      AddToEntry(FindingCode::kL1EntryWithoutOffset, table, index, entry, weight,
                 absl::StrFormat("0x%016x", entry), 0);
    }
    return;
  }
  const uint64_t cluster = offset >> state_.geo().cluster_bits;
  if (active != 0 && cluster < state_.tracked_clusters) {
    (IsCopied(entry) ? state_.copied : state_.not_copied)->Insert(cluster);
  } else if (active != 0 && IsCopied(entry) && state_.refcounts_readable) {
    // Too far away for any refcount to be looked up: it is 0, and COPIED promises 1.
    AddToEntry(FindingCode::kCopiedWrong, table, index, entry, active, "");
  }
  if (!IsAligned(offset, state_.geo().cluster_size())) {
    WalkMisaligned(table, index, entry, weight, active);
    return;
  }
  if (offset >= state_.file.size_bytes()) {
    AddToEntry(FindingCode::kL2TablePastEnd, table, index, entry, weight,
               absl::StrFormat("slot %d points to 0x%x; the file ends at 0x%x", index, offset,
                               state_.file.size_bytes()));
    if (cluster < state_.tracked_clusters) state_.past_end->Insert(cluster);
    return;
  }
  AddL2(table, index, offset, weight, active);
}

// A table pointer that leads into the middle of a cluster is read as nothing by QEMU. If the
// cluster itself proves to be an L2 table, it is the one that was meant: one flipped bit among
// bits 9 to cluster_bits-1. Its data is then not lost, and its clusters are not leaked.
void L1Walk::WalkMisaligned(const L1Table& table, uint64_t index, uint64_t entry, uint64_t weight,
                            uint64_t active) {
  const uint64_t cluster_size = state_.geo().cluster_size();
  const uint64_t offset = EntryOffset(entry);
  const uint64_t rounded = offset & ~(cluster_size - 1);
  const bool proven = rounded < state_.file.size_bytes() && rounded != 0 &&
                      ProvesToBeL2Table(state_, rounded, /*may_be_cut_off=*/true);
  AddToEntry(FindingCode::kL2TableMisaligned, table, index, entry, weight,
             proven ? absl::StrFormat("slot %d points to 0x%x; the L2 table is at 0x%x", index,
                                      offset, rounded)
                    : absl::StrFormat("slot %d points to 0x%x; no L2 table is near", index, offset),
             proven ? std::optional<uint64_t>(rounded | (entry & kCopiedBit)) : std::nullopt);
  if (proven) {
    AddL2(table, index, rounded, weight, active);
  } else {
    state_.Skip(absl::StrCat("the L2 table of L1 slot ", index), "its place is unknown");
  }
}

void L1Walk::AddL2(const L1Table& table, uint64_t index, uint64_t offset, uint64_t weight,
                   uint64_t active_weight) {
  const auto [found, is_new] = l2_at_.emplace(offset, state_.l2_tables.size());
  if (is_new) {
    state_.memory->Take(sizeof(L2Table) + sizeof(decltype(l2_at_)::value_type));
    state_.l2_tables.push_back({.offset_bytes = offset, .l1_index = index});
  }
  L2Table& l2 = state_.l2_tables[found->second];
  l2.weight += weight;
  l2.active_weight += active_weight;
  if (active_weight == 0 && is_new) l2.snapshot = table.users.back().snapshot;
  if (l2.l1_index != index) {
    if (state_.shared_l2.size() < kSharedListed) {
      state_.shared_l2.push_back({offset, l2.l1_index, index});
    } else {
      ++l2.shared_not_listed;
    }
    return;
  }
  if (is_new && SaturatingAdd(offset, state_.geo().cluster_size()) > state_.file.size_bytes()) {
    state_.findings.Add({.code = FindingCode::kCutByEndOfFile,
                         .structure = Structure::kL2Table,
                         .host_offset = HostOffset{offset},
                         .length_bytes = state_.geo().cluster_size(),
                         .l1_index = index});
  }
}

void L1Walk::OrderTables() {
  for (const L2Table& l2 : state_.l2_tables) {
    state_.Count(l2.offset_bytes, state_.geo().cluster_size(), l2.weight);
  }
  // In the order of their places, so that reads move one way through the file. With snapshots,
  // tables of one guest range come together: the L2 pass compares them with each other.
  const bool grouped = !state_.snapshots.empty();
  std::sort(state_.l2_tables.begin(), state_.l2_tables.end(),
            [grouped](const L2Table& a, const L2Table& b) {
              if (grouped && a.l1_index != b.l1_index) return a.l1_index < b.l1_index;
              return a.offset_bytes < b.offset_bytes;
            });
}

}  // namespace

void CheckL1Tables(CheckState& state) { L1Walk(state).Run(); }

}  // namespace qcow2check

#include "tests/reference_checker.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <tuple>

#include "common/bitmap_entry.h"
#include "common/byte_order.h"
#include "common/header.h"
#include "common/header_extension.h"
#include "common/snapshot_entry.h"

namespace qcow2check::testing {
namespace {

// No sum or product of two fields overflows it.
__extension__ typedef unsigned __int128 Wide;

// Bits `first` to `last` of a 64-bit word, as the specification numbers them, in place.
constexpr uint64_t Bits(int first, int last) {
  return (last == 63 ? ~uint64_t{0} : (uint64_t{1} << (last + 1)) - 1) &
         ~((uint64_t{1} << first) - 1);
}
constexpr bool Bit(uint64_t word, int bit) { return ((word >> bit) & 1) != 0; }
constexpr uint64_t CeilDiv(Wide a, Wide b) { return static_cast<uint64_t>((a + b - 1) / b); }

constexpr uint64_t kHostOffsetBits = Bits(9, 55);

// --- Who uses a cluster ---

enum class UseKind {
  kHeader,
  kLuksHeader,
  kSnapshotTable,
  kBitmapDirectory,
  kBitmapTable,
  kBitmapData,
  kL1Table,
  kL2Table,
  kRefcountTable,
  kRefcountBlock,
  kGuestCluster,
  kCompressedCluster,
};

// A structure, or an L2 entry, that uses a cluster. Two visits of one structure are one Use.
struct Use {
  UseKind kind{};
  uint64_t place = 0;   // of the structure, or of the entry
  uint64_t number = 0;  // tells structures at one place apart
  uint64_t guest = 0;
  bool misaligned = false;
  friend auto operator<=>(const Use&, const Use&) = default;

  bool is_guest() const {
    return kind == UseKind::kGuestCluster || kind == UseKind::kCompressedCluster;
  }
};

// An entry of the active tables that must say with COPIED whether its cluster's refcount is 1.
struct CopiedClaim {
  uint64_t place = 0;
  bool copied = false;
  uint64_t cluster = 0;
  bool always = false;  // the cluster is in a data file: COPIED must be set
};

// One who has an L1 table.
struct L1User {
  uint64_t offset = 0;
  uint64_t entries = 0;
  bool active = false;
};

class ReferenceWalk {
 public:
  explicit ReferenceWalk(const std::vector<uint8_t>& bytes) : bytes_(bytes) {}
  ReferenceReport Run();

 private:
  // --- Bytes ---
  uint64_t size() const { return bytes_.size(); }
  uint8_t Byte(uint64_t offset) const { return offset < size() ? bytes_[offset] : 0; }
  std::vector<uint8_t> Read(uint64_t offset, uint64_t length) const {
    std::vector<uint8_t> result(length);
    for (uint64_t i = 0; i < length; ++i) result[i] = Byte(offset + i);
    return result;
  }
  uint64_t Word(uint64_t offset) const {
    uint64_t word = 0;
    for (uint64_t i = 0; i < 8; ++i) word = word << 8 | Byte(offset + i);
    return word;
  }
  bool Aligned(uint64_t offset) const { return offset % cluster_size_ == 0; }
  // Reaches outside as qemu-img has it: starts behind the end, or ends a cluster or more behind it.
  bool Outside(uint64_t offset, Wide length) const {
    return offset >= size() || Wide{offset} + length >= Wide{size()} + cluster_size_;
  }
  bool InFile(uint64_t offset, Wide length) const { return Wide{offset} + length <= size(); }

  // --- Results ---
  void Add(FindingCode code, uint64_t count = 1) { report_.counts[code] += count; }
  void AddAt(FindingCode code, uint64_t place) {
    report_.places.emplace(code, place);
    Add(code);
  }
  void AddOnceAt(FindingCode code, uint64_t place) {
    if (report_.places.emplace(code, place).second) Add(code);
  }
  void Count(uint64_t offset, uint64_t length, const Use& use);
  void CountL1(const L1User& user);

  // --- The walk ---
  bool CheckHeader();
  void CheckCompressionType();
  void WalkSnapshotTable();
  bool AcceptSnapshotL1(const SnapshotEntry& snapshot);
  void WalkLuksHeader();
  void WalkBitmaps();
  bool BitmapEntryIsSound(const BitmapEntry& bitmap) const;
  void WalkBitmapTable(const BitmapEntry& bitmap, uint64_t number);
  void WalkActiveL1();
  void FindSharedL2Tables();
  void WalkL1(const L1User& user);
  // The table that an L1 entry leads to, as far as that is certain.
  std::optional<uint64_t> L2TableOf(uint64_t l1_word) const;
  bool CanOnlyBeL2Table(uint64_t offset) const;
  void WalkL2(uint64_t table, bool active);
  void VisitEntry(uint64_t table, uint64_t index, bool active);
  void VisitCompressed(uint64_t place, uint64_t guest, uint64_t word, uint64_t bitmap, bool active);
  void VisitStandard(uint64_t place, uint64_t guest, uint64_t word, uint64_t bitmap, bool active);
  void VisitMapped(uint64_t place, uint64_t guest, uint64_t word, bool holds_data, bool active);
  void WalkRefcountTable();
  void WalkRefcountTableEntry(uint64_t index, uint64_t place);
  // --- Afterwards ---
  uint64_t Stored(uint64_t cluster) const;
  uint64_t Expected(uint64_t cluster) const {
    return cluster < expected_.size() ? expected_[cluster] : 0;
  }
  void CompareRefcounts();
  void CompareRefcountsBehindEnd();
  void JudgeSharedBlocks();
  void JudgeCopied();
  void JudgeUses();
  void JudgeSharedL2Tables();
  bool IsMismatched(uint64_t cluster) const { return mismatched_.count(cluster) != 0; }
  void Sum();

  const std::vector<uint8_t>& bytes_;
  ReferenceReport report_;
  Header header_;
  std::vector<HeaderExtension> extensions_;
  uint64_t cluster_size_ = 0;
  int cluster_bits_ = 0;
  bool extended_l2_ = false;
  bool data_file_ = false;
  uint64_t l2_entry_bytes_ = 8;
  uint64_t l2_entries_ = 0;
  uint64_t file_clusters_ = 0;
  uint64_t compared_clusters_ = 0;  // those of the file, and what something in it reaches into
  int refcount_bits_ = 16;
  uint64_t block_entries_ = 0;

  std::vector<L1User> l1_users_;
  std::map<uint64_t, uint64_t> first_slot_;  // L2 table -> the L1 slot that leads there first
  std::vector<uint64_t> shared_l2_;          // an L2 table for each other slot that leads there
  std::map<uint64_t, uint64_t> blocks_;      // refcount table index -> refcount block
  std::vector<uint64_t> expected_;
  std::map<uint64_t, std::set<Use>> uses_;  // by cluster
  std::set<uint64_t> pointed_behind_end_;   // clusters
  std::vector<CopiedClaim> copied_claims_;
  std::set<uint64_t> mismatched_;
  uint64_t next_offset_ = 0;  // where the next guest cluster is if it is not fragmented
};

void ReferenceWalk::Count(uint64_t offset, uint64_t length, const Use& use) {
  if (length == 0) return;
  for (uint64_t c = offset / cluster_size_; c <= (offset + length - 1) / cluster_size_; ++c) {
    ++expected_.at(c);
    uses_[c].insert(use);
  }
}

// --- Header ---

bool ReferenceWalk::CheckHeader() {
  header_ = DecodeHeader(Read(0, kHeaderBytesKnown));
  if (header_.magic != kMagic || header_.version == 1) {
    Add(FindingCode::kNotQcow2);
    return false;
  }
  if (size() < (header_.version < 3 ? 72u : 104u)) {
    Add(FindingCode::kHeaderTruncated);
    return false;
  }
  if (header_.version != 2 && header_.version != 3) Add(FindingCode::kUnsupportedVersion);
  if (header_.cluster_bits < 9 || header_.cluster_bits > 30) {
    Add(FindingCode::kClusterBitsInvalid);
    return false;
  }
  cluster_bits_ = static_cast<int>(header_.cluster_bits);
  cluster_size_ = uint64_t{1} << cluster_bits_;
  if (header_.refcount_order > 6) {
    Add(FindingCode::kRefcountOrderInvalid);
    report_.refcounts_readable = false;
  } else {
    refcount_bits_ = 1 << header_.refcount_order;
  }
  block_entries_ = cluster_size_ * 8 / static_cast<uint64_t>(refcount_bits_);
  file_clusters_ = CeilDiv(size(), cluster_size_);
  expected_.resize(file_clusters_ + 2);
  extended_l2_ = Bit(header_.incompatible_features, 4);
  data_file_ = Bit(header_.incompatible_features, 2);
  l2_entry_bytes_ = extended_l2_ ? 16 : 8;
  l2_entries_ = cluster_size_ / l2_entry_bytes_;
  if ((header_.incompatible_features & ~Bits(0, 4)) != 0) {
    Add(FindingCode::kUnknownIncompatibleFeature);
  }
  if (Bit(header_.incompatible_features, 1)) Add(FindingCode::kCorruptBit);
  if (extended_l2_ && cluster_bits_ < 14) Add(FindingCode::kExtendedL2SmallClusters);
  if (data_file_ && header_.nb_snapshots != 0) Add(FindingCode::kDataFileSnapshots);
  const uint64_t extensions_at = header_.version < 3 ? 72 : header_.header_length;
  const bool length_ok =
      header_.version < 3 || (extensions_at >= 104 && extensions_at <= cluster_size_);
  if (header_.version >= 3) {
    if (header_.header_length < 104 || header_.header_length > cluster_size_) {
      Add(FindingCode::kHeaderLengthInvalid);
    }
    CheckCompressionType();
  }
  // Where the header's length is impossible, the extensions are behind the shortest header.
  const uint64_t begin = length_ok ? extensions_at : 104;
  uint64_t end = cluster_size_;
  if (header_.backing_file_offset >= begin) end = std::min(end, header_.backing_file_offset);
  extensions_ =
      ParseHeaderExtensions(Read(0, std::min(cluster_size_, size())), begin, end).extensions;
  return true;
}

void ReferenceWalk::CheckCompressionType() {
  const bool bit = Bit(header_.incompatible_features, 3);
  if (header_.compression_type > 1 || bit != (header_.compression_type == 1)) {
    Add(FindingCode::kCompressionTypeInvalid);
  }
}

// --- Snapshots ---

void ReferenceWalk::WalkSnapshotTable() {
  if (header_.nb_snapshots == 0) return;
  const uint64_t begin = header_.snapshots_offset;
  if (begin == 0 || !Aligned(begin) || begin >= size()) {
    Add(FindingCode::kSnapshotTableInvalid);
    return;
  }
  uint64_t wanted = header_.nb_snapshots;
  if (wanted > 65536) {
    Add(FindingCode::kSnapshotTooMany);
    wanted = 65536;
  }
  uint64_t at = begin;
  for (; wanted > 0; --wanted) {
    if (!InFile(at, 40)) break;
    SnapshotEntry entry = DecodeSnapshotFixed(Read(at, 40), at);
    const uint64_t end = at + entry.length_bytes;
    // The padding of the last entry may be missing at the end of the file.
    if (end >= size() + 8 || end - begin > (uint64_t{64} << 20)) break;
    DecodeSnapshotExtra(Read(at + 40, std::min(entry.extra_data_bytes, 24u)), entry);
    if (header_.version >= 3 && entry.extra_data_bytes < 16) {
      Add(FindingCode::kSnapshotEntryIncomplete);
    }
    if (entry.extra_data_bytes > 1024) Add(FindingCode::kSnapshotExtraTooLarge);
    // VM state starts with an L1 entry of its own.
    const Wide mapped_by_entry = Wide{l2_entries_} * cluster_size_;
    Wide needed = entry.disk_size.value_or(header_.size);
    if (entry.vm_state_bytes() != 0) {
      needed = (needed + mapped_by_entry - 1) / mapped_by_entry * mapped_by_entry;
      needed += entry.vm_state_bytes();
    }
    if (entry.l1_size * mapped_by_entry < needed) {
      Add(FindingCode::kSnapshotSizeMismatch);
    }
    if (AcceptSnapshotL1(entry)) {
      l1_users_.push_back({entry.l1_table_offset, entry.l1_size, false});
    }
    at = end;
  }
  if (wanted != 0) Add(FindingCode::kSnapshotTableInvalid);
  if (!Outside(begin, at - begin)) {
    Count(begin, at - begin, {.kind = UseKind::kSnapshotTable, .place = begin});
  }
}

bool ReferenceWalk::AcceptSnapshotL1(const SnapshotEntry& snapshot) {
  const uint64_t offset = snapshot.l1_table_offset;
  const bool plausible = Aligned(offset) && snapshot.l1_size <= 4194304;
  if (plausible && snapshot.l1_size == 0) return false;
  const bool in_file = InFile(offset, Wide{snapshot.l1_size} * 8);
  if (!plausible || !in_file || offset == 0) Add(FindingCode::kSnapshotL1Invalid);
  return plausible && offset < size() && offset != 0;
}

// --- LUKS header and bitmaps ---

void ReferenceWalk::WalkLuksHeader() {
  const HeaderExtension* last = nullptr;
  for (const HeaderExtension& one : extensions_) {
    if (one.type == kExtensionCrypto) last = &one;
  }
  if (last == nullptr || last->data.size() != 16) return;
  const uint64_t offset = Load64(&last->data[0]);
  const uint64_t length = Load64(&last->data[8]);
  if (length == 0 || !Aligned(offset) || Outside(offset, length)) return;
  Count(offset, length, {.kind = UseKind::kLuksHeader, .place = offset});
}

bool ReferenceWalk::BitmapEntryIsSound(const BitmapEntry& bitmap) const {
  if (bitmap.table_entries == 0 || bitmap.table_entries > 0x8000000) return false;
  if (bitmap.table_offset == 0 || !Aligned(bitmap.table_offset)) return false;
  if (bitmap.type != 1 || bitmap.extra_data_bytes != 0) return false;
  if (bitmap.granularity_bits < 9 || bitmap.granularity_bits > 31) return false;
  if ((bitmap.flags & ~3u) != 0) return false;
  if (bitmap.name_bytes == 0 || bitmap.name_bytes > 1023) return false;
  const bool in_use = (bitmap.flags & 1) != 0;
  const uint64_t bits = CeilDiv(header_.size, Wide{1} << bitmap.granularity_bits);
  return in_use || bitmap.table_entries == CeilDiv(CeilDiv(bits, 8), cluster_size_);
}

void ReferenceWalk::WalkBitmaps() {
  const HeaderExtension* last = nullptr;
  for (const HeaderExtension& one : extensions_) {
    if (one.type == kExtensionBitmaps) last = &one;
  }
  if (!Bit(header_.autoclear_features, 0)) return;
  const std::optional<BitmapsExtension> extension =
      last == nullptr ? std::nullopt : DecodeBitmapsExtension(last->data);
  if (!extension || extension->nb_bitmaps == 0 || extension->nb_bitmaps > 65535 ||
      extension->reserved != 0 || extension->directory_offset == 0 ||
      !Aligned(extension->directory_offset) || extension->directory_size_bytes == 0 ||
      extension->directory_size_bytes > 65535 * 1024) {
    Add(FindingCode::kBitmapExtensionInvalid);
    return;
  }
  const uint64_t begin = extension->directory_offset;
  const uint64_t length = extension->directory_size_bytes;
  if (!Outside(begin, length)) {
    Count(begin, length, {.kind = UseKind::kBitmapDirectory, .place = begin});
  }
  if (!InFile(begin, length)) Add(FindingCode::kBitmapDirectoryInvalid);
  const uint64_t end = InFile(begin, length) ? begin + length : size();
  std::set<std::vector<uint8_t>> names;
  uint64_t at = begin;
  uint64_t number = 0;
  for (; number < extension->nb_bitmaps; ++number) {
    if (Wide{at} + 24 > end) break;
    const BitmapEntry bitmap = DecodeBitmapFixed(Read(at, 24), at);
    // The padding of the last entry need not be in the directory.
    if (at + bitmap.length_bytes >= end + 8) break;
    const uint64_t name_at = at + 24 + bitmap.extra_data_bytes;
    at += bitmap.length_bytes;
    if (!BitmapEntryIsSound(bitmap)) {
      Add(FindingCode::kBitmapDirectoryInvalid);
      continue;
    }
    if (!names.insert(Read(name_at, bitmap.name_bytes)).second) {
      Add(FindingCode::kBitmapDuplicate);
    }
    WalkBitmapTable(bitmap, number);
  }
  if (number < extension->nb_bitmaps || at < end) Add(FindingCode::kBitmapDirectoryInvalid);
}

void ReferenceWalk::WalkBitmapTable(const BitmapEntry& bitmap, uint64_t number) {
  const uint64_t length = uint64_t{bitmap.table_entries} * 8;
  const uint64_t table = bitmap.table_offset;
  if (!Outside(table, length)) {
    Count(table, length, {.kind = UseKind::kBitmapTable, .place = table, .number = number});
  }
  if (!InFile(table, length)) {
    Add(FindingCode::kBitmapTableInvalid);
    return;
  }
  for (uint64_t place = table; place < table + length; place += 8) {
    const uint64_t word = Word(place);
    const uint64_t offset = word & kHostOffsetBits;
    const bool reserved = (word & (Bits(1, 8) | Bits(56, 63))) != 0;
    if (reserved || (offset != 0 && (Bit(word, 0) || !Aligned(offset) || offset >= size()))) {
      Add(FindingCode::kBitmapTableInvalid);
      continue;
    }
    if (offset == 0) continue;
    Count(offset, cluster_size_,
          {.kind = UseKind::kBitmapData, .place = offset, .number = place, .guest = number});
  }
}

// --- L1 tables ---

void ReferenceWalk::WalkActiveL1() {
  const uint64_t offset = header_.l1_table_offset;
  if (Wide{header_.l1_size} * l2_entries_ * cluster_size_ < header_.size) {
    Add(FindingCode::kL1TooSmall);
  }
  if (header_.l1_size == 0) return;
  const bool misplaced = offset == 0 || !Aligned(offset);
  if (misplaced || !InFile(offset, Wide{header_.l1_size} * 8)) Add(FindingCode::kL1OffsetInvalid);
  if (misplaced || offset >= size()) return;
  l1_users_.insert(l1_users_.begin(), {offset, header_.l1_size, true});
}

std::optional<uint64_t> ReferenceWalk::L2TableOf(uint64_t l1_word) const {
  const uint64_t offset = l1_word & kHostOffsetBits;
  const uint64_t cluster = offset - offset % cluster_size_;
  if (cluster == 0 || cluster >= size()) return std::nullopt;
  // One flipped bit below the cluster size leads into the middle of a table.
  if (offset != cluster && !CanOnlyBeL2Table(cluster)) return std::nullopt;
  return cluster;
}

// Whether the cluster maps something, and every entry in it could be right.
bool ReferenceWalk::CanOnlyBeL2Table(uint64_t offset) const {
  std::map<uint64_t, uint64_t> times;  // how often each mapping occurs
  uint64_t used = 0;
  for (uint64_t i = 0; i < l2_entries_; ++i) {
    const uint64_t word = Word(offset + i * l2_entry_bytes_);
    if (word == 0) continue;
    ++used;
    uint64_t target = word & kHostOffsetBits;
    if (Bit(word, 62)) {
      target = word & Bits(0, 69 - cluster_bits_);
      if (Bit(word, 63) || (target & Bits(56, 63)) != 0) return false;
    } else {
      if ((word & (Bits(1, 8) | Bits(56, 61))) != 0 || !Aligned(target)) return false;
      if (Bit(word, 0) && header_.version < 3) return false;
      if (target == 0 && !(data_file_ && Bit(word, 63) && !(Bit(word, 0) && !extended_l2_))) {
        continue;
      }
    }
    if (!data_file_ && target >= size()) return false;
    ++times[word];
  }
  // Mappings lead to different places.
  for (const auto& [word, count] : times) {
    if (count >= 8 && count * 2 > used) return false;
  }
  return !times.empty();
}

// A table that two slots share is cross-linked, unless it is the same slot of two L1 tables. Each
// L1 table has its say once, whoever has it.
void ReferenceWalk::FindSharedL2Tables() {
  std::vector<L1User> tables;  // distinct; as long as the longest user says
  for (const L1User& user : l1_users_) {
    const auto same = std::find_if(tables.begin(), tables.end(),
                                   [&](const L1User& one) { return one.offset == user.offset; });
    if (same == tables.end()) {
      tables.push_back(user);
    } else {
      same->entries = std::max(same->entries, user.entries);
    }
  }
  for (const L1User& table : tables) {
    for (uint64_t slot = 0; slot < table.entries && table.offset + slot * 8 < size(); ++slot) {
      const std::optional<uint64_t> l2 = L2TableOf(Word(table.offset + slot * 8));
      if (!l2) continue;
      const uint64_t first = first_slot_.emplace(*l2, slot).first->second;
      if (first != slot) shared_l2_.push_back(*l2);
    }
  }
}

void ReferenceWalk::CountL1(const L1User& user) {
  const uint64_t length = user.entries * 8;
  if (Outside(user.offset, length)) return;
  Count(user.offset, length, {.kind = UseKind::kL1Table, .place = user.offset});
}

void ReferenceWalk::WalkL1(const L1User& user) {
  for (uint64_t slot = 0; slot < user.entries; ++slot) {
    const uint64_t place = user.offset + slot * 8;
    if (place >= size()) break;  // what is behind the end reads as zeros
    const uint64_t word = Word(place);
    if (word == 0) continue;
    const uint64_t offset = word & kHostOffsetBits;
    const bool reserved = (word & (Bits(0, 8) | Bits(56, 62))) != 0;
    if (reserved) AddAt(FindingCode::kL1EntryReservedBits, place);
    if (offset == 0) {
      if (!reserved) AddAt(FindingCode::kL1EntryWithoutOffset, place);
      continue;
    }
    if (user.active) copied_claims_.push_back({place, Bit(word, 63), offset / cluster_size_});
    if (!Aligned(offset)) {
      AddAt(FindingCode::kL2TableMisaligned, place);
    } else if (offset >= size()) {
      AddAt(FindingCode::kL2TablePastEnd, place);
      pointed_behind_end_.insert(offset / cluster_size_);
    }
    if (const std::optional<uint64_t> l2 = L2TableOf(word)) WalkL2(*l2, user.active);
  }
}

// --- L2 tables ---

void ReferenceWalk::WalkL2(uint64_t table, bool active) {
  Count(table, cluster_size_, {.kind = UseKind::kL2Table, .place = table});
  next_offset_ = 0;
  for (uint64_t index = 0; index < l2_entries_; ++index) VisitEntry(table, index, active);
}

void ReferenceWalk::VisitEntry(uint64_t table, uint64_t index, bool active) {
  const uint64_t place = table + index * l2_entry_bytes_;
  const uint64_t word = Word(place);
  const uint64_t bitmap = extended_l2_ ? Word(place + 8) : 0;
  const uint64_t guest = (first_slot_.at(table) * l2_entries_ + index) * cluster_size_;
  if (Bit(word, 62)) {
    VisitCompressed(place, guest, word, bitmap, active);
  } else {
    VisitStandard(place, guest, word, bitmap, active);
  }
}

void ReferenceWalk::VisitCompressed(uint64_t place, uint64_t guest, uint64_t word, uint64_t bitmap,
                                    bool active) {
  if (active && guest >= header_.size) AddOnceAt(FindingCode::kDataPastVirtualEnd, place);
  if (Bit(word, 63)) AddAt(FindingCode::kCompressedCopied, place);
  if (data_file_) {
    AddAt(FindingCode::kCompressedInDataFile, place);
    return;
  }
  // QEMU ignores the bitmap when it reads, so the cluster is in use all the same.
  if (bitmap != 0) AddAt(FindingCode::kCompressedSubclusters, place);
  if (active) {
    ++report_.allocated_clusters;
    ++report_.compressed_clusters;
    ++report_.fragmented_clusters;
  }
  const int x = 70 - cluster_bits_;
  const uint64_t offset = word & Bits(0, x - 1);
  const uint64_t sectors = ((word & Bits(x, 61)) >> x) + 1;
  const uint64_t length = sectors * 512 - offset % 512;
  if (Outside(offset, length)) {
    AddAt(FindingCode::kCompressedPastEnd, place);
    return;
  }
  Count(offset, length, {.kind = UseKind::kCompressedCluster, .place = place, .guest = guest});
}

void ReferenceWalk::VisitStandard(uint64_t place, uint64_t guest, uint64_t word, uint64_t bitmap,
                                  bool active) {
  if ((word & (Bits(1, 8) | Bits(56, 61))) != 0) AddAt(FindingCode::kL2EntryReservedBits, place);
  const bool copied = Bit(word, 63);
  const bool zero_flag = Bit(word, 0) && !extended_l2_;
  const uint64_t offset = word & kHostOffsetBits;
  const bool mapped = offset != 0 || (data_file_ && copied && !zero_flag);
  // In a data file COPIED may tell of a zero cluster that it is the one at offset 0.
  if ((!mapped && copied && !data_file_) || (extended_l2_ && Bit(word, 0))) {
    AddOnceAt(FindingCode::kStrayL2Flag, place);
  }
  if (zero_flag && header_.version < 3) AddAt(FindingCode::kZeroFlagNotAllowed, place);
  const uint64_t allocated = bitmap & Bits(0, 31);
  const uint64_t zeros = bitmap >> 32;
  if (mapped && (allocated & zeros) != 0) AddAt(FindingCode::kSubclusterConflict, place);
  if (!mapped && allocated != 0) AddAt(FindingCode::kSubclusterWithoutCluster, place);
  if (!mapped) return;
  if (active && guest >= header_.size) AddOnceAt(FindingCode::kDataPastVirtualEnd, place);
  VisitMapped(place, guest, word, extended_l2_ ? allocated != 0 : !zero_flag, active);
}

void ReferenceWalk::VisitMapped(uint64_t place, uint64_t guest, uint64_t word, bool holds_data,
                                bool active) {
  const uint64_t offset = word & kHostOffsetBits;
  if (active) {
    ++report_.allocated_clusters;
    if (next_offset_ != 0 && offset != next_offset_) ++report_.fragmented_clusters;
    next_offset_ = offset + cluster_size_;
    copied_claims_.push_back({place, Bit(word, 63), offset / cluster_size_, data_file_});
  }
  const bool misaligned = !Aligned(offset);
  if (misaligned) {
    AddAt(holds_data ? FindingCode::kDataMisaligned : FindingCode::kZeroClusterMisaligned, place);
  }
  if (data_file_) return;
  if (offset >= size()) {
    AddAt(holds_data ? FindingCode::kDataPastEnd : FindingCode::kZeroClusterPastEnd, place);
    pointed_behind_end_.insert(offset / cluster_size_);
    return;
  }
  Count(offset, cluster_size_,
        {.kind = UseKind::kGuestCluster, .place = place, .guest = guest, .misaligned = misaligned});
}

// --- Refcounts ---

void ReferenceWalk::WalkRefcountTable() {
  const uint64_t table = header_.refcount_table_offset;
  const Wide length = Wide{header_.refcount_table_clusters} * cluster_size_;
  if (length == 0 || table == 0 || !Aligned(table) || table >= size()) {
    Add(FindingCode::kRefcountTableInvalid);
    return;
  }
  uint64_t counted = static_cast<uint64_t>(length);
  if (Outside(table, length)) {
    Add(FindingCode::kRefcountTableInvalid);
    counted = file_clusters_ * cluster_size_ - table;
  }
  Count(table, counted, {.kind = UseKind::kRefcountTable, .place = table});
  for (uint64_t index = 0; index * 8 < length && table + index * 8 < size(); ++index) {
    WalkRefcountTableEntry(index, table + index * 8);
  }
}

void ReferenceWalk::WalkRefcountTableEntry(uint64_t index, uint64_t place) {
  const uint64_t word = Word(place);
  const uint64_t offset = word & Bits(9, 63);
  if ((word & Bits(0, 8)) != 0) AddAt(FindingCode::kRefcountTableEntryReservedBits, place);
  if (offset == 0) return;
  if (!Aligned(offset)) {
    AddAt(FindingCode::kRefcountBlockMisaligned, place);
  } else if (offset >= size()) {
    AddAt(FindingCode::kRefcountBlockPastEnd, place);
  } else {
    Count(offset, cluster_size_,
          {.kind = UseKind::kRefcountBlock, .place = offset, .number = index});
    blocks_[index] = offset;
  }
}

uint64_t ReferenceWalk::Stored(uint64_t cluster) const {
  const auto block = blocks_.find(cluster / block_entries_);
  if (block == blocks_.end()) return 0;
  uint64_t value = 0;
  const uint64_t width = static_cast<uint64_t>(refcount_bits_);
  const uint64_t first_bit = cluster % block_entries_ * width;
  if (width < 8) {
    // Inside a byte the lowest bits are the first entry.
    return (Byte(block->second + first_bit / 8) >> first_bit % 8) & ((1u << width) - 1);
  }
  for (uint64_t i = 0; i < width / 8; ++i) {
    value = value << 8 | Byte(block->second + first_bit / 8 + i);
  }
  return value;
}

void ReferenceWalk::CompareRefcounts() {
  const bool lazy = Bit(header_.incompatible_features, 0) && Bit(header_.compatible_features, 0);
  const uint64_t max = refcount_bits_ == 64 ? ~uint64_t{0} : (uint64_t{1} << refcount_bits_) - 1;
  // What starts in the file may end in the cluster behind it.
  compared_clusters_ = file_clusters_;
  while (Expected(compared_clusters_) != 0) ++compared_clusters_;
  for (uint64_t cluster = 0; cluster < compared_clusters_; ++cluster) {
    const uint64_t stored = Stored(cluster);
    const uint64_t references = Expected(cluster);
    const uint64_t expected = std::min(references, max);
    report_.expected_refcounts.push_back(references);
    report_.stored_refcounts.push_back(stored);
    if (references > max) {
      Add(FindingCode::kRefcountOverflow, references - max);
      mismatched_.insert(cluster);
    }
    if (stored != 0 || references != 0) report_.image_end_offset = (cluster + 1) * cluster_size_;
    if (stored == expected) continue;
    mismatched_.insert(cluster);
    report_.mismatches.insert({cluster, stored, expected});
    if (stored < expected) {
      Add(lazy          ? FindingCode::kRefcountLazy
          : stored == 0 ? FindingCode::kRefcountZeroInUse
                        : FindingCode::kRefcountTooLow);
    } else if (expected != 0) {
      Add(FindingCode::kRefcountTooHigh);
    } else {
      report_.orphans.insert(cluster);
      Add(FindingCode::kLeakedCluster);
    }
  }
}

// A refcount there is a leak, unless a pointer leads there, which has been counted.
void ReferenceWalk::CompareRefcountsBehindEnd() {
  for (const auto& [index, block] : blocks_) {
    for (uint64_t i = 0; i < block_entries_; ++i) {
      const uint64_t cluster = index * block_entries_ + i;
      if (cluster < compared_clusters_ || Stored(cluster) == 0) continue;
      if (pointed_behind_end_.count(cluster) != 0) continue;
      report_.mismatches.insert({cluster, Stored(cluster), 0});
      Add(FindingCode::kRefcountPastEnd);
    }
  }
}

// Blocks are counted last and each is looked at when it is: the first one finds only what else uses
// its cluster, every further entry for it finds the block itself, too.
void ReferenceWalk::JudgeSharedBlocks() {
  std::map<uint64_t, uint64_t> left = {};
  for (const auto& [index, block] : blocks_) ++left[block / cluster_size_];
  for (const auto& [index, block] : blocks_) {
    const uint64_t cluster = block / cluster_size_;
    if (Expected(cluster) - --left[cluster] != 1) Add(FindingCode::kRefcountBlockShared);
  }
}

void ReferenceWalk::JudgeCopied() {
  const bool lazy = Bit(header_.incompatible_features, 0) && Bit(header_.compatible_features, 0);
  for (const CopiedClaim& claim : copied_claims_) {
    if (claim.always) {
      if (!claim.copied) AddAt(FindingCode::kCopiedWrong, claim.place);
      continue;
    }
    if (!report_.refcounts_readable) continue;
    if (claim.copied == (Stored(claim.cluster) == 1)) continue;
    const bool is_one = claim.cluster < file_clusters_ && Expected(claim.cluster) == 1;
    // With lazy refcounts the refcount is what is behind, and the flag is right.
    const bool behind = lazy && claim.copied == is_one;
    AddAt(behind ? FindingCode::kRefcountLazy : FindingCode::kCopiedWrong, claim.place);
  }
}

// --- Clusters that are used twice ---

void ReferenceWalk::JudgeUses() {
  for (const auto& [cluster, uses] : uses_) {
    uint64_t metadata = 0;
    std::set<uint64_t> guests;
    bool misaligned = false, compressed = false, uncompressed = false, refcount_block = false;
    for (const Use& use : uses) {
      misaligned |= use.misaligned;
      compressed |= use.kind == UseKind::kCompressedCluster;
      uncompressed |= use.kind == UseKind::kGuestCluster;
      refcount_block |= use.kind == UseKind::kRefcountBlock;
      if (use.is_guest()) {
        guests.insert(use.guest);
      } else {
        ++metadata;
      }
    }
    // What a misaligned entry reaches into is that entry's fault.
    if (misaligned) continue;
    // A wrong refcount counts the damage already, and so does a shared refcount block.
    uint64_t count = IsMismatched(cluster) ? 0 : 1;
    FindingCode code;
    if (metadata != 0 && !guests.empty()) {
      code = FindingCode::kDataOnMetadata;
    } else if (metadata > 1) {
      code = FindingCode::kMetadataOverlap;
      if (refcount_block) count = 0;
    } else if (uncompressed && (compressed || guests.size() > 1)) {
      code = FindingCode::kCrossLinkedData;  // only compressed clusters may share a host cluster
    } else {
      continue;
    }
    report_.places.emplace(code, cluster * cluster_size_);
    Add(code, count);
  }
}

void ReferenceWalk::JudgeSharedL2Tables() {
  for (const uint64_t table : shared_l2_) {
    report_.places.emplace(FindingCode::kCrossLinkedL2, table);
    Add(FindingCode::kCrossLinkedL2, IsMismatched(table / cluster_size_) ? 0 : 1);
  }
}

void ReferenceWalk::Sum() {
  for (const auto& [code, count] : report_.counts) {
    if (InfoOf(code).tally == Tally::kCorruptions) report_.corruptions += count;
    if (InfoOf(code).tally == Tally::kLeaks) report_.leaks += count;
  }
}

ReferenceReport ReferenceWalk::Run() {
  if (CheckHeader()) {
    report_.walked = true;
    report_.cluster_size = cluster_size_;
    report_.l2_entry_bytes = l2_entry_bytes_;
    report_.total_clusters = CeilDiv(header_.size / 512 * 512, cluster_size_);
    Count(0, cluster_size_, {.kind = UseKind::kHeader});
    WalkSnapshotTable();
    WalkLuksHeader();
    WalkBitmaps();
    WalkActiveL1();
    FindSharedL2Tables();
    for (const L1User& user : l1_users_) CountL1(user);
    for (const L1User& user : l1_users_) WalkL1(user);
    WalkRefcountTable();
    if (report_.refcounts_readable) {
      CompareRefcounts();
      CompareRefcountsBehindEnd();
      JudgeSharedBlocks();
    }
    JudgeCopied();
    JudgeUses();
    JudgeSharedL2Tables();
  }
  Sum();
  return std::move(report_);
}

constexpr FindingCode kReferenceCodes[] = {
    FindingCode::kNotQcow2,
    FindingCode::kHeaderTruncated,
    FindingCode::kUnsupportedVersion,
    FindingCode::kClusterBitsInvalid,
    FindingCode::kRefcountOrderInvalid,
    FindingCode::kHeaderLengthInvalid,
    FindingCode::kUnknownIncompatibleFeature,
    FindingCode::kCorruptBit,
    FindingCode::kCompressionTypeInvalid,
    FindingCode::kExtendedL2SmallClusters,
    FindingCode::kDataFileSnapshots,
    FindingCode::kL1OffsetInvalid,
    FindingCode::kL1TooSmall,
    FindingCode::kL1EntryReservedBits,
    FindingCode::kL1EntryWithoutOffset,
    FindingCode::kL2TableMisaligned,
    FindingCode::kL2TablePastEnd,
    FindingCode::kL2EntryReservedBits,
    FindingCode::kDataMisaligned,
    FindingCode::kZeroClusterMisaligned,
    FindingCode::kDataPastEnd,
    FindingCode::kZeroClusterPastEnd,
    FindingCode::kCompressedPastEnd,
    FindingCode::kCompressedCopied,
    FindingCode::kCompressedInDataFile,
    FindingCode::kCompressedSubclusters,
    FindingCode::kSubclusterConflict,
    FindingCode::kSubclusterWithoutCluster,
    FindingCode::kZeroFlagNotAllowed,
    FindingCode::kStrayL2Flag,
    FindingCode::kCopiedWrong,
    FindingCode::kDataPastVirtualEnd,
    FindingCode::kCrossLinkedData,
    FindingCode::kCrossLinkedL2,
    FindingCode::kDataOnMetadata,
    FindingCode::kMetadataOverlap,
    FindingCode::kRefcountTableInvalid,
    FindingCode::kRefcountTableEntryReservedBits,
    FindingCode::kRefcountBlockMisaligned,
    FindingCode::kRefcountBlockPastEnd,
    FindingCode::kRefcountBlockShared,
    FindingCode::kRefcountTooLow,
    FindingCode::kRefcountZeroInUse,
    FindingCode::kRefcountLazy,
    FindingCode::kRefcountOverflow,
    FindingCode::kLeakedCluster,
    FindingCode::kRefcountTooHigh,
    FindingCode::kRefcountPastEnd,
    FindingCode::kSnapshotTableInvalid,
    FindingCode::kSnapshotTooMany,
    FindingCode::kSnapshotEntryIncomplete,
    FindingCode::kSnapshotExtraTooLarge,
    FindingCode::kSnapshotL1Invalid,
    FindingCode::kSnapshotSizeMismatch,
    FindingCode::kBitmapExtensionInvalid,
    FindingCode::kBitmapDirectoryInvalid,
    FindingCode::kBitmapTableInvalid,
    FindingCode::kBitmapDuplicate,
};

}  // namespace

absl::Span<const FindingCode> ReferenceCodes() { return kReferenceCodes; }

ReferenceReport ReferenceCheck(const std::vector<uint8_t>& bytes) {
  return ReferenceWalk(bytes).Run();
}

}  // namespace qcow2check::testing

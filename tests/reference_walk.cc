// The walk: header, snapshots, L1 tables, L2 tables once for each entry that leads to them,
// bitmaps, refcount table. Counts what is referenced and notes who does it.
#include "tests/reference_walk.h"

#include <algorithm>

#include "common/byte_order.h"

namespace qcow2check::testing {

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
  const uint64_t begin = header_.snapshots_offset;
  if (header_.nb_snapshots == 0) {
    if (!Aligned(begin) || Bit(begin, 63)) Add(FindingCode::kSnapshotTableInvalid);
    return;
  }
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
  bool any_zeros = false;
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
    any_zeros |= entry.l1_table_offset == 0 && entry.l1_size == 0 && entry.id_bytes == 0;
    // Old entries do not say how large the disk was. VM state starts with an L1 entry of its own.
    const Wide mapped_by_entry = Wide{l2_entries_} * cluster_size_;
    if (entry.vm_state_bytes() != 0) {
      vm_state_begin_ =
          (Wide{header_.size} + mapped_by_entry - 1) / mapped_by_entry * mapped_by_entry;
      vm_state_end_ = std::max(vm_state_end_, vm_state_begin_ + entry.vm_state_bytes());
    }
    Wide needed = entry.disk_size.value_or(0);
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
  if (any_zeros) Add(FindingCode::kSnapshotTableInvalid);
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
  // Bitmaps that are out of date are nothing, but the extension must have its length all the same.
  const bool consistent = Bit(header_.autoclear_features, 0);
  const bool decodes = last != nullptr && last->data.size() == kBitmapsExtensionBytes;
  if (!consistent && (last == nullptr || decodes)) return;
  if (!decodes) {
    Add(FindingCode::kBitmapExtensionInvalid);
    return;
  }
  const BitmapsExtension extension =
      DecodeBitmapsExtension(last->data).value_or(BitmapsExtension());
  if (extension.nb_bitmaps == 0 || extension.nb_bitmaps > 65535 || extension.reserved != 0 ||
      extension.directory_offset == 0 || !Aligned(extension.directory_offset) ||
      extension.directory_size_bytes == 0 || extension.directory_size_bytes > 65535 * 1024) {
    Add(FindingCode::kBitmapExtensionInvalid);
    return;
  }
  const uint64_t begin = extension.directory_offset;
  const uint64_t length = extension.directory_size_bytes;
  if (!Outside(begin, length)) {
    Count(begin, length, {.kind = UseKind::kBitmapDirectory, .place = begin});
  }
  if (!InFile(begin, length)) Add(FindingCode::kBitmapDirectoryInvalid);
  const uint64_t end = InFile(begin, length) ? begin + length : size();
  std::set<std::vector<uint8_t>> names;
  uint64_t at = begin;
  uint64_t number = 0;
  for (; number < extension.nb_bitmaps; ++number) {
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
  if (number < extension.nb_bitmaps || at < end) Add(FindingCode::kBitmapDirectoryInvalid);
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
  uint64_t used = 0, mapped = 0, behind_end = 0;
  for (uint64_t i = 0; i < l2_entries_; ++i) {
    const uint64_t word = Word(offset + i * l2_entry_bytes_);
    if (word == 0) continue;
    ++used;
    uint64_t target = word & kHostOffsetBits;
    if (Bit(word, 62)) {
      target = word & Bits(0, 69 - cluster_bits_);
      // COPIED has no meaning there; some writer may set it all the same.
      const bool leads_into_file = data_file_ || target < size();
      if ((target & Bits(56, 63)) != 0 || (Bit(word, 63) && !leads_into_file)) return false;
    } else {
      if ((word & (Bits(1, 8) | Bits(56, 61))) != 0 || !Aligned(target)) return false;
      if (Bit(word, 0) && header_.version < 3) return false;
      if (target == 0 && !(data_file_ && Bit(word, 63) && !(Bit(word, 0) && !extended_l2_))) {
        continue;
      }
    }
    if (!data_file_ && target >= size()) ++behind_end;
    ++mapped;
    ++times[word];
  }
  // Mappings lead to different places.
  for (const auto& [word, count] : times) {
    if (count >= 8 && count * 2 > used) return false;
  }
  // A file that was cut off has lost some of what its tables lead to.
  return mapped != 0 && behind_end * 2 < mapped;
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

// Where a disk that was reverted to a snapshot may map its VM state is not behind it.
bool ReferenceWalk::IsBehindDisk(uint64_t guest) const {
  return guest >= header_.size && (guest < vm_state_begin_ || guest >= vm_state_end_);
}

void ReferenceWalk::VisitCompressed(uint64_t place, uint64_t guest, uint64_t word, uint64_t bitmap,
                                    bool active) {
  if (active && IsBehindDisk(guest)) AddOnceAt(FindingCode::kDataPastVirtualEnd, place);
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
    for (uint64_t cluster = offset / cluster_size_;
         cluster <= (offset + length - 1) / cluster_size_; ++cluster) {
      pointed_behind_end_.insert(cluster);
    }
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
  if (active && IsBehindDisk(guest)) AddOnceAt(FindingCode::kDataPastVirtualEnd, place);
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
  const bool reserved = (word & Bits(0, 8)) != 0;
  if (reserved) AddAt(FindingCode::kRefcountTableEntryReservedBits, place);
  if (offset == 0) return;
  if (!Aligned(offset)) {
    report_.places.emplace(FindingCode::kRefcountBlockMisaligned, place);
    Add(FindingCode::kRefcountBlockMisaligned, reserved ? 0 : 1);
  } else if (offset >= size()) {
    report_.places.emplace(FindingCode::kRefcountBlockPastEnd, place);
    Add(FindingCode::kRefcountBlockPastEnd, reserved ? 0 : 1);
  } else {
    Count(offset, cluster_size_,
          {.kind = UseKind::kRefcountBlock, .place = offset, .number = index});
    blocks_[index] = offset;
  }
}

}  // namespace qcow2check::testing

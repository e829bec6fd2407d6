// The walk and the judgement behind ReferenceCheck; a part of the reference checker. What it is and
// what it leaves out is said in tests/reference_checker.h.
#ifndef QCOW2CHECK_TESTS_REFERENCE_WALK_H_
#define QCOW2CHECK_TESTS_REFERENCE_WALK_H_

#include <compare>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "common/bitmap_entry.h"
#include "common/header.h"
#include "common/header_extension.h"
#include "common/snapshot_entry.h"
#include "tests/reference_checker.h"

namespace qcow2check::testing {

// No sum or product of two fields overflows it.
__extension__ typedef unsigned __int128 Wide;

// Bits `first` to `last` of a 64-bit word, as the specification numbers them, in place.
inline constexpr uint64_t Bits(int first, int last) {
  return (last == 63 ? ~uint64_t{0} : (uint64_t{1} << (last + 1)) - 1) &
         ~((uint64_t{1} << first) - 1);
}
inline constexpr bool Bit(uint64_t word, int bit) { return ((word >> bit) & 1) != 0; }
inline constexpr uint64_t CeilDiv(Wide a, Wide b) { return static_cast<uint64_t>((a + b - 1) / b); }

inline constexpr uint64_t kHostOffsetBits = Bits(9, 55);

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
  bool IsBehindDisk(uint64_t guest) const;
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
  bool IsTooFar(uint64_t cluster) const;
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
  Wide vm_state_begin_ = 0, vm_state_end_ = 0;  // guest offsets; equal if there is none
  std::map<uint64_t, uint64_t> first_slot_;     // L2 table -> the L1 slot that leads there first
  std::vector<uint64_t> shared_l2_;             // an L2 table for each other slot that leads there
  std::map<uint64_t, uint64_t> blocks_;         // refcount table index -> refcount block
  std::vector<uint64_t> expected_;
  std::map<uint64_t, std::set<Use>> uses_;  // by cluster
  std::set<uint64_t> pointed_behind_end_;   // clusters
  std::vector<CopiedClaim> copied_claims_;
  std::set<uint64_t> mismatched_;
  uint64_t next_offset_ = 0;  // where the next guest cluster is if it is not fragmented
};

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_REFERENCE_WALK_H_

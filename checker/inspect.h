// What is stored in an image, decoded but not judged: the structures behind `qcow2check inspect`,
// and the answers to "where is this guest byte?" and "who owns this host cluster?".
//
// Every list is capped, and says how many items were left out. Nothing is sized by a claim in the
// image: tables are read as far as the file has bytes for them.
#ifndef QCOW2CHECK_CHECKER_INSPECT_H_
#define QCOW2CHECK_CHECKER_INSPECT_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "checker/check_state.h"
#include "common/address.h"
#include "common/bitmap_entry.h"
#include "common/finding.h"
#include "common/geometry.h"
#include "common/header.h"
#include "common/header_extension.h"
#include "common/image_file.h"
#include "common/snapshot_entry.h"
#include "common/table_entry.h"

namespace qcow2check {

// A list that stops at a cap; the items behind it are only counted.
template <typename Item>
struct CappedList {
  std::vector<Item> items;
  uint64_t left_out = 0;

  uint64_t total() const { return items.size() + left_out; }
  void Add(uint64_t cap, Item item) {
    if (items.size() < cap) {
      items.push_back(std::move(item));
    } else {
      ++left_out;
    }
  }
};

struct HeaderFieldView {
  std::string name;  // as in the specification; "padding", "unknown fields"
  uint64_t offset = 0;
  std::vector<uint8_t> bytes;     // as they are in the file
  std::optional<uint64_t> value;  // nothing if the field is no number, or the file ends before it
};

struct HeaderView {
  std::vector<HeaderFieldView> fields;
  Header header;
  std::optional<Geometry> geometry;  // nothing if no table can be read
  bool refcounts_readable = true;    // false if the header does not say how wide they are
  uint64_t file_bytes = 0;
  std::string backing_name;
  std::string backing_format;
  std::string data_file_name;
};

struct ExtensionsView {
  CappedList<HeaderExtension> extensions;
  uint64_t end_bytes = 0;
  bool has_end_marker = false;
  // An extension that claims more bytes than the first cluster has; its data is empty.
  std::optional<HeaderExtension> overflow;
};

struct L1EntryView {
  uint64_t l1_index = 0;
  HostOffset entry_offset;  // of the entry in the file
  uint64_t entry = 0;
  GuestOffset guest;  // first byte that the L2 table maps
};

struct L1View {
  HostOffset offset;
  uint64_t entries = 0;          // as the header says
  uint64_t entries_in_file = 0;  // as many as the file has bytes for
  CappedList<L1EntryView> used;  // entries that are not zero
};

// Consecutive clusters with the same stored refcount.
struct RefcountRun {
  uint64_t first_cluster = 0;
  uint64_t clusters = 0;
  uint64_t refcount = 0;
};

struct RefcountBlockView {
  uint64_t table_index = 0;
  HostOffset entry_offset;  // of the refcount table entry in the file
  uint64_t entry = 0;
  HostOffset offset;           // of the block
  uint64_t first_cluster = 0;  // that the block counts; saturates
  uint64_t nonzero = 0;        // refcounts that are not zero
  CappedList<RefcountRun> runs;
  std::optional<uint64_t> same_block_as;  // table index of an entry that names this block, too
  std::string not_read;                   // why the block could not be read; empty: it was
};

struct RefcountsView {
  HostOffset table_offset;
  uint64_t table_entries = 0;
  uint64_t table_entries_in_file = 0;
  int refcount_bits = 0;
  uint64_t block_entries = 0;
  CappedList<RefcountBlockView> blocks;  // of the table entries that are not zero
};

struct SnapshotsView {
  HostOffset table_offset;
  uint64_t count = 0;  // as the header says
  uint64_t virtual_size_bytes = 0;
  CappedList<SnapshotEntry> snapshots;
  std::string incomplete;  // why not all are here; empty: all are
};

struct BitmapTableEntryView {
  uint64_t index = 0;
  uint64_t entry = 0;
};

struct BitmapView {
  BitmapEntry entry;
  uint64_t data_clusters = 0;  // table entries with an offset
  uint64_t all_ones = 0;       // without an offset, all bits set
  CappedList<BitmapTableEntryView> used;
  std::string not_read;  // why the table could not be read; empty: it was
};

struct BitmapsView {
  bool present = false;  // whether the image has a bitmaps extension
  bool stale = false;    // the autoclear bit is not set: the image says that they are out of date
  BitmapsExtension extension;
  CappedList<BitmapView> bitmaps;
  std::string incomplete;  // why not all are here; empty: all are
};

// An L2 entry, or a run of equal entries that name no cluster.
struct L2EntryView {
  uint64_t l2_index = 0;
  uint64_t count = 1;
  HostOffset entry_offset;  // of the entry in the file
  GuestOffset guest;
  uint64_t entry = 0;
  uint64_t bitmap_word = 0;  // the second word of an extended L2 entry
  L2EntryKind kind = L2EntryKind::kUnallocated;
};

struct L2View {
  uint64_t l1_index = 0;
  HostOffset l1_entry_offset;
  uint64_t l1_entry = 0;
  GuestOffset guest;
  uint64_t guest_bytes = 0;
  std::optional<HostOffset> table_offset;  // nothing: the L1 entry names no table
  CappedList<L2EntryView> entries;         // of the whole table, runs folded
  std::string note;                        // what is odd about the table's place; may be empty
};

// A cluster's refcount as it is stored, and how often the walk found the cluster referenced.
struct ClusterRefcounts {
  ClusterIndex cluster;
  std::optional<uint64_t> stored;    // nothing if it cannot be known
  std::optional<HostOffset> block;   // the refcount block that holds it
  std::string stored_note;           // why it is 0 or unknown without a block; may be empty
  std::optional<uint64_t> expected;  // nothing for clusters behind the end of the file
};

// Where the bytes of a guest cluster come from.
enum class ReadsFrom {
  kCluster,      // a host cluster
  kCompressed,   // a compressed cluster
  kDataFile,     // the external data file
  kZeros,        // nowhere: zeros
  kBackingFile,  // the backing file; as zeros behind its end
  kNowhere,      // cannot be read, or is behind the end of the disk
};
absl::string_view NameOf(ReadsFrom source);  // "backing-file"
absl::string_view NameOf(L2EntryKind kind);  // "zero-allocated"

struct GuestLocation {
  GuestOffset guest;
  bool past_end = false;  // behind the end of the virtual disk
  uint64_t virtual_size_bytes = 0;
  uint64_t l1_index = 0;
  uint64_t l2_index = 0;
  std::optional<HostOffset> l1_entry_offset;  // nothing if the L1 table has no such slot
  uint64_t l1_entry = 0;
  std::optional<HostOffset> l2_table;  // nothing if there is none
  std::optional<L2EntryView> l2_entry;
  std::optional<uint64_t> subcluster;  // number of the subcluster, with extended L2 entries
  ReadsFrom reads_from = ReadsFrom::kNowhere;
  // The place of exactly this byte; in the external data file for kDataFile. Also set for a byte
  // that reads as zeros although a cluster is reserved for it.
  std::optional<HostOffset> host_offset;
  std::optional<CompressedRange> compressed;
  bool encrypted = false;
  std::string file_name;                    // of the backing or data file, where it is named
  std::vector<ClusterRefcounts> refcounts;  // of the host clusters concerned
  std::vector<std::string> notes;           // what is odd
};

// One structure that lies in a cluster, or one entry that points there.
struct ClusterOwner {
  Owner owner;
  // Through which disks it is reached; both empty for metadata that is not reached through an L1
  // table.
  bool active = false;
  CappedList<uint64_t> snapshots;  // positions in the snapshot table
};

struct ClusterOwners {
  ClusterRefcounts refcounts;
  HostOffset offset;
  uint64_t cluster_bytes = 0;
  bool in_file = false;
  CappedList<ClusterOwner> owners;
  std::vector<std::string> notes;  // what was not examined, so that an owner may be missing
};

// How much of each list is kept.
struct InspectCaps {
  uint64_t entries = 262'144;   // of a table
  uint64_t details = 4096;      // runs of refcounts in a block, entries of a bitmap's table
  uint64_t directory = 65'536;  // snapshots, bitmaps, extensions
};

// Reads one image. Not thread-safe. Errors are one sentence each: why a structure cannot be shown.
class ImageInspector {
 public:
  // Reads the header.
  ImageInspector(const ImageFile& file, InspectCaps caps);

  // Whether the file starts with a qcow2 header; nothing else can be asked if not.
  bool is_qcow2() const { return is_qcow2_; }

  HeaderView ShowHeader();
  absl::StatusOr<ExtensionsView> ShowExtensions() const;
  absl::StatusOr<L1View> ShowL1();
  absl::StatusOr<RefcountsView> ShowRefcounts();
  absl::StatusOr<SnapshotsView> ShowSnapshots();
  absl::StatusOr<BitmapsView> ShowBitmaps();
  // The table in slot `l1_index` of the active L1 table. kOutOfRange if there is no such slot.
  absl::StatusOr<L2View> ShowL2(uint64_t l1_index);

  // These two walk all metadata, once.
  absl::StatusOr<GuestLocation> Locate(GuestOffset guest);
  absl::StatusOr<ClusterOwners> FindOwners(ClusterIndex cluster);

  // What could not be read on the way: "a part of the L1 table at 0x30000: it cannot be read".
  std::vector<std::string> Unread() const;

 private:
  // Who reaches an L2 table through one L1 slot, and where the slot is (of the active disk, if it
  // is among them).
  struct SlotUsers {
    bool active = false;
    CappedList<uint64_t> snapshots;
    std::optional<HostOffset> entry_offset;
  };
  using L2Slot = std::pair<uint64_t, uint64_t>;  // offset of the table, L1 index

  absl::Status NeedGeometry() const;
  absl::Status NeedL1() const;
  absl::Status NeedRefcountTable() const;
  CheckState& Walk();

  absl::StatusOr<uint64_t> ReadL1Entry(uint64_t l1_index);
  uint64_t ReadWord(uint64_t offset, Structure structure);
  void ReadRefcountBlock(RefcountBlockView& block);
  BitmapView ShowBitmap(BitmapEntry entry);

  ClusterRefcounts RefcountsOf(ClusterIndex cluster);
  void FillStored(ClusterRefcounts& refcounts);
  void DescribeMapping(GuestLocation& location);
  void DescribeEntry(GuestLocation& location);
  void DescribeStandard(GuestLocation& location);
  void DescribeSubcluster(GuestLocation& location, bool has_cluster);
  void DescribeCompressed(GuestLocation& location);
  void SetUnallocated(GuestLocation& location) const;

  // The first of the L1 slots that lead to the L2 table.
  const CappedList<uint64_t>& SlotsOf(uint64_t l2_offset);
  const SlotUsers& UsersOf(L2Slot slot);
  void AddMapped(const Owner& owner, uint64_t l2_offset, ClusterOwners& result);
  void AddOwner(const Owner& owner, ClusterOwners& result);

  const ImageFile& file_;
  const InspectCaps caps_;
  const CheckOptions options_;
  CheckState state_;  // after the header pass
  bool is_qcow2_ = false;
  uint64_t details_left_;
  std::unique_ptr<CheckState> walk_;                           // after the L2 pass
  absl::flat_hash_map<uint64_t, CappedList<uint64_t>> slots_;  // by offset of the L2 table
  absl::flat_hash_map<L2Slot, SlotUsers> users_;
};

// Who owns a host cluster, for callers that have one question.
absl::StatusOr<ClusterOwners> FindOwners(const ImageFile& file, ClusterIndex cluster);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CHECKER_INSPECT_H_

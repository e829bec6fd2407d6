// Builds valid qcow2 images in memory, laid out as QEMU lays them out, and says where everything
// is, so that a test reads as build, damage, check:
//
//   BuiltImage image = BuildImage({.cluster_bits = 12,
//                                  .steps = {WriteClusters{.count = 8}, TakeSnapshot{}}});
//   SetRefcount(image, image.ClusterOf(image.At(0).host_offset), 0);   // tests/damage.h
//
// Options and steps that contradict each other (a zero flag in version 2, a refcount wider than
// the width) end the test program. Memory: about three times the image.
#ifndef QCOW2CHECK_TESTS_IMAGE_BUILDER_H_
#define QCOW2CHECK_TESTS_IMAGE_BUILDER_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "common/geometry.h"
#include "common/header.h"
#include "common/table_entry.h"

namespace qcow2check::testing {

// --- Steps: what happens to the disk, in this order. `first` and `count` are guest clusters. ---

// Writes bytes at any alignment: each cluster's own pattern (PatternOf), or one byte repeated.
struct Write {
  uint64_t guest_offset = 0;
  uint64_t length = 0;
  std::optional<uint8_t> fill = {};
};
// Writes whole clusters with their pattern: first, first + stride, ...
struct WriteClusters {
  uint64_t first = 0;
  uint64_t count = 1;
  uint64_t stride = 1;
};
// Writes compressed clusters. The content starts with `random_bytes` bytes that do not compress, so
// the compressed length is about that; patterns alone become some 40 bytes.
struct WriteCompressed {
  uint64_t first = 0;
  uint64_t count = 1;
  uint64_t random_bytes = 0;
};
// Makes clusters read as zeros (version 3). `preallocated`: keeps or allocates a host cluster.
// `subclusters`: with extended L2, only those; bit i is subcluster i.
struct WriteZeros {
  uint64_t first = 0;
  uint64_t count = 1;
  bool preallocated = false;
  uint32_t subclusters = 0xffffffff;
};
// Frees clusters; they read as zeros afterwards.
struct Discard {
  uint64_t first = 0;
  uint64_t count = 1;
};
// An internal snapshot, with that much VM state behind the disk. An empty id: the next number.
struct TakeSnapshot {
  std::string id;
  std::string name;
  uint64_t vm_state_bytes = 0;
};
struct DeleteSnapshot {
  std::string id;
};
// Makes the disk larger; the L1 table moves if it must grow.
struct Resize {
  uint64_t virtual_size = 0;
};
using Step = std::variant<Write, WriteClusters, WriteCompressed, WriteZeros, Discard, TakeSnapshot,
                          DeleteSnapshot, Resize>;

// --- Options ---

struct BackingOptions {
  std::string file = "base.qcow2";
  std::string format = "qcow2";  // "": no format extension
};
struct DataFileOptions {
  std::string name = "data.raw";  // "": no name extension
  bool raw = false;               // the autoclear bit for a data file that is a raw image
};
// A LUKS header as QEMU makes it, but with key material that opens nothing. Guest data is not
// encrypted.
struct LuksOptions {
  uint32_t key_bytes = 64;
  uint32_t stripes = 4000;  // QEMU accepts no other number
  uint32_t active_slots = 1;
};
struct ExtensionOptions {
  uint32_t type = 0;
  std::vector<uint8_t> data = {};
};
struct DirtyRange {
  uint64_t guest_offset = 0;
  uint64_t length = 0;
};
struct BitmapOptions {
  std::string name = "bitmap0";
  int granularity_bits = 16;
  bool in_use = false;
  bool auto_flag = false;
  bool use_all_ones = false;  // full clusters of bits become all-ones table entries
  std::vector<DirtyRange> dirty = {};
};

struct ImageOptions {
  int version = 3;
  int cluster_bits = 16;   // 9..21
  int refcount_order = 4;  // 0..6; version 2: 4
  uint64_t virtual_size = uint64_t{64} << 20;
  bool extended_l2 = false;
  CompressionType compression_type = kDeflate;
  uint32_t header_length = kHeaderBytesKnown;  // version 3: 104, or more in steps of 8
  bool lazy_refcounts = false;
  bool dirty = false;
  bool corrupt = false;
  uint64_t extra_l1_entries = 0;  // more than the virtual size needs
  std::optional<BackingOptions> backing = {};
  std::optional<DataFileOptions> data_file = {};
  std::optional<LuksOptions> luks = {};
  std::vector<Step> steps = {};
  uint32_t snapshot_extra_bytes = 24;  // of each snapshot table entry
  std::vector<BitmapOptions> bitmaps = {};
  // The feature name table; unset: as QEMU, in version 3 if clusters are 8 KiB or more.
  std::optional<bool> feature_names = {};
  std::vector<ExtensionOptions> extensions = {};  // others, behind those that QEMU writes
  bool end_at_last_byte = false;  // the file ends where its last structure does, often mid-cluster
  uint64_t trailing_bytes = 0;    // bytes (0x5a) behind that end
};

// --- The result: the bytes, and where everything is ---
// Offsets are bytes from the start of the file. They tell what was built; damage done to `bytes`
// does not change them.

struct BuiltL2Table {
  uint64_t l1_index = 0;
  uint64_t host_offset = 0;
  uint64_t entry_offset = 0;  // of the L1 entry that points here
};
// A guest cluster that has a place in the file (in the data file, if there is one).
struct BuiltCluster {
  uint64_t guest_offset = 0;
  uint64_t host_offset = 0;
  uint64_t length = 0;        // a cluster; if compressed, the bytes that the entry claims
  uint64_t entry_offset = 0;  // of the L2 entry that points here
  L2EntryKind kind = L2EntryKind::kNormal;
};
struct BuiltL1Table {
  uint64_t offset = 0;
  uint64_t entries = 0;
  std::vector<BuiltL2Table> l2_tables;  // by l1_index
  std::vector<BuiltCluster> clusters;   // by guest offset

  uint64_t EntryOffset(uint64_t l1_index) const { return offset + 8 * l1_index; }
};
// Guest clusters that were written, by number. All others read as zeros or from the backing file.
using GuestClusters = std::map<uint64_t, std::shared_ptr<const std::vector<uint8_t>>>;

struct BuiltSnapshot {
  std::string id;
  std::string name;
  uint64_t entry_offset = 0;  // in the snapshot table
  uint64_t entry_length = 0;
  uint64_t virtual_size = 0;
  BuiltL1Table l1;
  GuestClusters guest;
};
struct BuiltBitmap {
  std::string name;
  uint64_t entry_offset = 0;  // in the bitmap directory
  uint64_t entry_length = 0;
  uint64_t table_offset = 0;
  uint64_t table_entries = 0;
  std::vector<uint64_t> data_offsets;  // of the data clusters that are in the file
};
struct BuiltExtension {
  uint32_t type = 0;
  uint64_t offset = 0;  // of the type word
  uint64_t length = 0;  // of the data, which starts 8 bytes later
};
struct Region {
  uint64_t offset = 0;
  uint64_t length = 0;  // 0: there is none
};

struct BuiltImage {
  std::vector<uint8_t> bytes;
  std::vector<uint8_t> data_file_bytes;  // the external data file

  Geometry geometry;
  BuiltL1Table l1;  // the active one
  Region refcount_table;
  std::vector<uint64_t> refcount_blocks;  // by refcount table index; 0: none
  Region snapshot_table;
  std::vector<BuiltSnapshot> snapshots;
  Region bitmap_directory;
  std::vector<BuiltBitmap> bitmaps;
  Region luks_header;
  Region backing_name;
  std::vector<BuiltExtension> extensions;
  uint64_t extensions_end = 0;  // first byte behind the end marker
  GuestClusters guest;          // what the guest last wrote

  uint64_t cluster_size() const { return geometry.cluster_size(); }
  uint64_t ClusterOf(uint64_t host_offset) const { return host_offset >> geometry.cluster_bits; }
  // The active L2 table for the L1 entry, and the active cluster that holds the guest byte; the
  // test program ends if there is none.
  const BuiltL2Table& L2At(uint64_t l1_index) const;
  const BuiltCluster& At(uint64_t guest_offset) const;
  // Where the active L2 entry for the guest byte is; its L2 table must exist.
  uint64_t L2EntryOffset(uint64_t guest_offset) const;
  const BuiltExtension& Extension(uint32_t type) const;
};

BuiltImage BuildImage(const ImageOptions& options);

// What the guest reads from a disk without a backing file.
std::vector<uint8_t> ReadGuest(const GuestClusters& guest, int cluster_bits, uint64_t guest_offset,
                               uint64_t length);

// The content that step number `generation` (from 1) writes to the cluster at `guest_offset`: two
// big-endian words in turn, 0x3d << 56 | guest_offset and 0x3e << 56 | generation. They say whose
// cluster it is, in a dump too, and as table entries they would have reserved bits set.
std::vector<uint8_t> PatternOf(uint64_t guest_offset, uint64_t generation, uint64_t cluster_size);

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_IMAGE_BUILDER_H_

// What a guest reads from an image in memory, and what an internal snapshot would show it.
//
// A reader of its own, as simple as can be: it follows the header, an L1 table and the L2 tables as
// QEMU does when it reads, and shares nothing with the checker and the repair but the records in
// common/ and the decompression. Refcounts and COPIED flags do not concern a reader. Time grows
// with the L2 tables that the L1 entries lead to; damaged tables may be read as tables, as QEMU
// would.
#ifndef QCOW2CHECK_TESTS_GUEST_VIEW_H_
#define QCOW2CHECK_TESTS_GUEST_VIEW_H_

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "common/guest_ranges.h"

namespace qcow2check::testing {

// The image, and its external data file if it has one. Both must outlive what is made from them.
struct ImageBytes {
  const std::vector<uint8_t>& image;
  const std::vector<uint8_t>& data_file;
};

enum class GuestRead : uint8_t {
  kNothing,  // not mapped: reads as the backing file, or as zeros if there is none
  kZeros,
  kData,
  kError,  // the guest gets a read error
};

// What one unit of the disk (a cluster, or a subcluster with extended L2 entries) reads as.
struct GuestUnit {
  GuestRead read = GuestRead::kNothing;
  uint64_t digest = 0;                       // of the data
  std::optional<uint64_t> host_offset = {};  // of the cluster that the data is in
  uint64_t table_offset = 0;                 // of the L2 table that maps it

  friend bool operator==(const GuestUnit& a, const GuestUnit& b) {
    return a.read == b.read && a.digest == b.digest;
  }
};

// The unit with these bytes. Without a backing file, zeros are nothing.
GuestUnit UnitOf(absl::Span<const uint8_t> bytes, bool has_backing);

struct GuestView {
  bool opens = false;  // whether there is a header that leads anywhere
  uint64_t unit_bytes = 0;
  uint64_t mapped_bytes = 0;  // that the L1 table has entries for
  // By guest offset. What is not here reads as kNothing.
  std::map<uint64_t, GuestUnit> units;

  GuestUnit At(uint64_t guest_offset) const;
};

// The active disk up to `end_bytes`.
GuestView ReadDisk(const ImageBytes& image, uint64_t end_bytes);
// Each snapshot in the order of the snapshot table, with its VM state; those that can be found. Up
// to `end_bytes`, if that is given.
std::vector<GuestView> ReadSnapshots(const ImageBytes& image,
                                     uint64_t end_bytes = uint64_t{1} << 62);

// How much all of them map at most: all that matters of the same snapshots of a damaged image.
uint64_t MappedBytes(const std::vector<GuestView>& snapshots);
// How many units of `sound` that are mapped read the same in `now`.
uint64_t CountEqual(const GuestView& sound, const GuestView& now);

// A disk before and after damage and repair.
struct ViewsOfRepair {
  GuestView undamaged;
  GuestView damaged;
  // With the damaged L2 tables, but the pointers to them as they were undamaged: what a repair
  // finds that has proven these pointers.
  GuestView with_true_l1;
  // The same with only the header undamaged.
  GuestView with_true_header;
  GuestView repaired;
  // Host offsets in the undamaged image.
  std::set<uint64_t> data_clusters;
  std::set<uint64_t> l2_tables;
};
struct ViewChanges {
  uint64_t units = 0;      // of the undamaged disk that are mapped
  uint64_t readable = 0;   // of these, those that read after the repair as they did undamaged
  uint64_t regained = 0;   // of these, those that did not before the repair
  uint64_t lost = 0;       // read as zeros now, and are listed as lost
  std::string violations;  // a line for each kind of unit that the repair had no right to change
};
// A repair may leave a unit as it was or give it back what it was before the damage. Where the
// damage changed something, and where the backing file shows through a damaged table, a unit may
// read as zeros if `lost` says so; what is zeros and could not be read may read as anything, then.
// Everything else is a violation: above all that something reads otherwise that was right before.
//
// Left out: what the undamaged L1 table has no entries for; and what the damage made read through
// something that never was an L2 table, or from something that never was data: such bytes mean
// nothing, and those of metadata change with the repair.
ViewChanges CompareViews(const ViewsOfRepair& views, const std::vector<GuestRange>& lost);

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_GUEST_VIEW_H_

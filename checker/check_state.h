// What the passes of one check share: the image, and what each pass has found out for the next.
//
// Owned by CheckImage; a pass is a function that takes a CheckState&, reads what earlier passes
// made and adds its own part. Nothing here is sized by a claim in the image: tables are kept only
// as far as the file has bytes for them.
#ifndef QCOW2CHECK_CHECKER_CHECK_STATE_H_
#define QCOW2CHECK_CHECKER_CHECK_STATE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "checker/check.h"
#include "checker/finding_list.h"
#include "checker/part_notes.h"
#include "checker/report.h"
#include "common/bitmap_entry.h"
#include "common/cluster_set.h"
#include "common/geometry.h"
#include "common/header.h"
#include "common/header_extension.h"
#include "common/image_file.h"
#include "common/memory_budget.h"
#include "common/refcount_map.h"
#include "common/snapshot_entry.h"

namespace qcow2check {

// Clusters behind the last one that can be referenced all the same: what starts in the file may end
// in the next one.
inline constexpr uint64_t kClustersBehindEnd = 64;

// Why a check ended before its end.
enum class StopReason : uint8_t { kNone, kMemory, kTime, kProcessorTime, kInterrupted };

// A piece of metadata that occupies whole clusters.
struct MetadataRegion {
  Structure structure = Structure::kImage;
  uint64_t offset_bytes = 0;
  uint64_t length_bytes = 0;
  std::optional<uint64_t> snapshot;
};

// Somebody who uses an L1 table: the active disk or a snapshot.
struct L1User {
  std::optional<uint64_t> snapshot;  // nothing: the active disk
  uint64_t entries = 0;
};

// A distinct L1 table: one place in the file, whoever uses it.
struct L1Table {
  uint64_t offset_bytes = 0;
  std::vector<L1User> users;    // by ascending number of entries
  uint64_t active_entries = 0;  // 0 if the active disk does not use it
};

// A used slot of the active L1 table.
struct ActiveL1Entry {
  uint64_t l1_index = 0;
  uint64_t entry = 0;
};

// What the walk saw in an L2 table.
enum class L2Shape : uint8_t {
  kMappings,    // at least one cluster is allocated
  kZeros,       // no cluster is allocated, but entries say that their range reads as zeros
  kNoMappings,  // nothing but unallocated entries
  kLost,        // something else than an L2 table: not walked
};

// A distinct L2 table, whoever refers to it.
struct L2Table {
  uint64_t offset_bytes = 0;
  uint64_t l1_index = 0;             // the first slot that refers to it
  uint64_t weight = 0;               // references from all L1 tables
  uint64_t active_weight = 0;        // of these, from the active L1 table
  std::optional<uint64_t> snapshot;  // a snapshot that refers to it, if no active slot does
  uint64_t shared_not_listed = 0;    // slots that lead here, beyond those in shared_l2
  bool is_refcount_block = false;    // the refcount table leads here as well
  L2Shape shape = L2Shape::kNoMappings;
  uint32_t last_used = 0;  // index of the last entry that is not 0
};

// Two L1 slots that lead to one L2 table.
struct SharedL2Table {
  uint64_t offset_bytes = 0;
  uint64_t first_l1_index = 0;
  uint64_t second_l1_index = 0;
};

// A refcount block that can be read: which part of the refcounts it holds, and where it is.
struct RefcountBlock {
  uint64_t table_index = 0;
  uint64_t offset_bytes = 0;
};

// Consecutive clusters with the same stored refcount that nothing references.
struct OrphanRun {
  uint64_t first_cluster = 0;
  uint64_t clusters = 0;
  uint64_t stored = 0;
};

struct CheckState {
  CheckState(const ImageFile& file_in, const CheckOptions& options_in)
      : file(file_in),
        options(options_in),
        findings(options_in.max_findings),
        memory(std::make_shared<MemoryBudget>(options_in.max_memory_bytes)) {}

  // Set before the first pass.
  const ImageFile& file;
  const CheckOptions& options;
  FindingList findings;
  Coverage coverage;
  Statistics statistics;
  std::shared_ptr<MemoryBudget> memory;  // of all that grows with the image

  // Made by the header pass. Without a geometry the check ends after it.
  Header header;
  std::vector<uint8_t> first_cluster;  // at most kMaxPieceBytes of it
  HeaderExtensionList extensions;
  std::optional<Geometry> geometry;
  bool refcounts_readable = true;  // false if their width or their places are unknown
  uint64_t file_clusters = 0;      // the last one may be incomplete
  std::string backing_name;
  std::string backing_format;
  std::string data_file_name;
  bool kept_by_repair = false;     // a repair left a note that orphans must be kept
  bool orphans_explained = false;  // and it gave up what would show why
  bool was_cut_off = false;        // and the file had been cut off before it

  // Made by the snapshot and bitmap passes.
  std::vector<SnapshotEntry> snapshots;
  // Of the guest: up to here the disk, if it was reverted to a snapshot, may map its VM state.
  uint64_t vm_state_end_bytes = 0;
  std::vector<BitmapEntry> bitmaps;  // those that can be walked

  std::optional<RefcountMap> stale_bitmaps;  // clusters of bitmaps that are out of date

  // Made by the L1 pass.
  std::vector<L1Table> l1_tables;
  std::vector<ActiveL1Entry> active_l1;
  std::vector<L2Table> l2_tables;        // in the order of the walk
  std::vector<SharedL2Table> shared_l2;  // the first of them

  // Expected refcounts of clusters in the file, and the metadata that claims them (L2 tables,
  // refcount blocks and bitmap data are not among the regions; they have lists of their own).
  std::optional<RefcountMap> expected;
  std::vector<MetadataRegion> regions;
  std::vector<uint64_t> bitmap_data;           // host offsets
  std::vector<RefcountBlock> refcount_blocks;  // by table index

  // Clusters that need a second look. `tracked_clusters` bounds them: it reaches somewhat past
  // the end of the file, so that pointers there can be compared with refcounts there.
  uint64_t tracked_clusters = 0;
  std::optional<ClusterSet> copied;      // an active entry with COPIED points here
  std::optional<ClusterSet> not_copied;  // an active entry without COPIED points here
  std::optional<ClusterSet> compressed;  // holds (a part of) a compressed cluster
  std::optional<ClusterSet> collisions;  // got a second reference that may not be sharing
  std::optional<ClusterSet> past_end;    // referenced, but behind the end of the file

  // Made by the comparison.
  std::optional<ClusterSet> mismatched;        // stored refcount is not the expected one
  std::optional<ClusterSet> too_high;          // of these: in use, and counted more often
  std::optional<ClusterSet> copied_questions;  // some COPIED flag does not fit the refcount
  std::optional<ClusterSet> stored_is_one;     // of the copied_questions
  std::vector<OrphanRun> orphans;
  uint64_t orphan_clusters = 0;
  uint64_t stored_past_end_in_use = 0;  // refcounts > 0 behind the end that pointers use
  // A crash leaves counts that are too high: a writer counts a cluster before it points there.
  // Some here are too low, and not because a block was lost, or lazy refcounts not written: then
  // pointers lead elsewhere than they did, for one flipped bit or for a write of a table that never
  // reached the disk, and where they led before is counted still.
  bool counted_too_low = false;

  // Made by the orphan pass.
  HeldBack held_back;

  uint64_t table_entries_left = 0;

  const Geometry& geo() const { return *geometry; }

  // The run of orphans that begins at `cluster`, or nullptr.
  const OrphanRun* OrphansFrom(uint64_t cluster) const;

  // Makes the maps, once the header is known: for the file's clusters, and the sets also for some
  // behind the end, so that pointers there can be compared with refcounts there.
  void MakeMaps();

  // Adds a finding that needs no more than a place.
  void AddFinding(FindingCode code, Structure structure, uint64_t offset, uint64_t length,
                  std::string detail) {
    findings.Add({.code = code,
                  .structure = structure,
                  .host_offset = HostOffset{offset},
                  .length_bytes = length,
                  .detail = std::move(detail)});
  }

  // Takes `entries` table entries out of the budget for tables that may overlap (L1 tables of
  // snapshots and the clusters that they lie in, bitmap tables, refcount blocks). An image can name
  // one stretch of the file as a table many times; without a budget the work would grow with their
  // product. No sane image comes near it. False, and once a finding, when it is used up.
  bool Spend(uint64_t entries, Structure structure);

  // ReadMetadata for a pass that is one part.
  bool Read(HostOffset offset, absl::Span<uint8_t> dst, Structure structure);

  // Notes for a part of a pass, and their return.
  PartNotes NewPart() const { return PartNotes(options.max_findings); }
  void Absorb(PartNotes notes);

  // False if a limit of the options is reached or somebody said to stop; then it stays false.
  // Passes ask before each piece of work, and leave the rest if they must. Thread-safe.
  bool MayGoOn() const;
  StopReason stop_reason() const { return stop_reason_; }

  // Whether tables in holes could make the check read more than the file has: then they are looked
  // for. Behind a network a read costs so much that they always are.
  bool LooksForHoles() const;

  // How many threads a pass should use.
  uint64_t threads() const;

  // Says that [offset, offset + length) is `structure`, referenced `weight` times, counts it and
  // remembers it as a region. A part outside the file is not counted if it reaches a cluster
  // size or more past the end, as qemu-img does it. False if nothing was counted.
  bool Claim(const MetadataRegion& region, uint64_t weight);

  // Only the counting of Claim. The caller has checked that the range is in the file, or ends
  // less than a cluster behind it.
  void Count(uint64_t offset, uint64_t length, uint64_t weight);

  // Whether a region starts at or behind the end of the file, or reaches a cluster or more over.
  bool IsOutside(uint64_t offset, uint64_t length) const;

  // Says that a part was not examined. After the first thousand, only that there were more.
  void Skip(std::string what, std::string why);

 private:
  StopReason NewStopReason() const;

  mutable std::atomic<StopReason> stop_reason_{StopReason::kNone};
};

// Runs the passes (CheckPasses) up to and with the one named `last`; only the header pass if the
// header does not allow more.
void RunPasses(CheckState& state, absl::string_view last);

// The report of a check that is finished; `findings` are those of `state`, or the first of them.
Report ReportOf(const CheckState& state, FindingList findings);

// The passes, in the order in which they run.
void CheckHeader(CheckState& state);
void CheckSnapshotTable(CheckState& state);
void CheckEncryption(CheckState& state);
void CheckBitmaps(CheckState& state);
void CheckL1Tables(CheckState& state);
void CheckRefcountTable(CheckState& state);
void CheckL2Tables(CheckState& state);
void CheckData(CheckState& state);
void CompareRefcounts(CheckState& state);
void ResolveOwners(CheckState& state);
void ClassifyOrphans(CheckState& state);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CHECKER_CHECK_STATE_H_

// The mapping side of an image under construction: L1 and L2 tables, data clusters, compressed
// clusters and internal snapshots, changed step by step with QEMU's copy-on-write. A part of the
// image builder. Also keeps, on its own, what the guest should read.
#ifndef QCOW2CHECK_TESTS_IMAGE_MAPPING_H_
#define QCOW2CHECK_TESTS_IMAGE_MAPPING_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "common/geometry.h"
#include "common/snapshot_entry.h"
#include "tests/host_clusters.h"
#include "tests/image_builder.h"

namespace qcow2check::testing {

class ImageMapping {
 public:
  // An empty disk: the header's clusters and the L1 table. `options` must outlive this.
  explicit ImageMapping(const ImageOptions& options);

  void Apply(const Step& step);
  // Puts `content` (not empty) into clusters of its own; their offset.
  uint64_t AppendRegion(absl::Span<const uint8_t> content);
  const Geometry& geometry() const { return geometry_; }
  // Moves what was built to `image`: all but header, bitmaps and LUKS header.
  void MoveTo(BuiltImage& image);

 private:
  struct Snapshot {
    SnapshotEntry entry;
    uint64_t virtual_size = 0;
    GuestClusters guest;
  };

  uint64_t cluster_size() const { return geometry_.cluster_size(); }
  bool IsRawDataFile() const { return options_.data_file.has_value() && options_.data_file->raw; }
  uint64_t Word(uint64_t offset) const;
  void SetWord(uint64_t offset, uint64_t value);
  void StoreBytes(uint64_t offset, absl::Span<const uint8_t> content);
  void StoreData(uint64_t host_offset, absl::Span<const uint8_t> content);

  void Do(const Write& step);
  void Do(const WriteClusters& step);
  void Do(const WriteCompressed& step);
  void Do(const WriteZeros& step);
  void Do(const Discard& step);
  void Do(const TakeSnapshot& step);
  void Do(const DeleteSnapshot& step);
  void Do(const Resize& step);

  // What the guest reads, independent of the tables.
  std::vector<uint8_t> GuestContent(uint64_t guest_cluster) const;
  void SetGuestContent(uint64_t guest_cluster, std::vector<uint8_t> content);
  void ZeroGuestCluster(uint64_t guest_cluster, uint32_t subclusters);

  void GrowL1(uint64_t entries);
  bool HasL2(uint64_t guest_cluster) const;
  // The offset of the cluster's L2 entry, in a table that only the active L1 table refers to.
  uint64_t WritableEntry(uint64_t guest_cluster);
  // Maps the cluster to `content`, of which the guest wrote the bytes [begin, end).
  void MapData(uint64_t guest_cluster, absl::Span<const uint8_t> content, uint64_t begin,
               uint64_t end);
  void MapCompressed(uint64_t guest_cluster, absl::Span<const uint8_t> content);
  void MapZeros(uint64_t guest_cluster, bool preallocated);
  void MapZeroSubclusters(uint64_t guest_cluster, bool preallocated, uint32_t subclusters);
  void Unmap(uint64_t guest_cluster);
  uint64_t AllocateZeroedData(uint64_t guest_cluster);
  // Changes the refcounts of what the L2 entry refers to.
  void AddEntryReferences(uint64_t entry, int delta);

  void AddL1References(uint64_t l1_offset, uint64_t l1_entries, int delta);
  // Sets COPIED in the active tables exactly where the refcount is 1.
  void RefreshCopied();
  void StoreSnapshotTable();
  BuiltL1Table Survey(uint64_t l1_offset, uint64_t l1_entries) const;
  void SurveyL2(const BuiltL2Table& l2_table, std::vector<BuiltCluster>& clusters) const;

  const ImageOptions& options_;
  Geometry geometry_;
  HostClusters host_;
  std::vector<uint8_t> bytes_;
  std::vector<uint8_t> data_file_bytes_;
  uint64_t l1_offset_ = 0;
  uint64_t l1_entries_ = 0;
  std::vector<Snapshot> snapshots_;
  Region snapshot_table_;
  uint64_t next_snapshot_id_ = 1;
  uint64_t generation_ = 0;
  GuestClusters guest_;
};

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_IMAGE_MAPPING_H_

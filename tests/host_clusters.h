// Which host clusters of an image under construction are in use: hands them out as QEMU does and
// keeps the refcount table and the blocks that describe them. A part of the image builder.
#ifndef QCOW2CHECK_TESTS_HOST_CLUSTERS_H_
#define QCOW2CHECK_TESTS_HOST_CLUSTERS_H_

#include <cstdint>
#include <vector>

namespace qcow2check::testing {

class HostClusters {
 public:
  // A fresh image: header in cluster 0, refcount table in 1, first refcount block in 2.
  HostClusters(int cluster_bits, int refcount_order);

  // The offset of the first hole of `clusters` adjacent clusters; each gets refcount 1.
  uint64_t Allocate(uint64_t clusters = 1);
  // The offset of `length` (at most a cluster) bytes behind those handed out before, as QEMU packs
  // compressed clusters; every cluster they touch gets one reference more.
  uint64_t AllocateBytes(uint64_t length);
  // One reference more (`delta` 1) or less (-1) for every cluster that the bytes touch.
  void AddReferences(uint64_t offset, uint64_t length, int delta);
  uint64_t Refcount(uint64_t offset) const;

  // Writes the refcount table and blocks into `bytes`, which grows if it must.
  void Store(std::vector<uint8_t>& bytes) const;

  uint64_t table_offset() const { return table_offset_; }
  uint64_t table_clusters() const { return table_clusters_; }
  // Host offsets of the refcount blocks by table index; 0 where there is none.
  const std::vector<uint64_t>& block_offsets() const { return block_offsets_; }

 private:
  uint64_t cluster_size() const { return uint64_t{1} << cluster_bits_; }
  uint64_t block_entries() const { return (cluster_size() * 8) >> refcount_order_; }
  uint64_t refcount_max() const;
  uint64_t CountOf(uint64_t cluster) const;
  bool HasBlock(uint64_t index) const;
  uint64_t FindFree(uint64_t clusters) const;
  void Claim(uint64_t first, uint64_t clusters);
  // Makes the blocks that describe the clusters; false if they were all there.
  bool AddMissingBlocks(uint64_t first, uint64_t clusters);
  void AddBlock(uint64_t index);
  void GrowTable();

  int cluster_bits_;
  int refcount_order_;
  std::vector<uint64_t> counts_;  // by cluster
  uint64_t table_offset_;
  uint64_t table_clusters_ = 1;
  std::vector<uint64_t> block_offsets_;
  bool growing_table_ = false;
  uint64_t first_maybe_free_ = 0;  // every cluster before this one is in use
  uint64_t next_byte_ = 0;         // where the next compressed cluster may go; 0: nowhere
};

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_HOST_CLUSTERS_H_

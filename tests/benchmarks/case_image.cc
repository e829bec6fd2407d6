#include "tests/benchmarks/case_image.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "common/byte_order.h"
#include "common/check.h"
#include "common/checked_math.h"
#include "common/geometry.h"
#include "common/header.h"
#include "common/refcount_block.h"
#include "common/snapshot_entry.h"
#include "common/table_entry.h"
#include "tests/image_metadata.h"

namespace qcow2check::testing {
namespace {

constexpr uint64_t kLeakRun = 64;
constexpr uint64_t kRewriteStride = 16;
constexpr size_t kNoTable = ~size_t{0};

struct L2Table {
  uint64_t cluster = 0;
  uint64_t references = 0;  // by L1 entries of all L1 tables
  bool active = false;
  std::vector<uint64_t> entries;  // host clusters; 0: unallocated
};

struct L1Table {
  uint64_t cluster = 0;
  std::vector<size_t> entries;  // positions in Disk::tables, or kNoTable
};

class Disk {
 public:
  Disk(const CaseOptions& options, WritableImageFile& file) : options_(options), file_(file) {
    geometry_.cluster_bits = options.cluster_bits;
    geometry_.refcount_order = options.refcount_order;
    geometry_.virtual_size_bytes = options.l1_entries * geometry_.l2_guest_bytes();
  }

  void Build() {
    active_.cluster = Allocate(ClustersFor(options_.l1_entries * 8));
    AddTables();
    if (options_.scattered) Scatter();
    for (uint64_t i = 0; i < options_.snapshots; ++i) TakeSnapshot(i * options_.rewritten_tables);
    EncodeSnapshots();
    CountTableReferences();
    AllocateRefcountTable();
  }

  void Write() {
    QCOW2CHECK_CHECK(file_.Resize(end_cluster() * geometry_.cluster_size()).ok());
    CountReferences();
    WriteHeader();
    WriteL1(active_);
    if (!options_.shared_l1_table) {
      for (const L1Table& snapshot : snapshots_) WriteL1(snapshot);
    }
    for (const L2Table& table : tables_) WriteL2(table);
    if (!snapshot_table_.empty()) Put(snapshot_table_cluster_, snapshot_table_);
    WriteRefcounts();
  }

 private:
  uint64_t ClustersFor(uint64_t bytes) const {
    return DivideRoundingUp(bytes, geometry_.cluster_size());
  }
  // The second cluster of all those that a refcount block counts is the block: the first may be the
  // header.
  uint64_t BlockCluster(uint64_t index) const {
    return index * geometry_.refcount_block_entries() + 1;
  }
  uint64_t end_cluster() const { return std::max(next_, BlockCluster(block_count() - 1) + 1); }
  uint64_t block_count() const {
    return DivideRoundingUp(next_, geometry_.refcount_block_entries());
  }

  // Adjacent clusters, none of them a refcount block.
  uint64_t Allocate(uint64_t clusters = 1) {
    const uint64_t block =
        BlockCluster(DivideRoundingUp(next_ - 1, geometry_.refcount_block_entries()));
    if (block < next_ + clusters) next_ = block + 1;
    next_ += clusters;
    return next_ - clusters;
  }

  void AddTables() {
    const uint64_t count = options_.one_l2_table    ? 1
                           : options_.l2_tables > 0 ? options_.l2_tables
                                                    : options_.l1_entries;
    QCOW2CHECK_CHECK(count <= options_.l1_entries);
    active_.entries.assign(options_.l1_entries, options_.one_l2_table ? 0 : kNoTable);
    const uint64_t distance = options_.l1_entries / count;
    for (uint64_t i = 0; i < count; ++i) {
      active_.entries[i * distance] = tables_.size();
      AddTable();
    }
  }

  void AddTable() {
    const uint64_t used =
        options_.clusters_per_table > 0 ? options_.clusters_per_table : geometry_.l2_entries();
    L2Table table{.cluster = Allocate(), .entries = std::vector<uint64_t>(geometry_.l2_entries())};
    uint64_t leaks = options_.leaks_per_table;
    for (uint64_t i = 0; i < used; ++i) {
      table.entries[i] = Allocate();
      if (i % kLeakRun != kLeakRun - 1) continue;
      for (uint64_t run = std::min(leaks, kLeakRun); run > 0; --run, --leaks) {
        leaked_.push_back(Allocate());
      }
    }
    tables_.push_back(std::move(table));
  }

  // Deals the data clusters out anew, each guest neighbour 0.618 of the file further (and round).
  void Scatter() {
    std::vector<uint64_t> places;
    for (const L2Table& table : tables_) {
      std::copy_if(table.entries.begin(), table.entries.end(), std::back_inserter(places),
                   [](uint64_t cluster) { return cluster != 0; });
    }
    uint64_t stride = static_cast<uint64_t>(0.618 * static_cast<double>(places.size())) | 1;
    while (std::gcd(stride, places.size()) != 1) ++stride;
    uint64_t at = 0;
    for (L2Table& table : tables_) {
      for (uint64_t& cluster : table.entries) {
        if (cluster == 0) continue;
        cluster = places[at];
        at = (at + stride) % places.size();
      }
    }
  }

  void TakeSnapshot(uint64_t first_rewritten) {
    snapshots_.push_back(active_);
    if (!options_.shared_l1_table) {
      snapshots_.back().cluster = Allocate(ClustersFor(options_.l1_entries * 8));
    }
    for (uint64_t i = 0; i < options_.rewritten_tables; ++i) {
      size_t& entry = active_.entries[(first_rewritten + i) % options_.l1_entries];
      QCOW2CHECK_CHECK(entry != kNoTable);
      L2Table copy = tables_[entry];
      copy.cluster = Allocate();
      for (uint64_t j = 0; j < copy.entries.size(); j += kRewriteStride) {
        if (copy.entries[j] != 0) copy.entries[j] = Allocate();
      }
      entry = tables_.size();
      tables_.push_back(std::move(copy));
    }
  }

  void EncodeSnapshots() {
    for (uint64_t i = 0; i < snapshots_.size(); ++i) {
      const std::string id = std::to_string(i + 1);
      const std::vector<uint8_t> entry =
          EncodeSnapshotEntry({.l1_table_offset = snapshots_[i].cluster << geometry_.cluster_bits,
                               .l1_size = static_cast<uint32_t>(options_.l1_entries),
                               .date_seconds = static_cast<uint32_t>(1'600'000'000 + i),
                               .extra_data_bytes = kSnapshotKnownExtraBytes,
                               .disk_size = geometry_.virtual_size_bytes,
                               .id = id,
                               .name = "snapshot" + id});
      snapshot_table_.insert(snapshot_table_.end(), entry.begin(), entry.end());
    }
    if (!snapshot_table_.empty()) {
      snapshot_table_cluster_ = Allocate(ClustersFor(snapshot_table_.size()));
    }
  }

  void CountTableReferences() {
    const auto count = [this](const L1Table& l1, bool active) {
      for (const size_t position : l1.entries) {
        if (position == kNoTable) continue;
        ++tables_[position].references;
        tables_[position].active |= active;
      }
    };
    count(active_, true);
    for (const L1Table& snapshot : snapshots_) count(snapshot, false);
  }

  // The table counts itself, too, so its length is found by trying.
  void AllocateRefcountTable() {
    const uint64_t begin = next_;
    for (refcount_table_clusters_ = 1;; ++refcount_table_clusters_) {
      next_ = begin;
      refcount_table_cluster_ = Allocate(refcount_table_clusters_);
      if (ClustersFor(block_count() * 8) <= refcount_table_clusters_) return;
    }
  }

  void CountReferences() {
    counts_.resize(end_cluster());
    const auto add = [this](uint64_t first, uint64_t clusters, uint64_t references) {
      for (uint64_t i = 0; i < clusters; ++i) counts_[first + i] += references;
    };
    add(0, 1, 1);
    for (uint64_t i = 0; i < block_count(); ++i) add(BlockCluster(i), 1, 1);
    add(refcount_table_cluster_, refcount_table_clusters_, 1);
    add(snapshot_table_cluster_, ClustersFor(snapshot_table_.size()), 1);
    const uint64_t l1_clusters = ClustersFor(options_.l1_entries * 8);
    add(active_.cluster, l1_clusters, 1);
    for (const L1Table& snapshot : snapshots_) add(snapshot.cluster, l1_clusters, 1);
    for (const L2Table& table : tables_) {
      add(table.cluster, 1, table.references);
      for (const uint64_t cluster : table.entries) {
        if (cluster != 0) counts_[cluster] += table.references;
      }
    }
    for (const uint64_t cluster : leaked_) counts_[cluster] = 1;
  }

  void Put(uint64_t cluster, absl::Span<const uint8_t> bytes) {
    QCOW2CHECK_CHECK(file_.WriteAt({cluster << geometry_.cluster_bits}, bytes).ok());
  }

  void WriteHeader() {
    const Header header = {
        .magic = kMagic,
        .version = 3,
        .cluster_bits = static_cast<uint32_t>(options_.cluster_bits),
        .size = geometry_.virtual_size_bytes,
        .l1_size = static_cast<uint32_t>(options_.l1_entries),
        .l1_table_offset = active_.cluster << geometry_.cluster_bits,
        .refcount_table_offset = refcount_table_cluster_ << geometry_.cluster_bits,
        .refcount_table_clusters = static_cast<uint32_t>(refcount_table_clusters_),
        .nb_snapshots = static_cast<uint32_t>(snapshots_.size()),
        .snapshots_offset = snapshot_table_cluster_ << geometry_.cluster_bits,
        .refcount_order = static_cast<uint32_t>(options_.refcount_order),
        .header_length = kHeaderBytesKnown};
    Put(0, EncodeHeader(header));
  }

  // Taking a snapshot clears COPIED in all that it shares, and nothing sets it there again.
  uint64_t EntryFor(uint64_t cluster, bool active) const {
    if (cluster == 0) return 0;
    const uint64_t copied = active && counts_[cluster] == 1 ? kCopiedBit : 0;
    return (cluster << geometry_.cluster_bits) | copied;
  }

  void WriteL1(const L1Table& l1) {
    std::vector<uint8_t> bytes(l1.entries.size() * 8);
    for (size_t i = 0; i < l1.entries.size(); ++i) {
      if (l1.entries[i] == kNoTable) continue;
      Store64(&bytes[i * 8], EntryFor(tables_[l1.entries[i]].cluster, &l1 == &active_));
    }
    Put(l1.cluster, bytes);
  }

  void WriteL2(const L2Table& table) {
    std::vector<uint8_t> bytes(geometry_.cluster_size());
    for (size_t i = 0; i < table.entries.size(); ++i) {
      Store64(&bytes[i * 8], EntryFor(table.entries[i], table.active));
    }
    Put(table.cluster, bytes);
  }

  void WriteRefcounts() {
    const uint64_t entries = geometry_.refcount_block_entries();
    std::vector<uint8_t> table(block_count() * 8);
    std::vector<uint8_t> block(geometry_.cluster_size());
    for (uint64_t i = 0; i < block_count(); ++i) {
      Store64(&table[i * 8], BlockCluster(i) << geometry_.cluster_bits);
      std::fill(block.begin(), block.end(), uint8_t{0});
      const uint64_t end = std::min<uint64_t>(counts_.size(), (i + 1) * entries);
      for (uint64_t cluster = i * entries; cluster < end; ++cluster) {
        StoreRefcount(block.data(), cluster % entries, geometry_.refcount_order,
                      std::min(counts_[cluster], geometry_.refcount_max()));
      }
      Put(BlockCluster(i), block);
    }
    Put(refcount_table_cluster_, table);
  }

  const CaseOptions& options_;
  WritableImageFile& file_;
  Geometry geometry_;
  uint64_t next_ = 2;  // behind the header and the first refcount block
  L1Table active_;
  std::vector<L1Table> snapshots_;
  std::vector<L2Table> tables_;
  std::vector<uint64_t> leaked_;
  std::vector<uint8_t> snapshot_table_;
  uint64_t snapshot_table_cluster_ = 0;
  uint64_t refcount_table_cluster_ = 0;
  uint64_t refcount_table_clusters_ = 0;
  std::vector<uint64_t> counts_;  // by cluster
};

}  // namespace

void WriteCaseImage(const CaseOptions& options, WritableImageFile& file) {
  Disk disk(options, file);
  disk.Build();
  disk.Write();
}

}  // namespace qcow2check::testing

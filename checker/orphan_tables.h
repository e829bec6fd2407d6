// L2 tables among the clusters that nothing references: what they map is not lost.
#ifndef QCOW2CHECK_CHECKER_ORPHAN_TABLES_H_
#define QCOW2CHECK_CHECKER_ORPHAN_TABLES_H_

#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "checker/check_state.h"
#include "common/cluster_set.h"

namespace qcow2check {

struct OrphanTable {
  uint64_t offset_bytes = 0;
  uint64_t mapped_clusters = 0;
  bool copied = false;   // some of its entries have the COPIED flag
  bool damaged = false;  // up to a quarter of its entries make no sense
};

// Orphans that are L2 tables, most of whose entries lead to orphans or to what is counted more
// often than it is referenced; by offset. Refcount tables and copies of L1 tables, which look
// alike, are none. Reads the first 4 KiB of every orphan that is no hole, and all of what may be a
// table by these; about 64 MiB are enough where orphans are held back in any case.
std::vector<OrphanTable> FindOrphanTables(CheckState& state, const ClusterSet& orphans);

// An orphan that leads to orphan L2 tables is an L1 table: what is left of a snapshot whose
// deletion was cut short. No L1 entry of the disk was lost with it. Itself and its tables, by
// offset.
absl::flat_hash_set<uint64_t> TablesOfDeletedSnapshots(const CheckState& state,
                                                       const std::vector<OrphanTable>& tables);

// Those of the places `among` that the tables map as guest data.
absl::flat_hash_set<uint64_t> MappedAsData(const CheckState& state,
                                           const std::vector<OrphanTable>& tables,
                                           const absl::flat_hash_set<uint64_t>& among);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CHECKER_ORPHAN_TABLES_H_

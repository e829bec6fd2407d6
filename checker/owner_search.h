// Finds every user of the clusters in question: metadata from the lists that the passes made,
// guest clusters by reading the L2 tables once more.
//
// Needs the walk (regions, refcount blocks, bitmap data, L2 tables). Memory: a record for each
// cluster asked about, with a bounded number of owners; all users are counted. Not thread-safe.
#ifndef QCOW2CHECK_CHECKER_OWNER_SEARCH_H_
#define QCOW2CHECK_CHECKER_OWNER_SEARCH_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "checker/check_state.h"
#include "common/cluster_set.h"
#include "common/finding.h"

namespace qcow2check {

// Who uses one cluster.
struct ClusterUsers {
  std::vector<Owner> owners;         // the first few
  uint64_t metadata = 0;             // structures that lie here
  uint64_t guests = 0;               // entries that point here; shared tables count once
  std::optional<GuestOffset> guest;  // of the first entry
  bool several_guests = false;
  bool by_misaligned_entry = false;
  bool compressed = false;
  bool uncompressed = false;
  bool refcount_block = false;
};

struct OwnerLimits {
  size_t per_cluster = 8;
  size_t in_all = 100'000;
};

// An entry of an L2 table, and where it is.
struct L2EntryPlace {
  const L2Table& table;
  uint64_t place;  // of the entry in the file
  uint64_t l2_index;
  uint64_t entry;
};

class OwnerSearch {
 public:
  // Called for each entry of an active table that points to one of CheckState::copied_questions;
  // there are few.
  using CopiedQuestion = std::function<void(const L2EntryPlace&)>;

  OwnerSearch(CheckState& state, OwnerLimits limits)
      : state_(state), limits_(limits), wanted_(state.tracked_clusters, state.memory.get()) {}
  ~OwnerSearch() { state_.memory->GiveBack(taken_bytes_); }
  OwnerSearch(const OwnerSearch&) = delete;
  OwnerSearch& operator=(const OwnerSearch&) = delete;

  // Puts a cluster (below CheckState::tracked_clusters) into question.
  void Ask(uint64_t cluster) { wanted_.Insert(cluster); }
  bool asked() const { return !wanted_.empty(); }

  void FindMetadataOwners();
  void FindGuestOwners(const CopiedQuestion& copied_question);

  // nullptr if nobody uses the cluster, or nobody asked about it.
  const ClusterUsers* Find(uint64_t cluster) const;

 private:
  void AddMetadata(const std::vector<uint64_t>& sorted, const MetadataRegion& region);
  void VisitEntry(const L2EntryPlace& at, const CopiedQuestion& copied_question);
  void AddGuest(uint64_t cluster, const L2EntryPlace& at);
  void KeepOwner(ClusterUsers& users, const Owner& owner);
  ClusterUsers& UsersOf(uint64_t cluster);
  void Take(uint64_t bytes);

  CheckState& state_;
  const OwnerLimits limits_;
  ClusterSet wanted_;
  absl::flat_hash_map<uint64_t, ClusterUsers> users_;
  size_t owners_kept_ = 0;
  uint64_t taken_bytes_ = 0;  // of the budget
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_CHECKER_OWNER_SEARCH_H_

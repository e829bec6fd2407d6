// Entries that are beyond proof read as zeros from now on, and the report says which guest ranges
// that are.
//
// Zeros, never the backing file's old data: an image with a backing file gets zero flags, or, in
// version 2, which has none, clusters of zeros. What needs such new clusters is written last.
#ifndef QCOW2CHECK_REPAIR_ZERO_ENTRIES_H_
#define QCOW2CHECK_REPAIR_ZERO_ENTRIES_H_

#include <cstdint>
#include <vector>

#include "checker/check_state.h"
#include "repair/plan_builder.h"

namespace qcow2check {

class ZeroEntries {
 public:
  // Both must outlive this object.
  ZeroEntries(const CheckState& state, PlanBuilder& plan);

  // An L1 or L2 entry at `place_bytes` for the guest range at `guest`.
  void AddL1(const Finding& finding, uint64_t place_bytes, GuestOffset guest);
  void AddL2(const Finding& finding, uint64_t place_bytes, GuestOffset guest);
  // An extended L2 entry without a cluster, whose second word is `bitmap_word`: its allocated
  // subclusters become zeros.
  void AddSubclusters(const Finding& finding, uint64_t place_bytes, GuestOffset guest,
                      uint64_t bitmap_word);

  // Plans what needs new clusters.
  void Commit();

  // The words of an L2 entry that reads as zeros, where no cluster is needed for it.
  std::vector<uint8_t> ZeroEntryBytes() const;
  // Whether reading as zeros needs a cluster of zeros.
  bool NeedsCluster() const { return has_backing_ && state_.header.version < 3; }

 private:
  struct Pending {
    PlanReason reason;
    uint64_t place_bytes = 0;
    bool is_l1 = false;
    uint64_t refcount = 0;
    bool copied = false;
  };

  std::vector<uint8_t> ZeroTable(uint64_t first_cluster, bool copied) const;
  void Lose(const Finding& finding, GuestOffset guest, uint64_t length_bytes);
  uint64_t WeightOfTableAt(uint64_t place_bytes, bool& active) const;

  const CheckState& state_;
  PlanBuilder& plan_;
  const bool has_backing_;
  std::vector<Pending> pending_;
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_REPAIR_ZERO_ENTRIES_H_

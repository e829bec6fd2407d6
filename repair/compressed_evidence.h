// What compressed data says about the L2 entry that leads to it: it decompresses to exactly one
// cluster, or it does not.
#ifndef QCOW2CHECK_REPAIR_COMPRESSED_EVIDENCE_H_
#define QCOW2CHECK_REPAIR_COMPRESSED_EVIDENCE_H_

#include <cstdint>
#include <optional>

#include "absl/container/flat_hash_set.h"
#include "checker/check_state.h"
#include "common/table_entry.h"
#include "repair/stored_refcounts.h"

namespace qcow2check {

class CompressedEvidence {
 public:
  // Both must outlive this object. `was_cut_off`: what leads behind the end may have been there.
  CompressedEvidence(const CheckState& state, const StoredRefcounts& stored, bool was_cut_off)
      : state_(state), stored_(stored), was_cut_off_(was_cut_off) {}

  // Whether a compressed entry leads to data that decompresses.
  bool Decompresses(uint64_t entry) const;
  // The entry with the length of the data that is there, if only its length leads behind the end of
  // the file.
  std::optional<uint64_t> AsLongAsItsData(uint64_t entry) const;
  // The only entry one bit away that leads to data which decompresses, whose clusters miss a
  // reference, and that no other entry leads to; nothing if the entry leads to such data itself,
  // and once so much was decompressed that no accident explains it. The first call may read the L2
  // tables.
  std::optional<uint64_t> OneBitAway(uint64_t entry) const;

 private:
  // How many bytes from the start of the range decompress to a cluster; 0 if none do.
  uint64_t DataBytes(const CompressedRange& range) const;
  // Whether the refcounts of all clusters that the data touches tell of one reference more.
  bool MissesReferences(const CompressedRange& range) const;
  bool MissesReference(uint64_t cluster) const;
  // Whether another entry leads to the data there, or that cannot be told.
  bool IsTaken(uint64_t offset_bytes) const;
  // False if not all tables could be read, or remembered.
  bool FindTaken() const;

  const CheckState& state_;
  const StoredRefcounts& stored_;
  const bool was_cut_off_;
  // Where compressed data begins that entries lead to, in clusters that miss a reference.
  mutable std::optional<absl::flat_hash_set<uint64_t>> taken_;
  mutable bool knows_all_taken_ = true;
  mutable uint64_t tries_left_bytes_ = uint64_t{256} << 20;  // of what OneBitAway decompresses
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_REPAIR_COMPRESSED_EVIDENCE_H_

// What compressed data says about the L2 entry that leads to it: it decompresses to exactly one
// cluster, or it does not.
#ifndef QCOW2CHECK_REPAIR_COMPRESSED_EVIDENCE_H_
#define QCOW2CHECK_REPAIR_COMPRESSED_EVIDENCE_H_

#include <cstdint>
#include <optional>

#include "checker/check_state.h"
#include "common/table_entry.h"
#include "repair/stored_refcounts.h"

namespace qcow2check {

class CompressedEvidence {
 public:
  // Both must outlive this object.
  CompressedEvidence(const CheckState& state, const StoredRefcounts& stored)
      : state_(state), stored_(stored) {}

  // Whether a compressed entry leads to data that decompresses.
  bool Decompresses(uint64_t entry) const;
  // The entry with the length of the data that is there, if only its length leads behind the end of
  // the file.
  std::optional<uint64_t> AsLongAsItsData(uint64_t entry) const;
  // The only entry one bit away that leads to data which decompresses, and whose clusters miss a
  // reference.
  std::optional<uint64_t> OneBitAway(uint64_t entry) const;

 private:
  // How many bytes from the start of the range decompress to a cluster; 0 if none do.
  uint64_t DataBytes(const CompressedRange& range) const;
  // Whether the refcounts of all clusters that the data touches tell of one reference more.
  bool MissesReferences(const CompressedRange& range) const;

  const CheckState& state_;
  const StoredRefcounts& stored_;
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_REPAIR_COMPRESSED_EVIDENCE_H_

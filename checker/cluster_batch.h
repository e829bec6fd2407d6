// Reads many clusters of metadata at a time: in the order of their places, neighbours in the file
// with one read, holes, if it looks for them, not at all.
#ifndef QCOW2CHECK_CHECKER_CLUSTER_BATCH_H_
#define QCOW2CHECK_CHECKER_CLUSTER_BATCH_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "checker/part_notes.h"
#include "common/image_file.h"

namespace qcow2check {

class ClusterBatch {
 public:
  // One of the pieces that were read.
  struct Piece {
    const uint8_t* bytes = nullptr;  // nullptr: a hole, all zeros
    bool complete = true;            // false: it has sectors that cannot be read and are zeros here
  };

  // `looks_for_holes`: whether to ask for them, which costs a little for each piece.
  explicit ClusterBatch(bool looks_for_holes) : looks_for_holes_(looks_for_holes) {}

  // Reads `length_bytes` at each of `offsets_bytes` (starts in the file; any order, repetitions
  // allowed). What the batch read before is gone.
  void Read(const ImageFile& file, absl::Span<const uint64_t> offsets_bytes, uint64_t length_bytes,
            Structure structure, PartNotes& notes);

  // In the order of the offsets.
  const std::vector<Piece>& pieces() const { return pieces_; }

 private:
  bool looks_for_holes_;
  std::vector<uint8_t> buffer_;
  std::vector<uint32_t> by_place_;
  std::vector<Extent> extents_;
  std::vector<ReadRequest> requests_;
  std::vector<Piece> pieces_;
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_CHECKER_CLUSTER_BATCH_H_

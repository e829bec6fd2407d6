// Which of several values a damaged field had, if exactly one fits the rest of the image.
//
// Each guess is written to a copy in memory, and the copy is checked like any image. The right one
// gives unreferenced clusters their place again, so that references and refcounts agree; one that
// takes a reference from a cluster that had its refcount, or refers to what has none, is wrong.
// Time: a check of the image for each guess.
#ifndef QCOW2CHECK_REPAIR_GUESS_H_
#define QCOW2CHECK_REPAIR_GUESS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "checker/check_state.h"
#include "common/cluster_set.h"
#include "repair/plan_builder.h"

namespace qcow2check {

// What a guess must achieve, besides making nothing worse.
enum class Proof {
  kExplainsRefcounts,  // clusters get back references that their refcounts tell of
  kFewerCorruptions,   // enough where the evidence is in the bytes around the field
  // The same, and every COPIED flag of the active disk fits the refcounts.
  kActiveFlagsAgree,
  kAllAgrees,  // no refcount and no cluster is left unexplained: for smaller numbers of things
  // Nothing is wrong with the refcount table and its blocks. For what makes the table reach over
  // other things, whose refcounts seem to be right then because of that.
  kRefcountTableSound,
};

struct Guess {
  uint64_t place_bytes = 0;  // of the field in the file
  std::vector<uint8_t> bytes;
  int rank = 0;          // the stronger the evidence, the lower
  std::string evidence;  // for the plan
  Proof needed = Proof::kExplainsRefcounts;
};

// A big-endian field of 2, 4 or 8 bytes.
Guess FieldGuess(uint64_t place_bytes, int bytes, uint64_t value, int rank, std::string evidence);

// The right guess; nothing if none is right, or more than one of those with the same rank, the
// lowest that has any.
std::optional<Guess> OnlyRightGuess(const CheckState& state, PlanBuilder& plan,
                                    std::vector<Guess> guesses);

// Plans the right guess, if there is one, as a repair of the finding.
bool WriteOnlyRightGuess(const CheckState& state, PlanBuilder& plan, const Finding& finding,
                         std::vector<Guess> guesses);

// What the value was before one of its `bits` lower bits was flipped.
std::vector<uint64_t> OneBitAway(uint64_t value, int bits);

// Clusters that nothing references and that have a refcount.
class Orphans {
 public:
  explicit Orphans(const CheckState& state);

  // Whether [offset, offset + length), which starts at a cluster, consists of orphans.
  bool Contain(uint64_t offset_bytes, uint64_t length_bytes) const;
  // Their offsets, ascending; a bounded number of them.
  std::vector<uint64_t> Offsets() const;

 private:
  const CheckState& state_;
  ClusterSet orphans_;
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_REPAIR_GUESS_H_

// A repair in memory that was not cut off, and what is left where it might have been: killed at any
// write, in the middle of one, or by a power cut that loses any of what was not flushed. Whatever
// is left must be no worse than what was there before, repair to the same end, and be undone.
#ifndef QCOW2CHECK_TESTS_CUT_OFF_REPAIR_H_
#define QCOW2CHECK_TESTS_CUT_OFF_REPAIR_H_

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "repair/repair.h"
#include "tests/dice.h"
#include "tests/guest_view.h"
#include "tests/recording_file.h"

namespace qcow2check::testing {

struct CrashCase {
  std::string name;
  Bytes damaged;
  Bytes data_file = {};
  RepairOptions options = {};
  uint64_t guest_end_bytes = uint64_t{1} << 62;  // how much of the disk is looked at
};

// The files of the disk of a repair.
inline constexpr size_t kCrashImage = 0, kCrashUndo = 1;

class WholeRepair {
 public:
  explicit WholeRepair(const CrashCase& crash_case);

  const RecordedDisk& disk() const { return disk_; }
  const RepairResult& result() const { return result_; }
  const Bytes& damaged() const { return damaged_; }
  const Bytes& repaired() const { return image_.bytes(); }

  // What is wrong with what a crash has left; empty if nothing is.
  std::string Wrong(const DiskState& state) const;
  // The parts of that: each unit of the guest's disk reads as before or as after the whole repair,
  // and no cluster lacks references that had enough;
  std::string WorseThanBefore(const DiskState& state) const;
  // with its undo file there, a repair ends in the very same bytes;
  std::string OtherEndWithUndoFile(const DiskState& state) const;
  // and undo gives back the damaged image.
  std::string WrongUndo(const DiskState& state) const;

  // What is wrong with a repair that starts there without the undo file: its end must be as good.
  std::string WorseEndWithout(const DiskState& state) const;
  // Of an undo that is itself cut off after each of its writes.
  std::string WrongInterruptedUndo(const DiskState& state, Dice& dice) const;

 private:
  uint64_t ClusterSize() const;
  GuestView ViewOf(const Bytes& image) const;
  std::optional<uint64_t> FindReadOtherwise(const GuestView& view, bool before_will_do) const;
  bool IsGivenUp(uint64_t guest_offset) const;
  std::string WrongUndoOf(WritableImageFile& image, const Bytes& undo) const;

  RepairOptions options_;
  Bytes damaged_;
  Bytes data_file_;
  uint64_t guest_end_bytes_;
  RecordedDisk disk_;
  RecordingFile& image_;
  RecordingFile& undo_;
  RepairResult result_;
  GuestView damaged_view_;
  GuestView repaired_view_;
  std::map<uint64_t, uint64_t> unprotected_;
  // Guest offsets that read as metadata, which the repair has to change.
  std::set<uint64_t> on_metadata_;
};

// What may be left after the first `count` writes and flushes: if killed there or inside the last
// one, and if the power failed; of the many ways of that some.
std::vector<DiskState> StatesAt(const RecordedDisk& disk, size_t count, Dice& dice);

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_CUT_OFF_REPAIR_H_

// Where the bitmap directory, a bitmap's table and its data may be, and how large they may be, when
// what says so was damaged: guesses for repair/guess.h, each of which fits what is there.
#ifndef QCOW2CHECK_REPAIR_BITMAP_GUESSES_H_
#define QCOW2CHECK_REPAIR_BITMAP_GUESSES_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "checker/check_state.h"
#include "common/bitmap_entry.h"
#include "common/image_file.h"
#include "repair/bitmap_directory.h"
#include "repair/guess.h"

namespace qcow2check {

class BitmapGuesses {
 public:
  // Both must outlive this object. `state` is a check of `image`.
  BitmapGuesses(const CheckState& state, const ImageFile& image)
      : state_(state),
        image_(image),
        geometry_(state.geo()),
        orphans_(state),
        place_(FindBitmapsExtension(state)) {}

  // The fields of the extension, which may not be known as one any more.
  std::vector<Guess> ForExtension() const;
  // The directory is elsewhere, has another size, or an entry has another length.
  std::vector<Guess> ForDirectory() const;
  // Where the table is, and how many entries it has.
  std::vector<Guess> ForTable(const BitmapEntry& entry) const;
  // The entry of a bitmap table at `place`.
  std::vector<Guess> ForTableEntry(uint64_t place, uint64_t entry) const;

  // Whether these are orphans that hold nothing but entries that lead to orphans.
  bool IsBitmapTable(uint64_t offset, uint64_t entries, bool must_be_used) const;

 private:
  void AddExtensionWords(uint64_t place, std::vector<Guess>& guesses) const;
  void AddIfDirectory(uint64_t place, std::vector<uint8_t> words, size_t word, int rank,
                      std::vector<Guess>& guesses) const;
  void AddEntryLengths(std::vector<Guess>& guesses) const;

  const CheckState& state_;
  const ImageFile& image_;
  const Geometry& geometry_;
  const Orphans orphans_;
  const std::optional<BitmapsPlace> place_;
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_REPAIR_BITMAP_GUESSES_H_

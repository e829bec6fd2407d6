// The images that the repair is tried on: of every kind that there is, sound, and then damaged at
// random. Each comes from a seed, so that one can be made again.
#ifndef QCOW2CHECK_TESTS_REPAIR_CORPUS_H_
#define QCOW2CHECK_TESTS_REPAIR_CORPUS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "tests/dice.h"
#include "tests/guest_view.h"
#include "tests/image_builder.h"
#include "tests/image_places.h"

namespace qcow2check::testing {

// What backing files of the corpus read as everywhere.
inline constexpr uint8_t kCorpusBackingByte = 0xba;
// Their name, beside the image: a raw file.
inline constexpr char kCorpusBackingName[] = "backing.raw";
inline constexpr uint64_t kCorpusBackingBytes = 4 << 20;
inline constexpr char kCorpusDataFileName[] = "data.raw";

struct CorpusImage {
  std::string name;  // "seed 17: version 3, 4096-byte clusters, ..."
  std::vector<uint8_t> bytes;
  std::vector<uint8_t> data_file;  // the external data file
  bool has_backing = false;
  bool encrypted = false;
  ImagePlaces places;

  ImageBytes View() const { return {bytes, data_file}; }
};

// Options for an image of any kind, small enough to make thousands.
ImageOptions RandomImageOptions(Dice& dice);
CorpusImage MakeCorpusImage(uint64_t seed);
// An image of the builder. `options` are those that it was built with.
CorpusImage CorpusImageOf(std::string name, const ImageOptions& options, const BuiltImage& built);
// Images that QEMU's own tools made, one of each kind; needs qemu-img and qemu-io.
std::vector<CorpusImage> MakeQemuImages();

struct DamagedImage {
  std::string damage;  // what was done, in words
  std::vector<uint8_t> bytes;
};
// One to three accidents. The file keeps its external data file.
DamagedImage DamageImage(const CorpusImage& image, Dice& dice);

// Where qemu-img convert reads another disk than ReadDisk does; empty if nowhere. What the guest
// cannot read counts as zeros.
std::string DifferenceFromQemu(const CorpusImage& image);

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_REPAIR_CORPUS_H_

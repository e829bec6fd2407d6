// make_images DIRECTORY FIRST_SEED SEEDS DAMAGED_PER_SEED: writes the images of the campaign, those
// of the repair corpus, to DIRECTORY: of each seed the sound one (SEED-0.qcow2) and damaged ones
// (SEED-1.qcow2 ...). Most have one to three random accidents; every fourth is changed as the
// fuzzers change images, with refcounts that often are right again.
//
// Prints a line of JSON for each image: what it is, what was done to it, and the files beside it
// that it needs. The same arguments always give the same bytes.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "fuzz/image_mutator.h"
#include "nlohmann/json.hpp"
#include "tests/dice.h"
#include "tests/program.h"
#include "tests/repair_corpus.h"

namespace qcow2check::testing {
namespace {

DamagedImage Mutate(const CorpusImage& image, Dice& dice) {
  constexpr uint64_t kMostAdded = 64 << 10;
  return {"as the fuzzers do",
          MutateImage(image.bytes, image.bytes.size() + kMostAdded, dice.Below(~uint64_t{0}))};
}

class Maker {
 public:
  explicit Maker(std::string folder) : folder_(std::move(folder)) {
    Write(kCorpusBackingName, std::vector<uint8_t>(kCorpusBackingBytes, kCorpusBackingByte));
  }

  void Make(uint64_t seed, uint64_t damaged) const {
    const CorpusImage image = MakeCorpusImage(seed);
    const std::string data_file =
        image.places.geometry.data_file ? absl::StrCat(seed, "-", kCorpusDataFileName) : "";
    if (!data_file.empty()) Write(data_file, image.data_file);
    Dice dice(seed);
    for (uint64_t i = 0; i <= damaged; ++i) {
      DamagedImage one = i == 0       ? DamagedImage{"", image.bytes}
                         : i % 4 == 0 ? Mutate(image, dice)
                                      : DamageImage(image, dice);
      // The mutator makes nothing of an image that it does not understand.
      if (one.bytes.empty()) one = DamageImage(image, dice);
      const std::string file = absl::StrCat(seed, "-", i, ".qcow2");
      Write(file, one.bytes);
      const nlohmann::json line = {{"file", file},
                                   {"image", image.name},
                                   {"damage", one.damage},
                                   {"data-file", data_file},
                                   {"encrypted", image.encrypted}};
      std::puts(line.dump().c_str());
    }
  }

 private:
  void Write(const std::string& name, const std::vector<uint8_t>& bytes) const {
    WriteFile(absl::StrCat(folder_, "/", name), bytes);
  }

  std::string folder_;
};

}  // namespace
}  // namespace qcow2check::testing

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fputs("usage: make_images DIRECTORY FIRST_SEED SEEDS DAMAGED_PER_SEED\n", stderr);
    return 2;
  }
  const qcow2check::testing::Maker maker(argv[1]);
  const uint64_t first = std::strtoull(argv[2], nullptr, 10);
  const uint64_t seeds = std::strtoull(argv[3], nullptr, 10);
  for (uint64_t seed = first; seed < first + seeds; ++seed) {
    maker.Make(seed, std::strtoull(argv[4], nullptr, 10));
  }
  return 0;
}

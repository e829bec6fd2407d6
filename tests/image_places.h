// Where everything is in an image: the words and tables that can be damaged, and the clusters that
// hold what the guest or a snapshot would miss. For images of the builder and of QEMU alike.
#ifndef QCOW2CHECK_TESTS_IMAGE_PLACES_H_
#define QCOW2CHECK_TESTS_IMAGE_PLACES_H_

#include <cstdint>
#include <set>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/geometry.h"
#include "tests/sparse_file.h"

namespace qcow2check::testing {

enum class PlaceKind {
  kHeaderField,
  kL1,
  kL2,
  kRefcountTable,
  kRefcountBlock,
  kSnapshotTable,
  kBitmapDirectory,
  kBitmapTable,
};
absl::string_view NameOf(PlaceKind kind);  // "L2 table"

// A field or a table entry that leads somewhere or says how much there is.
struct PlacedWord {
  PlaceKind kind{};
  uint64_t offset = 0;
  int bytes = 8;  // 4 or 8
};
struct PlacedTable {
  PlaceKind kind{};
  uint64_t offset = 0;
  uint64_t length = 0;
};

struct ImagePlaces {
  Geometry geometry;
  std::vector<PlacedWord> words;          // of table entries, those that are not 0
  std::vector<PlacedTable> tables;        // each once, whoever shares it
  std::vector<uint64_t> refcount_blocks;  // by refcount table index; 0: none
  std::set<uint64_t> l2_tables;
  // Host clusters, by offset, with data of the disk, of a snapshot or of its VM state.
  std::set<uint64_t> data_clusters;
  std::set<uint64_t> compressed_clusters;  // those of them that hold compressed data

  std::vector<PlacedWord> WordsOf(PlaceKind kind) const;
};

// Tables are believed, as far as there are bytes for them: of a damaged image, what its tables say.
// Nothing if the header leads nowhere. At most some 100,000 words; the rest is left out.
ImagePlaces PlacesOf(const SparseFile& image);
ImagePlaces PlacesOf(const std::vector<uint8_t>& image);

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_IMAGE_PLACES_H_

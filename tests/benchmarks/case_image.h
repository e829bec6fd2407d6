// Builds the images that are benchmarked: valid ones whose shape is given by a few numbers, and two
// that are made to cost a checker much. Laid out as QEMU lays images out: an L2 table lies in front
// of the data that it maps, a refcount block at the start of the clusters that it counts. Data
// clusters are holes.
//
// Time and memory: some 24 bytes a cluster.
#ifndef QCOW2CHECK_TESTS_BENCHMARKS_CASE_IMAGE_H_
#define QCOW2CHECK_TESTS_BENCHMARKS_CASE_IMAGE_H_

#include <cstdint>

#include "common/image_file.h"

namespace qcow2check::testing {

struct CaseOptions {
  int cluster_bits = 16;
  int refcount_order = 4;
  // The virtual size is what these map.
  uint64_t l1_entries = 1;
  // L2 tables, spread evenly over the L1 table; 0: one for each entry.
  uint64_t l2_tables = 0;
  // Allocated guest clusters in each L2 table, from its first entry on; 0: all.
  uint64_t clusters_per_table = 0;
  // Neighbours in the guest lie far apart in the file.
  bool scattered = false;
  // Every L1 entry leads to the first L2 table. Refcounts that the width cannot hold are stored as
  // its greatest number.
  bool one_l2_table = false;
  // Clusters for each L2 table that have refcount 1 and nothing that refers to them, in runs of up
  // to 64 between those of the data.
  uint64_t leaks_per_table = 0;
  uint64_t snapshots = 0;
  // After each snapshot this many L2 tables are written to: each gets a copy in which every 16th
  // cluster is a new one. The tables take turns.
  uint64_t rewritten_tables = 0;
  // The snapshots have no L1 tables of their own but share the active one.
  bool shared_l1_table = false;
};

// Writes the image into `file`, which must be all zeros, and gives it its length. Ends the program
// if the file cannot be written or the options contradict each other.
void WriteCaseImage(const CaseOptions& options, WritableImageFile& file);

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_BENCHMARKS_CASE_IMAGE_H_

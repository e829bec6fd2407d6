// make_case OUT [--l1-entries=N ...]: writes an image for the benchmarks into the new, sparse file
// OUT. The options are those of CaseOptions (case_image.h).
#include <fstream>
#include <iostream>
#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "common/writable_posix_file.h"
#include "tests/benchmarks/case_image.h"

int main(int argc, char** argv) {
  qcow2check::testing::CaseOptions options;
  std::string path;
  CLI::App app("Writes an image for the benchmarks.");
  app.add_option("OUT", path)->required();
  app.add_option("--cluster-bits", options.cluster_bits)->check(CLI::Range(9, 21));
  app.add_option("--refcount-order", options.refcount_order)->check(CLI::Range(0, 6));
  app.add_option("--l1-entries", options.l1_entries)->check(CLI::Range(1, 4 << 20));
  app.add_option("--l2-tables", options.l2_tables);
  app.add_option("--clusters-per-table", options.clusters_per_table);
  app.add_flag("--scattered", options.scattered);
  app.add_flag("--one-l2-table", options.one_l2_table);
  app.add_option("--leaks-per-table", options.leaks_per_table);
  app.add_option("--snapshots", options.snapshots);
  app.add_option("--rewritten-tables", options.rewritten_tables);
  app.add_flag("--shared-l1-table", options.shared_l1_table);
  CLI11_PARSE(app, argc, argv);

  // A file to open must exist and must not be empty.
  std::ofstream(path, std::ios::binary | std::ios::trunc).put('\0');
  absl::StatusOr<std::unique_ptr<qcow2check::WritablePosixFile>> file =
      qcow2check::WritablePosixFile::Open(path);
  if (!file.ok()) {
    std::cerr << file.status().message() << "\n";
    return 1;
  }
  qcow2check::testing::WriteCaseImage(options, **file);
  return 0;
}

// The check: reads an image's metadata and says everything that is wrong with it.
#ifndef QCOW2CHECK_CHECKER_CHECK_H_
#define QCOW2CHECK_CHECKER_CHECK_H_

#include <cstdint>
#include <string>

#include "absl/time/time.h"
#include "checker/progress.h"
#include "checker/report.h"
#include "common/image_file.h"

namespace qcow2check {

struct CheckOptions {
  // Findings listed for each code; the totals are exact all the same.
  uint64_t max_findings = 1000;
  // Threads that read and count; 0: as many as there are processors, and some more for an image
  // behind a network. The report is the same for any number.
  uint64_t threads = 0;
  // Bytes of tables that are read and walked at a time: enough for a read to be worth its latency,
  // little enough to stay in the processor's cache. Says nothing about the result but the number of
  // reads.
  uint64_t part_bytes = 512u << 10;
  // Limits; a check that reaches one ends with verdict limit-exceeded and what it has. Memory is
  // that of the structures which grow with the image (0: no limit), and may be exceeded by a few
  // MiB. Processor time is that of the whole process since it began.
  uint64_t max_memory_bytes = 0;
  absl::Time deadline = absl::InfiniteFuture();
  absl::Duration processor_time_end = absl::InfiniteDuration();
  // Kept up to date, and obeyed, if there is one; must outlive the check.
  Progress* progress = nullptr;
  // Also decompress every compressed cluster and, if the image has an external data file, compare
  // the offsets in its L2 tables with the guest offsets.
  bool verify_data = false;
  // With verify_data, the external data file's size, if the caller has opened it.
  bool data_file_opened = false;
  uint64_t data_file_size_bytes = 0;
  // Why the caller could not open the data file; empty if it did or did not try.
  std::string data_file_error;
};

// Checks the image in `file`. Never fails: whatever is wrong is in the report, and what could not
// be read is a finding, too. Reads each distinct table once, and L2 tables once more if something
// about who owns a cluster must be found out. Memory: about one bit to four bits for each cluster
// in use, independent of what the header claims. Thread-compatible.
Report CheckImage(const ImageFile& file, const CheckOptions& options);

// What the header alone says: reads the first cluster only. Empty as Report::image.
ImageSummary SummarizeImage(const ImageFile& file);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CHECKER_CHECK_H_

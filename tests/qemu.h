// The reference tool, where it is installed: what qemu-img check says about an image.
#ifndef QCOW2CHECK_TESTS_QEMU_H_
#define QCOW2CHECK_TESTS_QEMU_H_

#include <cstdint>
#include <string>
#include <vector>

#include "gtest/gtest.h"

// Skips the test where there is no QEMU.
#define QCOW2CHECK_SKIP_WITHOUT_QEMU()                \
  if (!::qcow2check::testing::HaveQemu()) {           \
    GTEST_SKIP() << "qemu-img and qemu-io not found"; \
  }                                                   \
  static_assert(true, "")

namespace qcow2check::testing {

// Whether qemu-img and qemu-io can be run.
bool HaveQemu();

struct QemuCheckResult {
  int exit_code = -1;
  bool has_json = false;  // otherwise the numbers are 0 and mean nothing
  uint64_t check_errors = 0;
  uint64_t corruptions = 0;
  uint64_t leaks = 0;
  uint64_t image_end_offset = 0;
  uint64_t total_clusters = 0;
  uint64_t allocated_clusters = 0;
  uint64_t fragmented_clusters = 0;
  uint64_t compressed_clusters = 0;
  std::string err;
};

// qemu-img check --output=json [`options`...] `path`.
QemuCheckResult QemuCheck(const std::string& path, const std::vector<std::string>& options = {});

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_QEMU_H_

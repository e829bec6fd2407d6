// What the built program says about an image, and whether qemu-img says the same.
#ifndef QCOW2CHECK_TESTS_CHECKED_PROGRAM_H_
#define QCOW2CHECK_TESTS_CHECKED_PROGRAM_H_

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/guest_ranges.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/qemu.h"

namespace qcow2check::testing {

// A run of the program with --json.
struct CheckedImage {
  int exit_code = -1;
  nlohmann::json json;  // an empty object, and a test failure, if it printed none
  std::string err;

  uint64_t Number(absl::string_view key) const;
  uint64_t corruptions() const { return Number("corruptions"); }
  uint64_t leaks() const { return Number("leaks"); }
  std::string verdict() const;
  std::string data_state() const;
  uint64_t lost_guest_bytes() const;
  std::vector<GuestRange> lost_guest_ranges() const;
  uint64_t held_back_clusters() const;
  uint64_t reads() const;
  uint64_t bytes_read() const;

  // All codes that were found, information included.
  std::set<std::string> codes() const;
  bool Has(absl::string_view code) const { return codes().contains(std::string(code)); }
  uint64_t CountOf(absl::string_view code) const;
  // The findings of one code, as they are in the JSON.
  std::vector<nlohmann::json> Findings(absl::string_view code) const;
  // The only finding of `code`; an empty object, and a test failure, if there is not exactly one.
  nlohmann::json TheOnly(absl::string_view code) const;
};

CheckedImage CheckWithProgram(const std::string& path,
                              const std::vector<std::string>& options = {});

// Both programs on the same image.
struct CheckedTwice {
  CheckedImage ours;
  QemuCheckResult qemu;
};
// `qemu_options` as for QemuCheck; ours needs none.
CheckedTwice CheckWithBoth(const std::string& path,
                           const std::vector<std::string>& qemu_options = {});

// All ImageCheck numbers and the exit codes are equal. The failure lists both and our codes.
::testing::AssertionResult AllNumbersAgree(const CheckedTwice& both);
// Corruptions, leaks and the exit codes are equal, and they are the expected ones.
::testing::AssertionResult BothCount(const CheckedTwice& both, uint64_t corruptions,
                                     uint64_t leaks);
// qemu-img's corruptions and leaks, whatever ours are.
::testing::AssertionResult QemuCounts(const CheckedTwice& both, uint64_t corruptions,
                                      uint64_t leaks);
// qemu-img stops without a result (exit code 1, no numbers).
::testing::AssertionResult QemuGivesUp(const CheckedTwice& both);
::testing::AssertionResult OursCounts(const CheckedTwice& both, uint64_t corruptions,
                                      uint64_t leaks);

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_CHECKED_PROGRAM_H_

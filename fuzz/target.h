// What the fuzz targets share: a broken property is reported as libFuzzer reports a crash.
#ifndef QCOW2CHECK_FUZZ_TARGET_H_
#define QCOW2CHECK_FUZZ_TARGET_H_

#include <cstdio>
#include <cstdlib>
#include <string>

namespace qcow2check::testing {

// Ends the program if a property is broken.
inline void Require(const std::string& broken) {
  if (broken.empty()) return;
  std::fprintf(stderr, "broken: %s\n", broken.c_str());
  std::abort();
}

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_FUZZ_TARGET_H_

// QCOW2CHECK_CHECK(condition): ends the program when one of our own invariants is broken.
//
// Only for mistakes in this program. Nothing that an image, a file or a user can cause may reach
// a check: a bad image is a finding, a tool that cannot proceed returns absl::Status.
#ifndef QCOW2CHECK_COMMON_CHECK_H_
#define QCOW2CHECK_COMMON_CHECK_H_

#include <cstdio>
#include <cstdlib>

#define QCOW2CHECK_CHECK(condition)                                                              \
  do {                                                                                           \
    if (!(condition)) [[unlikely]] {                                                             \
      std::fprintf(stderr, "%s:%d: internal error, this is a bug in qcow2check: %s\n", __FILE__, \
                   __LINE__, #condition);                                                        \
      std::abort();                                                                              \
    }                                                                                            \
  } while (false)

#endif  // QCOW2CHECK_COMMON_CHECK_H_

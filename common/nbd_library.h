// The functions of libnbd that we call, found when the first NBD URI is opened.
//
// The program is not linked with libnbd: that would load some twenty libraries (TLS, XML) at every
// start, and most starts check a file. Costs one dlopen, and nothing without an NBD URI.
#ifndef QCOW2CHECK_COMMON_NBD_LIBRARY_H_
#define QCOW2CHECK_COMMON_NBD_LIBRARY_H_

#include <libnbd.h>

#include "absl/status/statusor.h"

namespace qcow2check {

// Without their "nbd_".
#define QCOW2CHECK_NBD_FUNCTIONS(F) \
  F(add_meta_context)               \
  F(aio_block_status)               \
  F(aio_connect_uri)                \
  F(aio_disconnect)                 \
  F(aio_flush)                      \
  F(aio_get_direction)              \
  F(aio_get_fd)                     \
  F(aio_is_closed)                  \
  F(aio_is_dead)                    \
  F(aio_is_ready)                   \
  F(aio_notify_read)                \
  F(aio_notify_write)               \
  F(aio_pread)                      \
  F(aio_pwrite)                     \
  F(aio_zero)                       \
  F(can_fast_zero)                  \
  F(can_flush)                      \
  F(can_fua)                        \
  F(can_meta_context)               \
  F(can_zero)                       \
  F(close)                          \
  F(create)                         \
  F(get_block_size)                 \
  F(get_errno)                      \
  F(get_error)                      \
  F(get_size)                       \
  F(get_strict_mode)                \
  F(is_read_only)                   \
  F(set_strict_mode)                \
  F(set_uri_allow_local_file)

struct NbdLibrary {
// NOLINTNEXTLINE(bugprone-macro-parentheses): what is declared has none
#define QCOW2CHECK_NBD_MEMBER(name) decltype(&nbd_##name) name = nullptr;
  QCOW2CHECK_NBD_FUNCTIONS(QCOW2CHECK_NBD_MEMBER)
#undef QCOW2CHECK_NBD_MEMBER
};

// Loads libnbd for the rest of the process. kUnavailable, with what to install, if it is not there
// or is too old. Thread-safe.
absl::StatusOr<NbdLibrary> LoadNbdLibrary();

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_NBD_LIBRARY_H_

// NBD servers for tests (nbdkit, qemu-nbd), and what nbdkit's log filter saw.
#ifndef QCOW2CHECK_TESTS_NBD_SERVER_H_
#define QCOW2CHECK_TESTS_NBD_SERVER_H_

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "gtest/gtest.h"
#include "tests/program.h"

// Skips the test where nbdkit is missing.
#define QCOW2CHECK_SKIP_WITHOUT_NBDKIT()                                      \
  if (!::qcow2check::testing::HaveProgram("nbdkit")) {                        \
    GTEST_SKIP() << "nbdkit not found"; /* nothing serves NBD as it can do */ \
  }                                                                           \
  static_assert(true, "")

namespace qcow2check::testing {

enum class Transport { kUnixSocket, kLoopback };

// A server that runs from here to the end of the scope, or of the test program. Its socket is made
// before it is started and handed to it, so it can be connected to at once.
class NbdServer {
 public:
  // The program and its arguments, without any about the socket.
  explicit NbdServer(const std::vector<std::string>& argv,
                     Transport transport = Transport::kUnixSocket);
  ~NbdServer();
  NbdServer(const NbdServer&) = delete;
  NbdServer& operator=(const NbdServer&) = delete;

  std::string uri(absl::string_view export_name = "") const;
  // nbds..., with more parameters: "tls-psk-file=...".
  std::string tls_uri(absl::string_view parameters) const;

  // Ends it as a crash of its host would.
  void Kill();
  // Ends it properly: its logs are complete then.
  void Stop();

 private:
  std::string UriOf(absl::string_view scheme, absl::string_view export_name,
                    absl::string_view parameters) const;
  void End(int signal);

  TempDir dir_;
  Transport transport_;
  int port_ = 0;
  pid_t pid_ = -1;
};

// One request in a log of nbdkit's log filter.
struct LoggedRequest {
  std::string action;  // "Read", "Write", "Flush", "Zero", "Extents"
  uint64_t offset = 0;
  uint64_t count = 0;
  bool durable = false;
};

struct NbdLog {
  std::vector<LoggedRequest> requests;  // as they came in
  uint64_t connections = 0;
  uint64_t most_at_once = 0;          // reads
  uint64_t most_extents_at_once = 0;  // questions about holes

  std::vector<LoggedRequest> Of(absl::string_view action) const;
  uint64_t BytesOf(absl::string_view action) const;
};
NbdLog ReadNbdLog(const std::string& path);

// Returns when there is such a request in the log; the test fails if there is none for long.
void WaitForRequest(const std::string& log_path, absl::string_view action);

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_NBD_SERVER_H_

// Servers are handed their listening socket as systemd does it (LISTEN_FDS).
#include "tests/nbd_server.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/check.h"

namespace qcow2check::testing {
namespace {

constexpr int kFirstHandedFd = 3;

int ListenOnUnixSocket(const std::string& path) {
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = {}};
  QCOW2CHECK_CHECK(path.size() < sizeof(address.sun_path));
  std::memcpy(address.sun_path, path.c_str(), path.size());
  QCOW2CHECK_CHECK(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
  QCOW2CHECK_CHECK(listen(fd, 8) == 0);
  return fd;
}

int ListenOnLoopback(int& port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  QCOW2CHECK_CHECK(bind(fd, reinterpret_cast<sockaddr*>(&address), length) == 0);
  QCOW2CHECK_CHECK(listen(fd, 8) == 0);
  QCOW2CHECK_CHECK(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) == 0);
  port = ntohs(address.sin_port);
  return fd;
}

// In the child: becomes the server.
[[noreturn]] void Exec(std::vector<char*> words, int listen_fd, pid_t parent) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(127);
  if (listen_fd == kFirstHandedFd) {
    fcntl(listen_fd, F_SETFD, 0);
  } else {
    dup2(listen_fd, kFirstHandedFd);
  }
  setenv("LISTEN_PID", std::to_string(getpid()).c_str(), 1);
  setenv("LISTEN_FDS", "1", 1);
  const int null = open("/dev/null", O_RDWR);
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) dup2(null, fd);
  execvp(words[0], words.data());
  _exit(127);
}

}  // namespace

NbdServer::NbdServer(const std::vector<std::string>& argv, Transport transport)
    : transport_(transport) {
  const int fd = transport == Transport::kLoopback ? ListenOnLoopback(port_)
                                                   : ListenOnUnixSocket(dir_.Path("socket"));
  std::vector<char*> words;
  words.reserve(argv.size() + 1);
  for (const std::string& word : argv) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  const pid_t parent = getpid();
  pid_ = fork();
  QCOW2CHECK_CHECK(pid_ >= 0);
  if (pid_ == 0) Exec(std::move(words), fd, parent);
  close(fd);
}

NbdServer::~NbdServer() { Kill(); }

void NbdServer::End(int signal) {
  if (pid_ < 0) return;
  kill(pid_, signal);
  while (waitpid(pid_, nullptr, 0) < 0) QCOW2CHECK_CHECK(errno == EINTR);
  pid_ = -1;
}

void NbdServer::Kill() { End(SIGKILL); }

void NbdServer::Stop() { End(SIGTERM); }

std::string NbdServer::UriOf(absl::string_view scheme, absl::string_view export_name,
                             absl::string_view parameters) const {
  const absl::string_view user = scheme == "nbds" ? "alice@" : "";
  if (transport_ == Transport::kLoopback) {
    return absl::StrCat(scheme, "://", user, "127.0.0.1:", port_, "/", export_name,
                        parameters.empty() ? "" : "?", parameters);
  }
  return absl::StrCat(scheme, "+unix://", user, "/", export_name, "?socket=", dir_.Path("socket"),
                      parameters.empty() ? "" : "&", parameters);
}

std::string NbdServer::uri(absl::string_view export_name) const {
  return UriOf("nbd", export_name, "");
}

std::string NbdServer::tls_uri(absl::string_view parameters) const {
  return UriOf("nbds", "", parameters);
}

std::vector<LoggedRequest> NbdLog::Of(absl::string_view action) const {
  std::vector<LoggedRequest> found;
  for (const LoggedRequest& request : requests) {
    if (request.action == action) found.push_back(request);
  }
  return found;
}

uint64_t NbdLog::BytesOf(absl::string_view action) const {
  uint64_t bytes = 0;
  for (const LoggedRequest& request : Of(action)) bytes += request.count;
  return bytes;
}

NbdLog ReadNbdLog(const std::string& path) {
  NbdLog log;
  uint64_t reads_now = 0, extents_now = 0;
  std::ifstream lines(path);
  for (std::string line; std::getline(lines, line);) {
    // "DATE TIME connection=1 Read id=1 offset=0x0 count=0x200 ..."; at its end
    // "DATE TIME connection=1 ...Read id=1 return=0".
    const std::vector<std::string> words = absl::StrSplit(line, ' ');
    if (words.size() < 4 || !absl::StartsWith(words[2], "connection=")) continue;
    if (words[3] == "Connect") ++log.connections;
    if (words[3] == "...Read") --reads_now;
    if (words[3] == "...Extents") --extents_now;
    if (words.back() != "..." || !absl::StartsWith(words[4], "id=")) continue;
    LoggedRequest request{.action = words[3]};
    for (const std::string& word : words) {
      const std::pair<absl::string_view, absl::string_view> part =
          absl::StrSplit(word, absl::MaxSplits('=', 1));
      if (part.first == "offset") (void)absl::SimpleHexAtoi(part.second, &request.offset);
      if (part.first == "count") (void)absl::SimpleHexAtoi(part.second, &request.count);
      if (part.first == "fua") request.durable = part.second == "1";
    }
    if (request.action == "Read") log.most_at_once = std::max(log.most_at_once, ++reads_now);
    if (request.action == "Extents") {
      log.most_extents_at_once = std::max(log.most_extents_at_once, ++extents_now);
    }
    log.requests.push_back(std::move(request));
  }
  return log;
}

void WaitForRequest(const std::string& log_path, absl::string_view action) {
  constexpr int kMostLooks = 3000;
  for (int look = 0; look < kMostLooks; ++look) {
    if (!ReadNbdLog(log_path).Of(action).empty()) return;
    absl::SleepFor(absl::Milliseconds(10));
  }
  ADD_FAILURE() << "no " << action << " in " << log_path;
}

}  // namespace qcow2check::testing

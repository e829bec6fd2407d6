// Runs programs with posix_spawn and two pipes; the rest is files.
#include "tests/program.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/check.h"

namespace qcow2check::testing {
namespace {

constexpr int kNotStarted = 127;

// Appends what is there to `text`; false at the end of the stream.
bool Drain(int fd, std::string& text) {
  std::array<char, 65536> buffer;
  const ssize_t count = read(fd, buffer.data(), buffer.size());
  if (count < 0) return errno == EINTR || errno == EAGAIN;
  text.append(buffer.data(), static_cast<size_t>(count));
  return count != 0;
}

// Reads both streams until both end, so that neither pipe can fill up and block the program.
void DrainBoth(int out_fd, std::string& out, int err_fd, std::string& err) {
  std::array<pollfd, 2> fds = {{{out_fd, POLLIN, 0}, {err_fd, POLLIN, 0}}};
  while (fds[0].fd >= 0 || fds[1].fd >= 0) {
    if (poll(fds.data(), fds.size(), -1) < 0) {
      QCOW2CHECK_CHECK(errno == EINTR);
      continue;
    }
    if (fds[0].revents != 0 && !Drain(out_fd, out)) fds[0].fd = -1;
    if (fds[1].revents != 0 && !Drain(err_fd, err)) fds[1].fd = -1;
  }
}

int ExitCodeOf(pid_t pid) {
  int status = 0;
  while (waitpid(pid, &status, 0) < 0) QCOW2CHECK_CHECK(errno == EINTR);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace

CommandResult RunCommand(const std::vector<std::string>& argv) {
  QCOW2CHECK_CHECK(!argv.empty());
  std::vector<char*> words;
  words.reserve(argv.size() + 1);
  for (const std::string& word : argv) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);

  std::array<int, 2> out_pipe;
  std::array<int, 2> err_pipe;
  QCOW2CHECK_CHECK(pipe2(out_pipe.data(), O_CLOEXEC) == 0);
  QCOW2CHECK_CHECK(pipe2(err_pipe.data(), O_CLOEXEC) == 0);
  posix_spawn_file_actions_t actions;
  QCOW2CHECK_CHECK(posix_spawn_file_actions_init(&actions) == 0);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, out_pipe[1], STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, err_pipe[1], STDERR_FILENO);
  pid_t pid = -1;
  const int error = posix_spawnp(&pid, words[0], &actions, nullptr, words.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(out_pipe[1]);
  close(err_pipe[1]);

  CommandResult result;
  if (error == 0) {
    DrainBoth(out_pipe[0], result.out, err_pipe[0], result.err);
    result.exit_code = ExitCodeOf(pid);
  } else {
    result.exit_code = kNotStarted;
    result.err = absl::StrCat("cannot start ", argv[0], ": ", std::strerror(error));
  }
  close(out_pipe[0]);
  close(err_pipe[0]);
  return result;
}

bool HaveProgram(absl::string_view program) {
  const char* path = std::getenv("PATH");
  if (path == nullptr) return false;
  for (const absl::string_view folder : absl::StrSplit(path, ':', absl::SkipEmpty())) {
    if (access(absl::StrCat(folder, "/", program).c_str(), X_OK) == 0) return true;
  }
  return false;
}

TempDir::TempDir() {
  path_ = (std::filesystem::temp_directory_path() / "qcow2check-XXXXXX").string();
  QCOW2CHECK_CHECK(mkdtemp(path_.data()) != nullptr);
}

TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string TempDir::Path(absl::string_view name) const { return absl::StrCat(path_, "/", name); }

std::string TempDir::Write(absl::string_view name, absl::Span<const uint8_t> bytes) const {
  std::string path = Path(name);
  WriteFile(path, bytes);
  return path;
}

void WriteFile(const std::string& path, absl::Span<const uint8_t> bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
  file.close();
  QCOW2CHECK_CHECK(!file.fail());
}

std::vector<uint8_t> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  QCOW2CHECK_CHECK(file.is_open());
  std::vector<uint8_t> bytes(static_cast<size_t>(file.tellg()));
  file.seekg(0);
  file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  QCOW2CHECK_CHECK(!file.fail());
  return bytes;
}

}  // namespace qcow2check::testing

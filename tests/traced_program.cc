#include "tests/traced_program.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace qcow2check::testing {
namespace {

[[noreturn]] void Exec(const std::vector<std::string>& argv, const std::string& out_path,
                       const std::string& err_path) {
  std::vector<char*> words;
  for (const std::string& word : argv) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  constexpr int kFlags = O_WRONLY | O_CREAT | O_APPEND;
  dup2(open("/dev/null", O_RDONLY), STDIN_FILENO);
  dup2(open(out_path.c_str(), kFlags, 0600), STDOUT_FILENO);
  dup2(open(err_path.c_str(), kFlags, 0600), STDERR_FILENO);
  ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
  execv(words[0], words.data());
  _exit(127);
}

void* Pointer(uint64_t value) { return reinterpret_cast<void*>(value); }

// Makes the call that is about to begin another one. Its third argument is a number of bytes.
void Change([[maybe_unused]] pid_t child, [[maybe_unused]] const CallFate& fate) {
#ifdef __x86_64__
  user_regs_struct registers;
  QCOW2CHECK_CHECK(ptrace(PTRACE_GETREGS, child, nullptr, &registers) == 0);
  if (fate.fate == Fate::kFails) registers.orig_rax = ~uint64_t{0};  // no call at all
  if (fate.fate == Fate::kIsShorter) registers.rdx = std::max<uint64_t>(registers.rdx / 2, 1);
  QCOW2CHECK_CHECK(ptrace(PTRACE_SETREGS, child, nullptr, &registers) == 0);
#endif
}

void SetError([[maybe_unused]] pid_t child, [[maybe_unused]] int error) {
#ifdef __x86_64__
  user_regs_struct registers;
  QCOW2CHECK_CHECK(ptrace(PTRACE_GETREGS, child, nullptr, &registers) == 0);
  registers.rax = static_cast<uint64_t>(-error);
  QCOW2CHECK_CHECK(ptrace(PTRACE_SETREGS, child, nullptr, &registers) == 0);
#endif
}

// The most memory that the program had until now. The rusage of a child is no use: it begins with
// what its parent had.
uint64_t PeakMemory(pid_t child) {
  std::ifstream file(absl::StrCat("/proc/", child, "/status"));
  std::string word;
  uint64_t kibibytes = 0;
  while (file >> word) {
    if (word == "VmHWM:" && file >> kibibytes) break;
  }
  return kibibytes * 1024;
}

// Until the program ends: false if it was killed here.
bool Trace(pid_t child, absl::FunctionRef<CallFate(const TracedCall&)> look, int& status,
           uint64_t& peak_memory_bytes) {
  CallFate fate;  // of the call that it is in
  int signal = 0;
  for (;;) {
    ptrace(PTRACE_SYSCALL, child, nullptr, Pointer(static_cast<uint64_t>(signal)));
    QCOW2CHECK_CHECK(waitpid(child, &status, 0) == child);
    if (!WIFSTOPPED(status)) return true;
    const bool at_call = WSTOPSIG(status) == (SIGTRAP | 0x80);
    signal = at_call ? 0 : WSTOPSIG(status);
    if (!at_call) continue;
    __ptrace_syscall_info info = {};
    ptrace(PTRACE_GET_SYSCALL_INFO, child, Pointer(sizeof(info)), &info);
    if (info.op == PTRACE_SYSCALL_INFO_ENTRY) {
      TracedCall call = {.process = child, .number = info.entry.nr};
      std::copy_n(info.entry.args, 6, call.arguments);
      if (call.number == SYS_exit_group) peak_memory_bytes = PeakMemory(child);
      fate = look(call);
      if (fate.fate == Fate::kKilledBefore) break;
      if (fate.fate == Fate::kFails || fate.fate == Fate::kIsShorter) Change(child, fate);
    } else {
      if (fate.fate == Fate::kKilledBehind) break;
      if (fate.fate == Fate::kFails) SetError(child, fate.error);
      fate = {};
    }
  }
  kill(child, SIGKILL);
  waitpid(child, &status, 0);
  return false;
}

std::string TextOf(const std::string& path) {
  const std::vector<uint8_t> bytes = ReadFile(path);
  return std::string(bytes.begin(), bytes.end());
}

}  // namespace

bool ChangesFiles(const TracedCall& call) {
  switch (call.number) {
    case SYS_pwrite64:
    case SYS_pwritev:
    case SYS_ftruncate:
    case SYS_fallocate:
    case SYS_fsync:
    case SYS_fdatasync:
    case SYS_unlink:
    case SYS_unlinkat:
    case SYS_rename:
    case SYS_link:
    case SYS_linkat:
      return true;
    case SYS_openat:
      return (call.arguments[2] & O_CREAT) != 0;
    default:
      return false;
  }
}

bool Reads(const TracedCall& call, const std::string& path) {
  if (call.number != SYS_pread64 && call.number != SYS_preadv2) return false;
  std::error_code error;
  return std::filesystem::read_symlink(
             absl::StrCat("/proc/", call.process, "/fd/", call.arguments[0]), error) == path;
}

bool CanFailCalls() {
#ifdef __x86_64__
  return true;
#else
  return false;
#endif
}

TracedEnd RunTraced(const std::vector<std::string>& argv,
                    absl::FunctionRef<CallFate(const TracedCall&)> look) {
  const TempDir dir;
  const std::string out_path = dir.Write("out", {}), err_path = dir.Write("err", {});
  const pid_t child = fork();
  QCOW2CHECK_CHECK(child >= 0);
  if (child == 0) Exec(argv, out_path, err_path);
  int status = 0;
  waitpid(child, &status, 0);
  if (!WIFSTOPPED(status)) return {.no_ptrace = true};
  ptrace(PTRACE_SETOPTIONS, child, nullptr, Pointer(PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL));
  uint64_t peak_memory_bytes = 0;
  if (!Trace(child, look, status, peak_memory_bytes)) return {.killed = true};
  return {.result = {.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status),
                     .out = TextOf(out_path),
                     .err = TextOf(err_path)},
          .peak_memory_bytes = peak_memory_bytes};
}

}  // namespace qcow2check::testing

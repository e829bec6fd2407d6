// measure OUT PROGRAM [ARGUMENT...]: runs the program, waits for it and writes to OUT, as JSON, its
// exit code (-1: a signal ended it), how long the whole process took, its peak memory and what it
// read: the bytes and the calls of all read system calls on files, the loader's included.
//
// A small process of its own because the system counts the memory of whoever starts a program as
// the program's.
#include <fcntl.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

struct Reads {
  unsigned long long bytes = 0;
  unsigned long long calls = 0;
};

// Of a process that has ended and was not waited for yet.
Reads ReadsOf(pid_t pid) {
  Reads reads;
  char path[64];
  std::snprintf(path, sizeof(path), "/proc/%d/io", static_cast<int>(pid));
  FILE* const io = std::fopen(path, "r");
  if (io == nullptr) return reads;
  char line[128];
  while (std::fgets(line, sizeof(line), io) != nullptr) {
    std::sscanf(line, "rchar: %llu", &reads.bytes);
    std::sscanf(line, "syscr: %llu", &reads.calls);
  }
  std::fclose(io);
  return reads;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fputs("usage: measure OUT PROGRAM [ARGUMENT...]\n", stderr);
    return 2;
  }
  const auto begin = std::chrono::steady_clock::now();
  pid_t pid = 0;
  if (const int error = posix_spawnp(&pid, argv[2], nullptr, nullptr, argv + 2, environ)) {
    std::fprintf(stderr, "cannot start %s: %s\n", argv[2], std::strerror(error));
    return 1;
  }
  siginfo_t ended;
  if (waitid(P_PID, static_cast<id_t>(pid), &ended, WEXITED | WNOWAIT) != 0) return 1;
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
  const Reads reads = ReadsOf(pid);
  int status = 0;
  struct rusage usage;
  if (wait4(pid, &status, 0, &usage) != pid) return 1;

  FILE* const out = std::fopen(argv[1], "w");
  if (out == nullptr) return 1;
  std::fprintf(out,
               "{\"exit_code\": %d, \"seconds\": %.6f, \"peak_memory_bytes\": %lld, "
               "\"bytes_read\": %llu, \"reads\": %llu}\n",
               WIFEXITED(status) ? WEXITSTATUS(status) : -1, elapsed.count(),
               static_cast<long long>(usage.ru_maxrss) * 1024, reads.bytes, reads.calls);
  return std::fclose(out) == 0 ? 0 : 1;
}

#include "common/image_lock.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include <array>
#include <cstring>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/types/span.h"

namespace qcow2check {
namespace {

constexpr off_t kUses = 100;
constexpr off_t kDoesNotShare = 200;
constexpr off_t kConsistentRead = 0, kWrite = 1, kResize = 3;

// A check reads, and shares the image with readers only.
constexpr std::array<off_t, 3> kCheckLocks = {kUses + kConsistentRead, kDoesNotShare + kWrite,
                                              kDoesNotShare + kResize};
constexpr std::array<off_t, 3> kCheckConflicts = {kDoesNotShare + kConsistentRead, kUses + kWrite,
                                                  kUses + kResize};
// A repair also writes and resizes.
constexpr std::array<off_t, 5> kRepairLocks = {kUses + kConsistentRead, kUses + kWrite,
                                               kUses + kResize, kDoesNotShare + kWrite,
                                               kDoesNotShare + kResize};
constexpr std::array<off_t, 5> kRepairConflicts = {kDoesNotShare + kConsistentRead,
                                                   kDoesNotShare + kWrite, kDoesNotShare + kResize,
                                                   kUses + kWrite, kUses + kResize};

struct flock ByteLock(short type, off_t byte) {
  struct flock lock = {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = byte;
  lock.l_len = 1;
  return lock;
}

std::vector<std::string> NamesIn(const std::string& folder) {
  std::vector<std::string> names;
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(opendir(folder.c_str()), closedir);
  if (dir == nullptr) return names;
  while (const dirent* entry = readdir(dir.get())) names.emplace_back(entry->d_name);
  return names;
}

// Whether the fdinfo file tells of a lock on byte `byte` of the file with this inode.
bool HoldsLock(const std::string& fdinfo, ino_t inode, off_t byte) {
  std::ifstream lines(fdinfo);
  const std::string file = absl::StrCat(":", inode);
  for (std::string line; std::getline(lines, line);) {
    if (!absl::StartsWith(line, "lock:")) continue;
    const std::vector<std::string> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
    if (words.size() < 3 || !absl::EndsWith(words[words.size() - 3], file)) continue;
    int64_t first = 0, last = 0;
    if (!absl::SimpleAtoi(words[words.size() - 2], &first)) continue;
    if (!absl::SimpleAtoi(words[words.size() - 1], &last)) last = first;
    if (first <= byte && byte <= last) return true;
  }
  return false;
}

// "process 123 (qemu-system-x86)", or "" if the kernel does not tell (locks like these have no
// owner by themselves; the holder is found by its open files, as far as we may see them).
std::string HolderOf(int fd, off_t byte) {
  struct stat info;
  if (fstat(fd, &info) != 0) return "";
  for (const std::string& pid : NamesIn("/proc")) {
    int number = 0;
    if (!absl::SimpleAtoi(pid, &number)) continue;
    const std::string folder = absl::StrCat("/proc/", pid, "/fdinfo");
    for (const std::string& name : NamesIn(folder)) {
      if (!HoldsLock(absl::StrCat(folder, "/", name), info.st_ino, byte)) continue;
      std::string program;
      std::ifstream(absl::StrCat("/proc/", pid, "/comm")) >> program;
      return absl::StrCat("process ", pid, program.empty() ? "" : " (", program,
                          program.empty() ? "" : ")");
    }
  }
  return "";
}

// False where the file system has no locks (or a byte is locked exclusively, which QEMU never
// does).
bool TakeLocks(int fd, absl::Span<const off_t> bytes) {
  for (const off_t byte : bytes) {
    struct flock lock = ByteLock(F_RDLCK, byte);
    if (fcntl(fd, F_OFD_SETLK, &lock) != 0 && errno != EAGAIN && errno != EACCES) return false;
  }
  return true;
}

// The first of the bytes that somebody else has locked.
std::optional<off_t> FindConflict(int fd, absl::Span<const off_t> bytes) {
  for (const off_t byte : bytes) {
    struct flock lock = ByteLock(F_WRLCK, byte);
    if (fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK) return byte;
  }
  return std::nullopt;
}

// "'path' is in use by process 123 (qemu-io)"
std::string InUse(int fd, const std::string& path, off_t byte, absl::string_view somebody) {
  const std::string holder = HolderOf(fd, byte);
  return absl::StrCat("'", path, "' is in use by ", holder.empty() ? somebody : holder);
}

}  // namespace

absl::Status LockForCheck(int fd, const std::string& path, bool force_share) {
  if (fd < 0) return absl::OkStatus();
  // With -U only "I read" is said, and only "nobody may read" is a conflict.
  const size_t used = force_share ? 1 : kCheckLocks.size();
  if (!TakeLocks(fd, absl::MakeConstSpan(kCheckLocks).first(used))) return absl::OkStatus();
  const auto conflict = FindConflict(fd, absl::MakeConstSpan(kCheckConflicts).first(used));
  if (!conflict) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(InUse(fd, path, *conflict, "a program that writes it"),
                   force_share ? "" : "; stop it, or check anyway with -U (--force-share)"));
}

absl::Status LockForRepair(int fd, const std::string& path) {
  if (fd < 0) return absl::OkStatus();
  if (!TakeLocks(fd, kRepairLocks)) return absl::OkStatus();
  const auto conflict = FindConflict(fd, kRepairConflicts);
  if (!conflict) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(InUse(fd, path, *conflict, "another program"),
                   "; it can be changed only when nothing else uses it"));
}

}  // namespace qcow2check

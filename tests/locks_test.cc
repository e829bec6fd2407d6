// QEMU's locks on an image file: byte by byte, and against QEMU itself.
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/check.h"
#include "common/image_lock.h"
#include "common/posix_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/image_builder.h"
#include "tests/program.h"
#include "tests/qemu.h"

namespace qcow2check::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

struct flock ByteLock(short type, off_t byte) {
  struct flock lock = {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = byte;
  lock.l_len = 1;
  return lock;
}

// An open file of its own, as another program has.
class OpenFile {
 public:
  explicit OpenFile(const std::string& path) : fd_(open(path.c_str(), O_RDWR | O_CLOEXEC)) {
    QCOW2CHECK_CHECK(fd_ >= 0);
  }
  ~OpenFile() { close(fd_); }
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;

  int fd() const { return fd_; }
  void Lock(off_t byte) const {
    struct flock lock = ByteLock(F_RDLCK, byte);
    QCOW2CHECK_CHECK(fcntl(fd_, F_OFD_SETLK, &lock) == 0);
  }
  // Of the first 1000 bytes, those that others have locked for reading.
  std::vector<int> ReadLockedByOthers() const {
    std::vector<int> bytes;
    for (int byte = 0; byte < 1000; ++byte) {
      struct flock lock = ByteLock(F_WRLCK, byte);
      QCOW2CHECK_CHECK(fcntl(fd_, F_OFD_GETLK, &lock) == 0);
      if (lock.l_type == F_RDLCK) bytes.push_back(byte);
    }
    return bytes;
  }

 private:
  int fd_;
};

class LocksTest : public ::testing::Test {
 protected:
  LocksTest()
      : path_(dir_.Write(
            "image.qcow2",
            BuildImage({.virtual_size = 4 << 20, .steps = {WriteClusters{.count = 8}}}).bytes)) {}

  std::unique_ptr<PosixFile> Open() const { return *PosixFile::Open(path_); }
  CommandResult Check(const std::string& option) const {
    return RunCommand({QCOW2CHECK_PROGRAM, option, path_});
  }

  TempDir dir_;
  std::string path_;
};

TEST_F(LocksTest, ACheckLocksTheBytesOfAReader) {
  const std::unique_ptr<PosixFile> file = Open();
  ASSERT_TRUE(LockForCheck(file->fd(), path_, /*force_share=*/false).ok());
  // I read; I do not share writing and resizing.
  EXPECT_THAT(OpenFile(path_).ReadLockedByOthers(), ElementsAre(100, 201, 203));
}

TEST_F(LocksTest, ForceShareOnlySaysThatItReads) {
  const std::unique_ptr<PosixFile> file = Open();
  ASSERT_TRUE(LockForCheck(file->fd(), path_, /*force_share=*/true).ok());
  EXPECT_THAT(OpenFile(path_).ReadLockedByOthers(), ElementsAre(100));
}

TEST_F(LocksTest, LocksEndWithTheFile) {
  {
    const std::unique_ptr<PosixFile> file = Open();
    ASSERT_TRUE(LockForCheck(file->fd(), path_, /*force_share=*/false).ok());
  }
  EXPECT_THAT(OpenFile(path_).ReadLockedByOthers(), IsEmpty());
}

// Several checks of one image in one process: each has locks of its own, which the end of another
// leaves alone.
TEST_F(LocksTest, LocksOfTheSameFileOpenedTwice) {
  const std::string link = dir_.Path("link.qcow2");
  ASSERT_EQ(::link(path_.c_str(), link.c_str()), 0);
  const std::unique_ptr<PosixFile> file = Open();
  ASSERT_TRUE(LockForCheck(file->fd(), path_, /*force_share=*/false).ok());
  {
    const std::unique_ptr<PosixFile> again = *PosixFile::Open(link);
    ASSERT_TRUE(LockForCheck(again->fd(), link, /*force_share=*/false).ok());
  }
  EXPECT_THAT(OpenFile(path_).ReadLockedByOthers(), ElementsAre(100, 201, 203));
}

// Bytes 100+i: somebody uses the permission i; 200+i: somebody does not share it. 0 reading, 1
// writing, 2 writing the same bytes, 3 resizing; 0 is libvirt's.
TEST_F(LocksTest, OnlyWritersAndThoseWhoShareNothingConflict) {
  for (const int byte : {0, 100, 101, 102, 103, 200, 201, 202, 203}) {
    const OpenFile other(path_);
    other.Lock(byte);
    const bool conflict = byte == 101 || byte == 103 || byte == 200;
    const std::unique_ptr<PosixFile> file = Open();
    EXPECT_EQ(LockForCheck(file->fd(), path_, /*force_share=*/false).ok(), !conflict) << byte;
    const std::unique_ptr<PosixFile> sharing = Open();
    EXPECT_EQ(LockForCheck(sharing->fd(), path_, /*force_share=*/true).ok(), byte != 200) << byte;
  }
}

TEST_F(LocksTest, TwoChecksAtOnce) {
  const std::unique_ptr<PosixFile> file = Open();
  ASSERT_TRUE(LockForCheck(file->fd(), path_, /*force_share=*/false).ok());
  EXPECT_EQ(Check("--json").exit_code, 0);
}

TEST_F(LocksTest, ReadOnlyFile) {
  ASSERT_EQ(chmod(path_.c_str(), 0444), 0);
  EXPECT_EQ(Check("--json").exit_code, 0);
}

TEST_F(LocksTest, TheProgramLeavesNoLocks) {
  EXPECT_EQ(Check("--json").exit_code, 0);
  EXPECT_THAT(OpenFile(path_).ReadLockedByOthers(), IsEmpty());
}

// qemu-io that has an image open until the end of the scope.
class RunningQemuIo {
 public:
  RunningQemuIo(const std::string& path, const std::vector<std::string>& options) {
    std::array<int, 2> pipe_fds;
    QCOW2CHECK_CHECK(pipe2(pipe_fds.data(), O_CLOEXEC) == 0);
    commands_ = pipe_fds[1];
    std::vector<std::string> argv = {"qemu-io"};
    argv.insert(argv.end(), options.begin(), options.end());
    argv.push_back(path);
    std::vector<char*> words;
    for (std::string& word : argv) words.push_back(word.data());
    words.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    QCOW2CHECK_CHECK(posix_spawn_file_actions_init(&actions) == 0);
    posix_spawn_file_actions_adddup2(&actions, pipe_fds[0], STDIN_FILENO);
    posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    QCOW2CHECK_CHECK(posix_spawnp(&pid_, "qemu-io", &actions, nullptr, words.data(), environ) == 0);
    posix_spawn_file_actions_destroy(&actions);
    close(pipe_fds[0]);
    WaitForLocks(path);
  }
  // Without commands qemu-io ends.
  ~RunningQemuIo() {
    close(commands_);
    waitpid(pid_, nullptr, 0);
  }
  RunningQemuIo(const RunningQemuIo&) = delete;
  RunningQemuIo& operator=(const RunningQemuIo&) = delete;

  pid_t pid() const { return pid_; }

 private:
  static void WaitForLocks(const std::string& path) {
    const OpenFile file(path);
    const absl::Time end = absl::Now() + absl::Seconds(20);
    while (file.ReadLockedByOthers().empty()) {
      QCOW2CHECK_CHECK(absl::Now() < end);
      absl::SleepFor(absl::Milliseconds(10));
    }
    // Between its first and its last lock.
    absl::SleepFor(absl::Milliseconds(100));
  }

  int commands_ = -1;
  pid_t pid_ = -1;
};

TEST_F(LocksTest, AnImageThatQemuWritesIsRefused) {
  QCOW2CHECK_SKIP_WITHOUT_QEMU();
  const RunningQemuIo writer(path_, {});
  const CommandResult text = Check("--output=human");
  EXPECT_EQ(text.exit_code, 1);
  EXPECT_THAT(text.out, IsEmpty());
  EXPECT_EQ(text.err, absl::StrCat("qcow2check: '", path_, "' is in use by process ", writer.pid(),
                                   " (qemu-io); stop it, or check anyway with -U (--force-share)"
                                   "\n"));
  const nlohmann::json json = nlohmann::json::parse(Check("--json").out);
  EXPECT_EQ(json["verdict"], "locked");
  EXPECT_EQ(json["error"], text.err.substr(12, text.err.size() - 13));
}

TEST_F(LocksTest, ForceShareChecksAnImageThatQemuWrites) {
  QCOW2CHECK_SKIP_WITHOUT_QEMU();
  const RunningQemuIo writer(path_, {});
  EXPECT_EQ(Check("-U").exit_code, 0);
  EXPECT_EQ(Check("--force-share").exit_code, 0);
}

TEST_F(LocksTest, AnImageThatQemuReadsIsChecked) {
  QCOW2CHECK_SKIP_WITHOUT_QEMU();
  const RunningQemuIo reader(path_, {"-r"});
  EXPECT_EQ(Check("--json").exit_code, 0);
}

TEST_F(LocksTest, QemuDoesNotWriteAnImageThatIsChecked) {
  QCOW2CHECK_SKIP_WITHOUT_QEMU();
  const std::vector<std::string> write = {"qemu-io", "-c", "write 0 64k", path_};
  {
    const std::unique_ptr<PosixFile> file = Open();
    ASSERT_TRUE(LockForCheck(file->fd(), path_, /*force_share=*/false).ok());
    const CommandResult refused = RunCommand(write);
    EXPECT_NE(refused.exit_code, 0);
    EXPECT_THAT(refused.err, HasSubstr("lock"));
  }
  EXPECT_EQ(RunCommand(write).exit_code, 0);
}

TEST_F(LocksTest, QemuWritesAnImageThatIsCheckedWithForceShare) {
  QCOW2CHECK_SKIP_WITHOUT_QEMU();
  const std::unique_ptr<PosixFile> file = Open();
  ASSERT_TRUE(LockForCheck(file->fd(), path_, /*force_share=*/true).ok());
  EXPECT_EQ(RunCommand({"qemu-io", "-c", "write 0 64k", path_}).exit_code, 0);
}

}  // namespace
}  // namespace qcow2check::testing

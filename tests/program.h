// What tests need of the world around them: other programs, temporary directories and files.
#ifndef QCOW2CHECK_TESTS_PROGRAM_H_
#define QCOW2CHECK_TESTS_PROGRAM_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace qcow2check::testing {

struct CommandResult {
  int exit_code = -1;  // 128 + the signal if a signal ended the program; 127 if it did not start
  std::string out;
  std::string err;
};

// Runs argv[0] (found in PATH if it has no slash) without a shell, its standard input empty, and
// waits for it to end.
CommandResult RunCommand(const std::vector<std::string>& argv);

// Whether `program` is somewhere in PATH.
bool HaveProgram(absl::string_view program);

// A directory of its own that goes away, with all in it, at the end of the scope.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::string& path() const { return path_; }
  // The path of `name` in the directory.
  std::string Path(absl::string_view name) const;
  // Writes `bytes` to the file `name` in the directory; its path.
  std::string Write(absl::string_view name, absl::Span<const uint8_t> bytes) const;

 private:
  std::string path_;
};

// Whole files. A failure is a broken test environment and ends the test program.
void WriteFile(const std::string& path, absl::Span<const uint8_t> bytes);
std::vector<uint8_t> ReadFile(const std::string& path);

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_PROGRAM_H_

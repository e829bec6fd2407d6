#include "tests/inspected_image.h"

#include <utility>

#include "gtest/gtest.h"

namespace qcow2check::testing {

CommandResult Inspect(absl::Span<const uint8_t> bytes, std::vector<std::string> options) {
  const TempDir dir;
  std::vector<std::string> argv = {QCOW2CHECK_PROGRAM, "inspect", dir.Write("disk.qcow2", bytes)};
  argv.insert(argv.end(), options.begin(), options.end());
  return RunCommand(argv);
}

std::string TextOf(absl::Span<const uint8_t> bytes, std::vector<std::string> options) {
  const CommandResult result = Inspect(bytes, std::move(options));
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.err, "");
  return result.out;
}

Json JsonIn(const CommandResult& result) {
  Json json = Json::parse(result.out, nullptr, false);
  EXPECT_FALSE(json.is_discarded()) << result.out;
  return json;
}

Json JsonOf(absl::Span<const uint8_t> bytes, std::vector<std::string> options) {
  options.push_back("--json");
  const CommandResult result = Inspect(bytes, std::move(options));
  EXPECT_EQ(result.exit_code, 0) << result.err;
  return JsonIn(result);
}

}  // namespace qcow2check::testing

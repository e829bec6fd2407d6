#include "tests/qemu.h"

#include "nlohmann/json.hpp"
#include "tests/program.h"

namespace qcow2check::testing {

bool HaveQemu() {
  static const bool have = HaveProgram("qemu-img") && HaveProgram("qemu-io");
  return have;
}

QemuCheckResult QemuCheck(const std::string& path, const std::vector<std::string>& options) {
  std::vector<std::string> argv = {"qemu-img", "check", "--output=json"};
  argv.insert(argv.end(), options.begin(), options.end());
  argv.push_back(path);
  const CommandResult command = RunCommand(argv);
  QemuCheckResult result;
  result.exit_code = command.exit_code;
  result.err = command.err;
  const nlohmann::json json = nlohmann::json::parse(command.out, nullptr, false);
  if (!json.is_object()) return result;
  // QEMU leaves out what is zero.
  const auto number = [&](const char* key) { return json.value(key, uint64_t{0}); };
  result.has_json = true;
  result.check_errors = number("check-errors");
  result.corruptions = number("corruptions");
  result.leaks = number("leaks");
  result.image_end_offset = number("image-end-offset");
  result.total_clusters = number("total-clusters");
  result.allocated_clusters = number("allocated-clusters");
  result.fragmented_clusters = number("fragmented-clusters");
  result.compressed_clusters = number("compressed-clusters");
  return result;
}

}  // namespace qcow2check::testing

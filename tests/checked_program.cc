#include "tests/checked_program.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tests/program.h"

namespace qcow2check::testing {
namespace {

using ::testing::AssertionFailure;
using ::testing::AssertionResult;
using ::testing::AssertionSuccess;

std::string Describe(const CheckedTwice& both) {
  return absl::StrCat("qemu-img: exit ", both.qemu.exit_code, ", check errors ",
                      both.qemu.check_errors, ", corruptions ", both.qemu.corruptions, ", leaks ",
                      both.qemu.leaks, "\n", both.qemu.err.substr(0, 1500), "\nours: exit ",
                      both.ours.exit_code, ", check errors ", both.ours.Number("check-errors"),
                      ", corruptions ", both.ours.corruptions(), ", leaks ", both.ours.leaks(),
                      ", verdict ", both.ours.verdict(), ", data ", both.ours.data_state(), "\n",
                      both.ours.json.value("diagnostic-totals", nlohmann::json()).dump(), "\n",
                      both.ours.json.value("diagnostics", nlohmann::json()).dump().substr(0, 3000));
}

AssertionResult Verify(bool ok, const CheckedTwice& both) {
  return ok ? AssertionSuccess() : AssertionFailure() << Describe(both);
}

bool QemuIs(const CheckedTwice& both, uint64_t corruptions, uint64_t leaks) {
  return both.qemu.has_json && both.qemu.corruptions == corruptions && both.qemu.leaks == leaks;
}

bool OursIs(const CheckedTwice& both, uint64_t corruptions, uint64_t leaks) {
  return both.ours.corruptions() == corruptions && both.ours.leaks() == leaks;
}

}  // namespace

uint64_t CheckedImage::Number(absl::string_view key) const {
  return json.at(std::string(key)).get<uint64_t>();
}

std::string CheckedImage::verdict() const { return json.at("verdict").get<std::string>(); }

std::string CheckedImage::data_state() const {
  return json.at("data").at("state").get<std::string>();
}

uint64_t CheckedImage::lost_guest_bytes() const {
  return json.at("data").at("lost-guest-bytes").get<uint64_t>();
}

std::vector<GuestRange> CheckedImage::lost_guest_ranges() const {
  std::vector<GuestRange> ranges;
  for (const nlohmann::json& range : json.at("data").at("lost-guest-ranges")) {
    ranges.push_back({range.at("offset").get<uint64_t>(), range.at("length").get<uint64_t>()});
  }
  return ranges;
}

uint64_t CheckedImage::held_back_clusters() const {
  return json.at("repair").at("held-back").at("clusters").get<uint64_t>();
}

uint64_t CheckedImage::reads() const { return json.at("coverage").at("reads").get<uint64_t>(); }

uint64_t CheckedImage::bytes_read() const {
  return json.at("coverage").at("bytes-read").get<uint64_t>();
}

std::set<std::string> CheckedImage::codes() const {
  std::set<std::string> codes;
  for (const nlohmann::json& total : json.at("diagnostic-totals")) {
    codes.insert(total.at("code").get<std::string>());
  }
  return codes;
}

uint64_t CheckedImage::CountOf(absl::string_view code) const {
  for (const nlohmann::json& total : json.at("diagnostic-totals")) {
    if (total.at("code") == std::string(code)) return total.at("count").get<uint64_t>();
  }
  return 0;
}

std::vector<nlohmann::json> CheckedImage::Findings(absl::string_view code) const {
  std::vector<nlohmann::json> findings;
  for (const nlohmann::json& finding : json.at("diagnostics")) {
    if (finding.at("code") == std::string(code)) findings.push_back(finding);
  }
  return findings;
}

nlohmann::json CheckedImage::TheOnly(absl::string_view code) const {
  const std::vector<nlohmann::json> findings = Findings(code);
  if (findings.size() == 1) return findings.front();
  ADD_FAILURE() << findings.size() << " findings of " << code
                << "; all codes: " << absl::StrJoin(codes(), " ");
  return nlohmann::json::object();
}

CheckedImage CheckWithProgram(const std::string& path, const std::vector<std::string>& options) {
  std::vector<std::string> argv = {QCOW2CHECK_PROGRAM, "--json"};
  argv.insert(argv.end(), options.begin(), options.end());
  argv.push_back(path);
  const CommandResult command = RunCommand(argv);
  CheckedImage checked;
  checked.exit_code = command.exit_code;
  checked.err = command.err;
  checked.json = nlohmann::json::parse(command.out, nullptr, false);
  if (!checked.json.is_object()) {
    ADD_FAILURE() << "exit code " << command.exit_code << " without JSON\n"
                  << command.out << command.err;
    checked.json = nlohmann::json::parse(
        R"({"check-errors":0,"corruptions":0,"leaks":0,"verdict":"none","data":{"state":"none",
            "lost-guest-bytes":0,"lost-guest-ranges":[]},"coverage":{"reads":0,"bytes-read":0},
            "diagnostic-totals":[],"diagnostics":[],"image-end-offset":0,"total-clusters":0,
            "allocated-clusters":0,"fragmented-clusters":0,"compressed-clusters":0,
            "repair":{"held-back":{"clusters":0}}})");
  }
  return checked;
}

CheckedTwice CheckWithBoth(const std::string& path, const std::vector<std::string>& qemu_options) {
  return {CheckWithProgram(path), QemuCheck(path, qemu_options)};
}

AssertionResult AllNumbersAgree(const CheckedTwice& both) {
  const QemuCheckResult& qemu = both.qemu;
  const std::vector<std::pair<const char*, uint64_t>> numbers = {
      {"check-errors", qemu.check_errors},
      {"corruptions", qemu.corruptions},
      {"leaks", qemu.leaks},
      {"image-end-offset", qemu.image_end_offset},
      {"total-clusters", qemu.total_clusters},
      {"allocated-clusters", qemu.allocated_clusters},
      {"fragmented-clusters", qemu.fragmented_clusters},
      {"compressed-clusters", qemu.compressed_clusters}};
  std::string differences;
  for (const auto& [key, value] : numbers) {
    if (both.ours.Number(key) == value) continue;
    absl::StrAppend(&differences, key, ": qemu-img ", value, ", ours ", both.ours.Number(key),
                    "\n");
  }
  if (qemu.has_json && differences.empty() && both.ours.exit_code == qemu.exit_code) {
    return AssertionSuccess();
  }
  return AssertionFailure() << differences << Describe(both);
}

AssertionResult BothCount(const CheckedTwice& both, uint64_t corruptions, uint64_t leaks) {
  return Verify(QemuIs(both, corruptions, leaks) && OursIs(both, corruptions, leaks) &&
                    both.ours.exit_code == both.qemu.exit_code,
                both);
}

AssertionResult QemuCounts(const CheckedTwice& both, uint64_t corruptions, uint64_t leaks) {
  return Verify(QemuIs(both, corruptions, leaks), both);
}

AssertionResult QemuGivesUp(const CheckedTwice& both) {
  return Verify(!both.qemu.has_json && both.qemu.exit_code == 1, both);
}

AssertionResult OursCounts(const CheckedTwice& both, uint64_t corruptions, uint64_t leaks) {
  return Verify(OursIs(both, corruptions, leaks), both);
}

}  // namespace qcow2check::testing

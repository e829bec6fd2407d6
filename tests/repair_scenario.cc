#include "tests/repair_scenario.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "checker/check_state.h"
#include "common/byte_order.h"
#include "common/memory_file.h"
#include "common/table_entry.h"
#include "gtest/gtest.h"
#include "tests/program.h"
#include "tests/qemu.h"

namespace qcow2check::testing {
namespace {

std::string Words(const Report& report) {
  std::string words;
  constexpr size_t kMost = 30;
  for (size_t i = 0; i < std::min(report.findings.size(), kMost); ++i) {
    const Finding& finding = report.findings[i];
    absl::StrAppend(&words, InfoOf(finding.code).name, " at 0x",
                    absl::Hex(finding.host_offset.value_or(HostOffset{}).bytes), ": ",
                    MessageOf(finding), "\n");
  }
  return words;
}

std::string Declined(const Plan& plan) {
  std::string words = plan.refused.empty() ? "" : absl::StrCat("refused: ", plan.refused, "\n");
  for (const DeclinedRepair& declined : plan.declined) {
    absl::StrAppend(&words, "declined ", InfoOf(declined.code).name, ": ", declined.reason, "\n");
  }
  return words;
}

}  // namespace

RepairedImage ExpectRepaired(const std::vector<uint8_t>& damaged) {
  RepairedImage repaired = Repair(damaged);
  const Report& after = repaired.result.after;
  EXPECT_TRUE(repaired.result.status.ok()) << repaired.result.status;
  EXPECT_EQ(after.verdict, Verdict::kClean) << "before:\n"
                                            << Words(repaired.result.before) << "after:\n"
                                            << Words(after) << Declined(repaired.result.plan);
  EXPECT_TRUE(Undo(repaired) == damaged);
  const RepairedImage again = Repair(repaired.bytes);
  EXPECT_TRUE(again.result.plan.empty());
  if (HaveQemu()) {
    const TempDir dir;
    const QemuCheckResult qemu = QemuCheck(dir.Write("t.qcow2", repaired.bytes));
    EXPECT_EQ(qemu.exit_code, 0) << qemu.err << qemu.corruptions << " corruptions, " << qemu.leaks
                                 << " leaks";
  }
  return repaired;
}

RepairedImage ExpectDeclined(const std::vector<uint8_t>& damaged, FindingCode code) {
  RepairedImage repaired = Repair(damaged);
  EXPECT_TRUE(HasFinding(repaired.result.before, code)) << Words(repaired.result.before);
  EXPECT_TRUE(HasFinding(repaired.result.after, code)) << Words(repaired.result.after);
  const std::vector<DeclinedRepair>& declined = repaired.result.plan.declined;
  EXPECT_TRUE(std::any_of(declined.begin(), declined.end(), [code](const DeclinedRepair& one) {
    return one.code == code;
  })) << Declined(repaired.result.plan);
  return repaired;
}

std::vector<std::map<uint64_t, GuestUnit>> SnapshotContents(const std::vector<uint8_t>& image) {
  std::vector<std::map<uint64_t, GuestUnit>> contents;
  for (const GuestView& view : ReadSnapshots({image, {}})) contents.push_back(view.units);
  return contents;
}

std::vector<std::string> BitmapContents(const std::vector<uint8_t>& image) {
  const MemoryFile file(image);
  const CheckOptions options;
  CheckState state(file, options);
  RunPasses(state, "bitmaps");
  std::vector<std::string> contents;
  for (const BitmapEntry& bitmap : state.bitmaps) {
    std::vector<uint64_t> dirty;
    const uint64_t bits_in_cluster = state.geo().cluster_size() * 8;
    for (uint64_t i = 0; i < bitmap.table_entries; ++i) {
      const uint64_t entry = Load64(&image[bitmap.table_offset + i * 8]);
      for (uint64_t bit = 0; bit < bits_in_cluster; ++bit) {
        const uint64_t offset = EntryOffset(entry);
        const bool set =
            offset == 0 ? (entry & 1) != 0 : (image[offset + bit / 8] >> (bit % 8) & 1) != 0;
        if (set) dirty.push_back(i * bits_in_cluster + bit);
      }
    }
    contents.push_back(absl::StrFormat("%s(%d%s): %s", bitmap.name, bitmap.granularity_bits,
                                       (bitmap.flags & kBitmapInUse) != 0 ? ", in use" : "",
                                       absl::StrJoin(dirty, " ")));
  }
  return contents;
}

bool HasFinding(const Report& report, FindingCode code) {
  return std::any_of(report.findings.begin(), report.findings.end(),
                     [code](const Finding& finding) { return finding.code == code; });
}

}  // namespace qcow2check::testing

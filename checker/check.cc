#include "checker/check.h"

#include <array>
#include <string>
#include <utility>

#include "absl/strings/str_format.h"
#include "checker/check_state.h"
#include "common/limits.h"

namespace qcow2check {
namespace {

using PassFunction = void (*)(CheckState&);

// A pass, by its stable name: what it needs of those before it, and what it makes.
struct Pass {
  absl::string_view name;
  absl::string_view needs;
  absl::string_view makes;
  PassFunction run;
};
constexpr absl::string_view kHeaderPass = "header";

// What runs after the header pass. Metadata is counted before guest clusters, so that a guest
// cluster on metadata is noticed when it is counted.
constexpr std::array<Pass, 10> kPasses = {{
    {"snapshot-table", "header", "snapshots", CheckSnapshotTable},
    {"encryption", "header extensions", "LUKS header claimed", CheckEncryption},
    {"bitmaps", "header extensions", "bitmaps claimed", CheckBitmaps},
    {"l1-tables", "snapshots", "distinct L2 tables with weights", CheckL1Tables},
    {"refcount-table", "header", "refcount blocks claimed", CheckRefcountTable},
    {"l2-tables", "all metadata claimed", "expected refcounts, statistics", CheckL2Tables},
    {"data", "L2 tables (only with --verify-data)", "findings about data", CheckData},
    {"compare-refcounts", "expected refcounts", "wrong refcounts, orphans", CompareRefcounts},
    {"owners", "wrong refcounts, collisions", "cross-links, COPIED flags", ResolveOwners},
    {"orphans", "all findings", "lost tables, leaks", ClassifyOrphans},
}};

std::string WordsOf(StopReason reason) {
  switch (reason) {
    case StopReason::kMemory:
      return "it would have needed more memory than --max-memory or a limit of the system allows";
    case StopReason::kTime:
      return "the time of --max-time is over";
    case StopReason::kProcessorTime:
      return "the processor time that the system allows is nearly used up";
    case StopReason::kInterrupted:
      return "it was interrupted";
    case StopReason::kNone:
      break;
  }
  return "";
}

// What the passes that did not run would have found is unknown, and is not guessed from the rest.
void ReportStop(CheckState& state, const Pass& during) {
  const std::string why = WordsOf(state.stop_reason());
  const FindingCode code = state.stop_reason() == StopReason::kInterrupted
                               ? FindingCode::kInterrupted
                               : FindingCode::kLimitReached;
  state.findings.Add({.code = code,
                      .structure = Structure::kImage,
                      .detail = absl::StrFormat("%s, in the pass %s", why, during.name)});
  if (during.run == CheckL2Tables) {
    state.Skip(
        absl::StrFormat("%d of %d L2 tables", state.l2_tables.size() - state.coverage.l2_tables,
                        state.l2_tables.size()),
        why);
  }
  state.Skip(absl::StrFormat("the rest of the pass %s, and all passes behind it", during.name),
             why);
}

// Most of the metadata is in the tables that are known by now.
void ExpectReads(CheckState& state) {
  if (state.options.progress == nullptr) return;
  const uint64_t tables = state.l2_tables.size() + state.refcount_blocks.size();
  state.options.progress->bytes_expected +=
      state.coverage.bytes_read + SaturatingMultiply(tables, state.geo().cluster_size());
}

Verdict VerdictOf(const Report& report, bool unsupported, bool not_qcow2, bool limit_reached) {
  if (not_qcow2) return Verdict::kNotQcow2;
  if (unsupported) return Verdict::kUnsupported;
  if (limit_reached) return Verdict::kLimitExceeded;
  if (report.totals.check_errors != 0) return Verdict::kIncomplete;
  if (report.totals.corruptions != 0) return Verdict::kCorrupt;
  return report.totals.leaks != 0 ? Verdict::kLeaks : Verdict::kClean;
}

ImageSummary Summarize(const CheckState& state) {
  if (!state.geometry) return {};
  return {.version = state.header.version,
          .cluster_size = state.geo().cluster_size(),
          .virtual_size_bytes = state.header.size,
          .refcount_bits = static_cast<uint32_t>(state.geo().refcount_bits()),
          .extended_l2 = state.geo().extended_l2,
          .encrypted = state.header.crypt_method != kCryptNone,
          .external_data_file = state.geo().data_file,
          .snapshots = state.snapshots.size(),
          .bitmaps = state.bitmaps.size(),
          .backing_name = state.backing_name,
          .backing_format = state.backing_format,
          .data_file_name = state.data_file_name};
}

}  // namespace

void RunPasses(CheckState& state, absl::string_view last) {
  CheckHeader(state);
  if (!state.geometry) return;
  state.MakeMaps();
  state.Claim({Structure::kHeader, 0, state.geo().cluster_size(), std::nullopt}, 1);
  if (last == kHeaderPass) return;
  for (const Pass& pass : kPasses) {
    pass.run(state);
    if (!state.MayGoOn()) {
      ReportStop(state, pass);
      return;
    }
    if (last == pass.name) return;
    if (pass.run == CheckRefcountTable) ExpectReads(state);
  }
}

ImageSummary SummarizeImage(const ImageFile& file) {
  const CheckOptions options;
  CheckState state(file, options);
  CheckHeader(state);
  return Summarize(state);
}

Report ReportOf(const CheckState& state, FindingList findings) {
  const bool unsupported = findings.Has(FindingCode::kUnknownIncompatibleFeature) ||
                           findings.Has(FindingCode::kUnsupportedVersion);
  const bool not_qcow2 = findings.Has(FindingCode::kNotQcow2);
  const bool limit_reached = findings.Has(FindingCode::kLimitReached);
  Report report;
  findings.MoveTo(report, state.header.size);
  report.image = Summarize(state);
  report.statistics = state.statistics;
  if (state.geometry) {
    report.statistics.total_clusters = DivideRoundingUp(
        state.header.size / kSectorBytes * kSectorBytes, state.geo().cluster_size());
  }
  report.coverage = state.coverage;
  report.held_back = state.held_back;
  report.verdict = VerdictOf(report, unsupported, not_qcow2, limit_reached);
  return report;
}

Report CheckImage(const ImageFile& file, const CheckOptions& options) {
  CheckState state(file, options);
  RunPasses(state, kPasses.back().name);
  return ReportOf(state, std::move(state.findings));
}

}  // namespace qcow2check

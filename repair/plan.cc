#include "repair/plan.h"

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "checker/check_state.h"
#include "checker/lost_pointers.h"
#include "common/byte_order.h"
#include "common/checked_math.h"
#include "common/limits.h"
#include "repair/plan_builder.h"
#include "repair/planners.h"
#include "repair/uncounted_tables.h"

namespace qcow2check {
namespace {

// Findings listed of each code in one round; what is beyond comes with the next.
constexpr uint64_t kFindingsAtOnce = 1u << 16;
// No image needs nearly as many rounds, or so many that leave no less to repair than there was
// before. A repair that finds no end is none.
constexpr int kMostRounds = 2000;
constexpr int kMostRoundsWithoutProgress = 64;
// What one part of a plan makes possible, the next one does; it is seldom that a third has a turn.
constexpr int kMostParts = 16;

using Planner = void (*)(CheckState&, PlanBuilder&);

// A refcount block that a damaged L1 entry leads to is as it should be, and says more than the
// mappings that are left: the entry comes first.
void PlanRefcountStructuresOutOfDispute(CheckState& state, PlanBuilder& plan) {
  const bool disputed =
      std::any_of(state.l2_tables.begin(), state.l2_tables.end(), [](const L2Table& table) {
        return table.is_refcount_block && table.shape == L2Shape::kLost;
      });
  if (!disputed) PlanRefcountStructures(state, plan);
}

// In the order in which repairs are safe. After the first that plans something, the image is
// checked again and the first one's turn comes again. What is proven comes before what is given
// up, and so do refcount structures, which tell what the orphans are. Pointers are set right
// before refcounts are raised, so that only true references are counted; in the plan the raising
// comes first all the same. Nothing is lowered before all else is done.
constexpr std::array<Planner, 15> kRepairAll = {
    PlanRefcountTableLength, PlanL1Table,
    PlanSnapshots,           PlanBitmaps,
    PlanProvenEntries,       PlanRefcountStructuresOutOfDispute,
    PlanLostEntries,         PlanLostTables,
    PlanRefcountStructures,  PlanRaisedRefcounts,
    PlanOwnClusters,         PlanCopiedFlags,
    PlanLoweredRefcounts,    PlanNoteWithdrawn,
    PlanFeatureBits,
};
// Without those that remove the only sign that orphans may be worth something.
constexpr std::array<Planner, 10> kRepairKeepingEvidence = {
    PlanRefcountTableLength,
    PlanSnapshots,
    PlanBitmaps,
    PlanL1Table,
    PlanProvenEntries,
    PlanRaisedRefcounts,
    PlanRefcountStructures,
    PlanCopiedFlags,
    PlanLoweredRefcounts,
    PlanFeatureBits,
};
constexpr std::array<Planner, 2> kRepairLeaks = {PlanLoweredRefcounts, PlanCopiedFlags};
// With a part of the image unread, more references may exist than are known, never fewer.
constexpr std::array<Planner, 1> kRepairOnlyRaising = {PlanRaisedRefcounts};

Totals TotalsOf(const CheckState& state) {
  Totals totals;
  for (const FindingCodeInfo& info : AllFindingCodes()) {
    const uint64_t count = state.findings.CountOf(info.code);
    if (info.tally == Tally::kCorruptions) totals.corruptions += count;
    if (info.tally == Tally::kLeaks) totals.leaks += count;
    if (info.tally == Tally::kCheckErrors) totals.check_errors += count;
  }
  return totals;
}

// A header field that changes the meaning of every table was probably damaged. Then most entries
// look wrong, and repairing them one by one would destroy them.
bool TablesMakeNoSense(const CheckState& state) {
  uint64_t wrong = 0;
  for (const FindingCode code :
       {FindingCode::kL2EntryReservedBits, FindingCode::kDataMisaligned,
        FindingCode::kCompressedInDataFile, FindingCode::kSubclusterConflict,
        FindingCode::kSubclusterWithoutCluster, FindingCode::kCompressedPastEnd,
        FindingCode::kCompressedSubclusters, FindingCode::kZeroFlagNotAllowed}) {
    wrong += state.findings.TotalOf(code).clusters;
  }
  return wrong >= 16 && wrong * 2 > state.statistics.allocated_clusters;
}

// Why nothing at all may be changed; empty if nothing speaks against it.
std::string WhyNothing(const CheckState& state, const RepairOptions& options) {
  if (!state.geometry) return "the header cannot be understood";
  // A plan keeps whole clusters in memory, and no program reads an image with larger ones.
  if (state.geo().cluster_size() > kMaxPieceBytes) return "the clusters are larger than 2 MiB";
  for (const FindingCode code :
       {FindingCode::kUnsupportedVersion, FindingCode::kUnknownIncompatibleFeature}) {
    if (state.findings.Has(code)) return "the image may mean something else than is known here";
  }
  if (state.findings.Has(FindingCode::kClusterBitsSuspect)) {
    return "the cluster size in the header is probably wrong";
  }
  if (state.findings.Has(FindingCode::kExtendedL2SmallClusters)) {
    return "the header's cluster size and its bit for extended L2 entries exclude each other: one "
           "of "
           "them is wrong, and with it what every entry means";
  }
  if (!state.refcounts_readable) return "the refcounts cannot be read";
  constexpr size_t kHeaderLengthField = 100;
  if (state.header.version == 2 && state.first_cluster.size() > kHeaderLengthField + 4) {
    const uint32_t length = Load32(&state.first_cluster[kHeaderLengthField]);
    if (length == kHeaderBytesV3 || length == kHeaderBytesKnown) {
      return "the header is one of version 3: the version field was probably damaged";
    }
  }
  if (TablesMakeNoSense(state)) {
    return "most entries of the tables make no sense: a field of the header was probably damaged";
  }
  const Totals totals = TotalsOf(state);
  if (options.mode == RepairMode::kLeaks && totals.corruptions + totals.check_errors != 0) {
    return absl::StrCat(
        "there is corruption: freeing leaks could destroy what it hides; "
        "--repair=all repairs it first");
  }
  return "";
}

// What is done about evidence that a repair removes.
enum class Evidence {
  kNotNeeded,  // no orphans are left that it could be about
  kNote,       // a note in the image takes its place
  kKeep,       // there is no room for a note: what nothing can replace stays as it is
  kKeepAll,    // and so does what could be set right: it is all that speaks for the orphans left
};

// How a part of a plan is made; each is tried only if the ones before lead nowhere.
struct Attempt {
  Evidence evidence = Evidence::kNotNeeded;
  bool grows_in_doubt = true;
  bool unread = false;  // what the planners would have had to look at cannot be read

  // Something is left undone that may be possible once the rest is done.
  bool IsRestricted() const {
    return evidence == Evidence::kKeep || evidence == Evidence::kKeepAll || !grows_in_doubt ||
           unread;
  }
};

absl::Span<const Planner> PlannersFor(const CheckState& state, const RepairOptions& options,
                                      const Attempt& attempt) {
  if (options.mode == RepairMode::kLeaks) return kRepairLeaks;
  if (attempt.unread || TotalsOf(state).check_errors != 0 ||
      attempt.evidence == Evidence::kKeepAll) {
    return kRepairOnlyRaising;
  }
  if (attempt.evidence == Evidence::kKeep) return kRepairKeepingEvidence;
  return kRepairAll;
}

// Freed clusters that are free when all is done: not those whose refcount could not be written, nor
// those that something refers to by then.
std::vector<Extent> StillFree(const std::vector<Extent>& freed, const CheckState& state) {
  const uint64_t size = state.geo().cluster_size();
  std::vector<Extent> free;
  for (const Extent& extent : freed) {
    for (uint64_t at = extent.begin_bytes; at < extent.end_bytes; at += size) {
      if (state.expected->Get(at / size) != 0 || state.mismatched->Contains(at / size)) continue;
      if (!free.empty() && free.back().end_bytes == at) {
        free.back().end_bytes += size;
      } else {
        free.push_back({at, at + size});
      }
    }
  }
  return free;
}

// Why a finding is still there when nothing more is planned, if no planner has said it.
std::string WhyLeft(const Finding& finding) {
  switch (finding.code) {
    case FindingCode::kL1Lost:
      return "which slot of the L1 table led to which L2 table cannot be proven";
    case FindingCode::kL2TableLost:
    case FindingCode::kL2TableTorn:
      return "its mappings are not in the file; the clusters that fit it are kept";
    case FindingCode::kOrphanL2Table:
      return "which L1 entry led here cannot be proven; it is kept";
    case FindingCode::kCopiedWrong:
      return "the flag is as the references say; the refcount could not be set right";
    case FindingCode::kCorruptBit:
      return "it stays set until everything else is right";
    default:
      return "nothing in the image proves how it was";
  }
}

// `why`: the one reason for all of it, or empty.
void DeclineTheRest(const CheckState& state, const std::string& why, PlanBuilder& plan) {
  for (const Finding& finding : state.findings.findings()) {
    const Tally tally = InfoOf(finding.code).tally;
    if (tally != Tally::kCorruptions && tally != Tally::kLeaks) continue;
    plan.Decline(finding.code, finding.host_offset, why.empty() ? WhyLeft(finding) : why);
  }
}

Plan Refusal(const ImageFile& file, const CheckState& state, std::string why) {
  Plan plan;
  plan.old_size_bytes = plan.new_size_bytes = file.size_bytes();
  plan.refused = std::move(why);
  plan.remaining = TotalsOf(state);
  plan.held_back = state.held_back;
  return plan;
}

Plan NoEnd(const ImageFile& file, const CheckOptions& check) {
  CheckState state(file, check);
  RunPasses(state, "orphans");
  return Refusal(file, state,
                 "one repair after the other is undone by the next: the structures overlap");
}

// Whatever was planned until then was planned for another state of the image than a whole check
// would have shown.
Plan NotExamined(const ImageFile& file, const CheckState& state) {
  return Refusal(file, state,
                 "a check of the image was stopped, or reached a limit, before its end");
}

// Something from before the repair leads to what the plan has put behind the old end of the file:
// the file was cut off, and the pointer was in a table that had not been found by then.
bool LeadsBehindOldEnd(const CheckState& state, const PlanBuilder& plan) {
  const uint64_t old_end = RoundUp(plan.old_size_bytes(), state.geo().cluster_size());
  const uint64_t end = state.file.size_bytes();
  if (end > old_end && UncountedTables(state).Touches(old_end, end)) return true;
  for (const Finding& finding : state.findings.findings()) {
    switch (finding.code) {
      case FindingCode::kDataOnMetadata:
      case FindingCode::kCrossLinkedData:
      case FindingCode::kMetadataOverlap:
      case FindingCode::kRefcountBlockShared:
        if (finding.host_offset && finding.host_offset->bytes >= old_end) return true;
        break;
      default:
        break;
    }
  }
  return false;
}

// Whether the file ends before what was written to it, or did before an earlier repair.
bool WasCutOff(const CheckState& state) {
  return state.was_cut_off || state.findings.Has(FindingCode::kFileTruncated);
}

OrphanNote NoteOfLosses(const CheckState& state) {
  return WasCutOff(state) ? OrphanNote::kCutOff : OrphanNote::kGivenUp;
}

// Nothing shows any more that the file was cut off, and a pointer still leads to what was behind
// its end: the next repair would take an orphan one bit away for what it meant.
bool HidesWhereTheFileEnded(const CheckState& state, const PlanBuilder& plan) {
  return plan.was_cut_off() && !WasCutOff(state) &&
         state.findings.Has(FindingCode::kLeakSuspicious) &&
         (state.findings.Has(FindingCode::kL2TablePastEnd) ||
          state.findings.Has(FindingCode::kDataPastEnd) ||
          state.findings.Has(FindingCode::kCompressedPastEnd));
}

// Evidence was given up that orphans still need, or clusters that are counted too high.
bool OrphansNeedNote(const CheckState& state, const RepairOptions& options,
                     const PlanBuilder& plan) {
  const bool nothing_holds =
      state.findings.Has(FindingCode::kLeakedCluster) ||
      (state.findings.Has(FindingCode::kRefcountTooHigh) && state.held_back.clusters == 0);
  return !options.free_orphans && ((plan.removes_evidence() && nothing_holds) ||
                                   (plan.gives_up_evidence() && state.held_back.clusters != 0) ||
                                   HidesWhereTheFileEnded(state, plan));
}

// They are held back for what the image still shows, a lost table perhaps. A guest that writes
// there ends that, and nothing would speak for them any more.
bool OrphansMayNeedNote(const CheckState& state, const RepairOptions& options,
                        const Attempt& attempt) {
  return options.mode == RepairMode::kAll && !options.free_orphans &&
         attempt.evidence == Evidence::kNotNeeded && !attempt.unread &&
         TotalsOf(state).check_errors == 0 && state.coverage.complete() && !state.kept_by_repair &&
         state.held_back.clusters != 0;
}

constexpr char kNoRoomForNote[] =
    "the header has no room for a note that unreferenced clusters are to be kept, and this is all "
    "that shows that they may be worth something; --free-orphans repairs it, and frees them";

Plan Finished(const CheckState& state, const RepairOptions& options, const Attempt& attempt,
              std::string why_nothing, PlanBuilder plan) {
  DeclineTheRest(
      state,
      attempt.evidence == Evidence::kKeepAll && why_nothing.empty() ? kNoRoomForNote : why_nothing,
      plan);
  Plan made = std::move(plan).Take();
  // What was declined at first may have become possible later.
  std::erase_if(made.declined, [&state](const DeclinedRepair& declined) {
    return !state.findings.Has(declined.code);
  });
  made.refused = std::move(why_nothing);
  made.remaining = TotalsOf(state);
  made.held_back = state.held_back;
  made.discards =
      options.discard && state.geometry ? StillFree(made.discards, state) : std::vector<Extent>{};
  return made;
}

// A caller who wants the report of the first check, too.
struct WantedReport {
  uint64_t max_findings = 0;
  std::optional<Report> report;
};

enum class Outcome { kMade, kNeedsNote, kHasNoRoomForNote, kLosesEvidence, kCollides, kUnread };

// A plan up to the end of one of its parts.
struct Made {
  Plan plan;
  uint64_t writes = 0;
  std::unique_ptr<PlanBuilder> unfinished;  // to go on from, if the part was restricted
};

// Whether the rounds of a plan still leave less to repair than those before.
class Progress {
 public:
  bool GoesOn(int round, const Totals& totals) {
    const uint64_t errors = SaturatingAdd(totals.corruptions, totals.leaks);
    if (errors < fewest_errors_) {
      fewest_errors_ = errors;
      least_round_ = round;
    }
    return round - least_round_ <= kMostRoundsWithoutProgress;
  }

 private:
  uint64_t fewest_errors_ = kSaturated;
  int least_round_ = 0;
};

// One planner after the other, until one has planned a write. Returns the last.
Planner RunPlanners(CheckState& state, const Attempt& attempt, PlanBuilder& plan) {
  const uint64_t before = plan.writes();
  const uint64_t size_bytes = plan.image().size_bytes();
  Planner last = nullptr;
  for (const Planner planner : PlannersFor(state, plan.options(), attempt)) {
    last = planner;
    planner(state, plan);
    if (plan.writes() != before) break;
    plan.TakeBackGrowth(size_bytes);
  }
  return last;
}

Outcome TryPlan(const ImageFile& file, const CheckOptions& check, const PlanBuilder& earlier,
                const Attempt& attempt, WantedReport* wanted, Made& made) {
  const RepairOptions& options = earlier.options();
  PlanBuilder plan = earlier.NextPart(attempt.grows_in_doubt);
  bool is_new_l1 = true;
  bool note_is_due = attempt.evidence == Evidence::kNote;
  Progress progress;
  for (int round = 0; round < kMostRounds; ++round) {
    const uint64_t failed_before = plan.failed_reads();
    CheckState state(plan.image(), check);
    RunPasses(state, "orphans");
    if (wanted != nullptr && !wanted->report) {
      wanted->report = ReportOf(state, state.findings.FirstOf(wanted->max_findings));
    }
    if (state.stop_reason() != StopReason::kNone) {
      made.plan = NotExamined(file, state);
      return Outcome::kMade;
    }
    std::string why_nothing = round == 0 ? WhyNothing(state, options) : "";
    // What only refcounts show may not be seen before they can be read again.
    if (state.geometry && ((round == 0 && (HasLostPointers(state) || state.counted_too_low)) ||
                           state.findings.Has(FindingCode::kL1Lost) ||
                           state.findings.Has(FindingCode::kOrphanL2Table))) {
      plan.ExpectLosses();
    }
    // Entries of what was no L1 table say nothing about where the file ended.
    if (is_new_l1) plan.SetCutOff(WasCutOff(state));
    is_new_l1 = false;
    if (!progress.GoesOn(round, TotalsOf(state))) break;
    if (round != 0 && attempt.grows_in_doubt && LeadsBehindOldEnd(state, plan)) {
      return Outcome::kCollides;
    }
    const uint64_t before = plan.writes();
    if (note_is_due) {
      // The note goes behind it, and would not be found once its length is set right.
      PlanBitmapsExtension(state, plan);
      note_is_due = plan.writes() != before;
      if (!note_is_due && !PlanNote(state, NoteOfLosses(state), plan)) {
        return Outcome::kHasNoRoomForNote;
      }
    }
    if (plan.writes() == before && why_nothing.empty()) {
      is_new_l1 = RunPlanners(state, attempt, plan) == PlanL1Table;
    }
    // What was not seen may have spoken against it.
    if (!attempt.unread && plan.failed_reads() != failed_before) return Outcome::kUnread;
    if (plan.writes() != before) continue;
    if (why_nothing.empty() && OrphansNeedNote(state, options, plan)) {
      if (attempt.evidence == Evidence::kNotNeeded) return Outcome::kNeedsNote;
      if (attempt.evidence == Evidence::kKeep) return Outcome::kLosesEvidence;
    }
    // Best effort: without room for it they are held back all the same.
    if (why_nothing.empty() && OrphansMayNeedNote(state, options, attempt) &&
        PlanNote(state, OrphanNote::kHeldBack, plan) && plan.writes() != before) {
      continue;
    }
    made.writes = plan.writes();
    if (attempt.IsRestricted() && plan.writes() != earlier.writes()) {
      made.unfinished = std::make_unique<PlanBuilder>(plan);
    }
    made.plan = Finished(state, options, attempt, std::move(why_nothing), std::move(plan));
    return Outcome::kMade;
  }
  made.plan = NoEnd(file, check);
  return Outcome::kMade;
}

// The next part of a plan, after what is in `earlier`.
Made MakePart(const ImageFile& file, const CheckOptions& check, const PlanBuilder& earlier,
              WantedReport* wanted) {
  Attempt attempt;
  Made made;
  for (;;) {
    switch (TryPlan(file, check, earlier, attempt, wanted, made)) {
      case Outcome::kMade:
        return made;
      case Outcome::kNeedsNote:
        attempt.evidence = Evidence::kNote;
        break;
      case Outcome::kHasNoRoomForNote:
        attempt.evidence = Evidence::kKeep;
        break;
      case Outcome::kLosesEvidence:
        attempt.evidence = Evidence::kKeepAll;
        break;
      case Outcome::kCollides:
        attempt.grows_in_doubt = false;
        break;
      case Outcome::kUnread:
        attempt.unread = true;
        break;
    }
  }
}

Plan PlanWith(const ImageFile& file, CheckOptions check, const RepairOptions& options,
              WantedReport* wanted) {
  check.max_findings = kFindingsAtOnce;
  check.verify_data = false;
  Made made = MakePart(file, check, PlanBuilder(file, options), wanted);
  // One repair is enough: what stood in the way of something may be gone when the plan is done.
  for (int parts = 1; made.unfinished != nullptr && parts < kMostParts; ++parts) {
    Made more = MakePart(file, check, *made.unfinished, nullptr);
    if (!more.plan.refused.empty() || more.writes == made.writes) break;
    made = std::move(more);
  }
  return std::move(made.plan);
}

}  // namespace

Plan MakePlan(const ImageFile& file, const RepairOptions& options) {
  return PlanWith(file, {}, options, nullptr);
}

PlanAndReport CheckAndPlan(const ImageFile& file, const CheckOptions& check,
                           const RepairOptions& options) {
  if (check.verify_data || check.max_findings > kFindingsAtOnce) {
    Report report = CheckImage(file, check);
    return {PlanWith(file, check, options, nullptr), std::move(report)};
  }
  WantedReport wanted = {.max_findings = check.max_findings};
  Plan plan = PlanWith(file, check, options, &wanted);
  return {std::move(plan), *std::move(wanted.report)};
}

}  // namespace qcow2check

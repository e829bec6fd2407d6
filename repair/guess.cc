#include "repair/guess.h"

#include <algorithm>
#include <utility>

#include "common/byte_order.h"
#include "common/checked_math.h"
#include "repair/patched_file.h"
#include "repair/stored_refcounts.h"

namespace qcow2check {
namespace {

// More guesses than this are no evidence, and each costs a check.
constexpr size_t kMostGuesses = 64;
// Orphans that are looked into.
constexpr uint64_t kMostOrphans = 65536;

uint64_t Corruptions(const CheckState& state) {
  uint64_t corruptions = 0;
  for (const FindingCodeInfo& info : AllFindingCodes()) {
    if (info.tally == Tally::kCorruptions) corruptions += state.findings.CountOf(info.code);
  }
  return corruptions;
}

uint64_t Distance(uint64_t a, uint64_t b) { return a < b ? b - a : a - b; }

// Calls visit(cluster) for the clusters of the file that two checks count differently.
template <typename Visit>
void ForEachDifference(const CheckState& now, const CheckState& then, Visit visit) {
  const uint64_t clusters = std::min(now.file_clusters, then.file_clusters);
  uint64_t page = 0;
  while (true) {
    page = std::min(now.expected->NextPage(page), then.expected->NextPage(page));
    if (page == kNoPage) return;
    for (uint64_t word = page * kPageClusters; word < (page + 1) * kPageClusters; word += 64) {
      uint64_t a = 0, b = 0;
      if (now.expected->BitWord(word, a) && then.expected->BitWord(word, b) && a == b) continue;
      for (uint64_t cluster = word; cluster < std::min(word + 64, clusters); ++cluster) {
        if (now.expected->Get(cluster) != then.expected->Get(cluster)) visit(cluster);
      }
    }
    ++page;
  }
}

bool IsRefcountTableSound(const CheckState& state, const StoredRefcounts& stored) {
  for (const FindingCode code :
       {FindingCode::kRefcountTableInvalid, FindingCode::kRefcountTableEntryReservedBits,
        FindingCode::kRefcountBlockMisaligned, FindingCode::kRefcountBlockPastEnd,
        FindingCode::kRefcountBlockShared, FindingCode::kRefcountBlockGarbage}) {
    if (state.findings.Has(code)) return false;
  }
  return !state.refcount_blocks.empty() && stored.blocks().size() == state.refcount_blocks.size();
}

// Whether all of the image fits together at least as well with the guess, and something better.
bool IsRight(const CheckState& now, const CheckState& then, PlanBuilder& plan, const Guess& guess) {
  if (!then.geometry || !then.refcounts_readable) return false;
  // The note that keeps orphans is where the lengths of all extensions led when it was written.
  if (now.kept_by_repair && !then.kept_by_repair) return false;
  const StoredRefcounts stored(then, plan);
  if (guess.needed == Proof::kRefcountTableSound) {
    return IsRefcountTableSound(then, stored) && Corruptions(then) < Corruptions(now);
  }
  bool worse = false, explains = false;
  ForEachDifference(now, then, [&](uint64_t cluster) {
    if (!stored.HasBlockFor(cluster)) return;
    const uint64_t refcount = stored.Get(cluster);
    const uint64_t before = Distance(refcount, now.expected->Get(cluster));
    const uint64_t after = Distance(refcount, then.expected->Get(cluster));
    if (after > before) worse = true;
    if (then.expected->Get(cluster) > now.expected->Get(cluster)) explains = true;
  });
  const uint64_t corruptions = Corruptions(then);
  const uint64_t corruptions_now = Corruptions(now);
  if (worse || corruptions > corruptions_now) return false;
  switch (guess.needed) {
    case Proof::kExplainsRefcounts:
      return explains;
    case Proof::kActiveFlagsAgree:
      return explains && !then.findings.Has(FindingCode::kCopiedWrong);
    case Proof::kFewerCorruptions:
      return corruptions < corruptions_now;
    case Proof::kAllAgrees:
      return corruptions < corruptions_now && then.mismatched->empty() && then.orphans.empty() &&
             then.coverage.complete();
    case Proof::kRefcountTableSound:
      break;
  }
  return false;
}

}  // namespace

Guess FieldGuess(uint64_t place_bytes, int bytes, uint64_t value, int rank, std::string evidence) {
  uint8_t word[8];
  Store64(word, value);
  return {.place_bytes = place_bytes,
          .bytes = {word + 8 - bytes, word + 8},
          .rank = rank,
          .evidence = std::move(evidence)};
}

std::optional<Guess> OnlyRightGuess(const CheckState& state, PlanBuilder& plan,
                                    std::vector<Guess> guesses) {
  std::stable_sort(guesses.begin(), guesses.end(),
                   [](const Guess& a, const Guess& b) { return a.rank < b.rank; });
  std::optional<Guess> right;
  std::vector<const Guess*> tried;
  for (const Guess& guess : guesses) {
    const auto same = [&](const Guess* other) {
      return other->place_bytes == guess.place_bytes && other->bytes == guess.bytes;
    };
    if (right && right->rank < guess.rank) break;
    if (std::any_of(tried.begin(), tried.end(), same)) continue;
    if (tried.size() == kMostGuesses) return std::nullopt;
    tried.push_back(&guess);
    PatchedFile copy(plan.image());
    if (!copy.Patch(guess.place_bytes, guess.bytes).ok()) continue;
    CheckState then(copy, state.options);
    RunPasses(then, "orphans");
    // What a check cut short did not find says nothing for a guess.
    if (then.stop_reason() != StopReason::kNone) return std::nullopt;
    if (!IsRight(state, then, plan, guess)) continue;
    if (right) return std::nullopt;
    right = guess;
  }
  return right;
}

bool WriteOnlyRightGuess(const CheckState& state, PlanBuilder& plan, const Finding& finding,
                         std::vector<Guess> guesses) {
  const std::optional<Guess> right = OnlyRightGuess(state, plan, std::move(guesses));
  if (!right) return false;
  PlanReason reason = ReasonFor(finding, right->evidence);
  reason.action = RepairAction::kRelink;
  reason.safety = RepairSafety::kLossless;
  plan.Flush();
  plan.Write(right->place_bytes, right->bytes, reason);
  plan.Flush();
  return true;
}

std::vector<uint64_t> OneBitAway(uint64_t value, int bits) {
  std::vector<uint64_t> values;
  values.reserve(static_cast<size_t>(bits));
  for (int bit = 0; bit < bits; ++bit) values.push_back(value ^ uint64_t{1} << bit);
  return values;
}

Orphans::Orphans(const CheckState& state) : state_(state), orphans_(state.file_clusters) {
  for (const OrphanRun& run : state.orphans) {
    for (uint64_t i = 0; i < run.clusters; ++i) orphans_.Insert(run.first_cluster + i);
  }
}

bool Orphans::Contain(uint64_t offset_bytes, uint64_t length_bytes) const {
  const uint64_t size = state_.geo().cluster_size();
  const uint64_t end = SaturatingAdd(offset_bytes, length_bytes);
  if (!IsAligned(offset_bytes, size) || length_bytes == 0 || end > state_.file_clusters * size) {
    return false;
  }
  for (uint64_t at = offset_bytes; at < end; at += size) {
    if (!orphans_.Contains(at / size)) return false;
  }
  return true;
}

std::vector<uint64_t> Orphans::Offsets() const {
  std::vector<uint64_t> offsets;
  for (const OrphanRun& run : state_.orphans) {
    for (uint64_t i = 0; i < run.clusters && offsets.size() < kMostOrphans; ++i) {
      offsets.push_back((run.first_cluster + i) << state_.geo().cluster_bits);
    }
  }
  return offsets;
}

}  // namespace qcow2check

// The comparison: expected refcounts against the stored ones.
//
// Needs the finished count. Makes the findings about refcounts, the runs of orphans (stored but
// not referenced; classified later), the clusters whose COPIED flags must be looked at, and the
// image end offset. Compares over the union of what is stored and what is referenced. Reads each
// refcount block once; 64 clusters are compared at a time where counts are 0 or 1. Parts of the
// list of blocks are compared by several threads and their results put together in order.
#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_format.h"
#include "checker/check_state.h"
#include "checker/cluster_batch.h"
#include "checker/refcount_findings.h"
#include "common/limits.h"
#include "common/ordered_jobs.h"
#include "common/refcount_block.h"
#include "common/refcount_word.h"

namespace qcow2check {
namespace {

// Adds clusters behind all others, to the last run if they continue it.
void ExtendRuns(std::vector<OrphanRun>& runs, const OrphanRun& next) {
  if (!runs.empty()) {
    OrphanRun& last = runs.back();
    if (last.first_cluster + last.clusters == next.first_cluster && last.stored == next.stored) {
      last.clusters += next.clusters;
      return;
    }
  }
  runs.push_back(next);
}

// Behind the last cluster in the file that something references.
uint64_t EndOfReferences(const CheckState& state) {
  uint64_t last_page = kNoPage;
  for (uint64_t page = state.expected->NextPage(0); page != kNoPage;
       page = state.expected->NextPage(page + 1)) {
    if (page * kPageClusters < state.file_clusters) last_page = page;
  }
  if (last_page == kNoPage) return 0;
  uint64_t end = std::min((last_page + 1) * kPageClusters, state.file_clusters);
  while (end > 0 && state.expected->Get(end - 1) == 0) --end;
  return end;
}

// A count up to the first is a plausible one. Refcounts of up to 1 << the second bits always are.
constexpr uint64_t kSmallCount = 16;
constexpr int kNarrowOrder = 3;
// Runs of refcounts behind the end of the file, of each block, that are told; the rest is counted.
constexpr size_t kPastEndListed = 10'000;

// Some of the refcount blocks, and the clusters from `first_cluster` up to the end of the last one.
struct BlockRange {
  uint64_t first_cluster = 0;
  absl::Span<const RefcountBlock> blocks;
  bool is_last = false;  // also all clusters behind
};

// What comparing a part of the blocks makes, besides sets.
struct ComparePart {
  PartNotes notes;
  std::vector<OrphanRun> orphans;
  uint64_t orphan_clusters = 0;
  uint64_t stored_past_end_in_use = 0;
  bool counted_too_low = false;
  uint64_t end_cluster = 0;  // behind the last one in use or counted
  size_t blocks = 0;
};

// Sets that one thread makes.
struct CompareSets {
  explicit CompareSets(const CheckState& state)
      : mismatched(state.tracked_clusters, state.memory.get()),
        too_high(state.tracked_clusters, state.memory.get()),
        copied_questions(state.tracked_clusters, state.memory.get()),
        stored_is_one(state.tracked_clusters, state.memory.get()) {}

  ClusterSet mismatched;
  ClusterSet too_high;
  ClusterSet copied_questions;
  ClusterSet stored_is_one;
};

// One thread's comparison of some of the parts.
class Comparison {
 public:
  Comparison(const CheckState& state, uint64_t end_of_file)
      : state_(state),
        order_(state.geo().refcount_order),
        block_entries_(state.geo().refcount_block_entries()),
        one_pattern_(OnePattern(order_)),
        end_of_file_(end_of_file),
        // Without lazy refcounts the dirty bit is never set, but a set bit says the same.
        lazy_(state.header.Has(kDirty) && state.header.Has(kLazyRefcounts)),
        mapping_is_complete_(state.coverage.complete() && !state.l2_tables.empty()),
        batch_(state.LooksForHoles()),
        sets_(state),
        findings_(state.geo().cluster_bits) {}

  ComparePart Compare(const BlockRange& range);

  CompareSets& sets() { return sets_; }

 private:
  static uint64_t OnePattern(int refcount_order);
  void CompareBlock(const RefcountBlock& block, const ClusterBatch::Piece& piece, uint64_t begin,
                    uint64_t length);
  void ComparePiece(const RefcountBlock& block, uint64_t first, absl::Span<const uint8_t> bytes);
  void CompareReadableSectors(const RefcountBlock& block, uint64_t begin,
                              absl::Span<const uint8_t> piece);
  void JudgeBlock(const RefcountBlock& block);
  void CompareAbsent(uint64_t begin, uint64_t end);
  void CompareWord(uint64_t cluster, const RefcountWord& stored, const uint8_t* entries);
  void CompareCluster(uint64_t cluster, uint64_t stored);
  void CountPastEnd(uint64_t cluster, uint64_t stored);
  bool MappingMayBeLost(uint64_t stored, uint64_t expected) const;
  void AskAboutCopied(uint64_t cluster, const RefcountWord& stored);
  RefcountWord LoadWord(const uint8_t* entries) const;
  uint64_t Stored(const uint8_t* entries, uint64_t index) const {
    return entries == nullptr ? 0 : LoadRefcount(entries, index, order_);
  }

  const CheckState& state_;
  const int order_;
  const uint64_t block_entries_;
  const uint64_t one_pattern_;
  // Behind the last cluster that can be referenced: what starts in the file may end in the next.
  const uint64_t end_of_file_;
  const bool lazy_;
  const bool mapping_is_complete_;
  ClusterBatch batch_;
  CompareSets sets_;
  ComparePart* part_ = nullptr;
  RefcountFindings findings_;
  uint64_t block_mismatches_ = 0;  // in the block at hand
  uint64_t block_used_ = 0;
  bool block_is_too_low_ = false;
  // Refcounts of the block at hand behind the end of the file: the first runs, and how many more.
  std::vector<OrphanRun> past_end_;
  uint64_t more_past_end_ = 0;
};

// Eight bytes of refcounts of 1, in native order.
uint64_t Comparison::OnePattern(int refcount_order) {
  uint8_t ones[8] = {};
  for (uint64_t i = 0; i < 64u >> refcount_order; ++i) StoreRefcount(ones, i, refcount_order, 1);
  uint64_t pattern = 0;
  std::memcpy(&pattern, ones, sizeof(pattern));
  return pattern;
}

RefcountWord Comparison::LoadWord(const uint8_t* entries) const {
  if (order_ == 4) return LoadRefcountWord16(entries);
  // Most words are all ones or all zeros, and then it does not matter how wide a refcount is.
  uint64_t not_zero = 0, not_one = 0;
  for (uint64_t at = 0; at < kWordClusters << order_ >> 3; at += 8) {
    uint64_t eight_bytes = 0;
    std::memcpy(&eight_bytes, entries + at, sizeof(eight_bytes));
    not_zero |= eight_bytes;
    not_one |= eight_bytes ^ one_pattern_;
  }
  if (not_one == 0) return {0, ~uint64_t{0}};
  if (not_zero == 0) return {};
  return LoadRefcountWord(entries, order_);
}

// A small count for what nothing references says more about the mapping than about the block.
// Narrow counts are always small.
bool Comparison::MappingMayBeLost(uint64_t stored, uint64_t expected) const {
  const bool may_be_lost = order_ > kNarrowOrder || !mapping_is_complete_;
  return expected == 0 && stored <= kSmallCount && may_be_lost;
}

// Making or reverting to a snapshot first counts everything once more. If that is where it ended,
// the block is right as far as it goes.
bool MaySnapshotBeMissing(uint64_t stored, uint64_t expected) {
  return expected != 0 && stored == expected + 1;
}

void Comparison::CountPastEnd(uint64_t cluster, uint64_t stored) {
  if (stored == 0) return;
  if (cluster < state_.tracked_clusters && state_.past_end->Contains(cluster)) {
    ++part_->stored_past_end_in_use;
    return;
  }
  // A file that was cut off, or not made as long as planned, leaves small counts behind its end.
  if (order_ <= kNarrowOrder || stored > kSmallCount) ++block_mismatches_;
  if (past_end_.size() < kPastEndListed) {
    ExtendRuns(past_end_, {cluster, 1, stored});
  } else {
    ++more_past_end_;
  }
}

void Comparison::CompareCluster(uint64_t cluster, uint64_t stored) {
  if (cluster >= end_of_file_) {
    CountPastEnd(cluster, stored);
    return;
  }
  uint64_t expected = state_.expected->Get(cluster);
  if (stored != 0 || expected != 0) part_->end_cluster = std::max(part_->end_cluster, cluster + 1);
  const uint64_t max = state_.geo().refcount_max();
  if (expected > max) {
    findings_.Add(FindingCode::kRefcountOverflow, cluster, stored, expected, expected - max,
                  part_->notes);
    expected = max;
    sets_.mismatched.Insert(cluster);
  }
  if (stored == expected) return;
  if (!MappingMayBeLost(stored, expected) && !MaySnapshotBeMissing(stored, expected)) {
    ++block_mismatches_;
  }
  sets_.mismatched.Insert(cluster);
  if (stored < expected) {
    const FindingCode code = lazy_         ? FindingCode::kRefcountLazy
                             : stored == 0 ? FindingCode::kRefcountZeroInUse
                                           : FindingCode::kRefcountTooLow;
    findings_.Add(code, cluster, stored, expected, 1, part_->notes);
    block_is_too_low_ |= !lazy_;
  } else if (expected != 0) {
    sets_.too_high.Insert(cluster);
    findings_.Add(FindingCode::kRefcountTooHigh, cluster, stored, expected, 1, part_->notes);
  } else {
    ++part_->orphan_clusters;
    ExtendRuns(part_->orphans, {cluster, 1, stored});
  }
}

void Comparison::AskAboutCopied(uint64_t cluster, const RefcountWord& stored) {
  uint64_t questions = (state_.copied->Word(cluster) & ~stored.is_one) |
                       (state_.not_copied->Word(cluster) & stored.is_one);
  for (; questions != 0; questions &= questions - 1) {
    const uint64_t bit = static_cast<uint64_t>(__builtin_ctzll(questions));
    sets_.copied_questions.Insert(cluster + bit);
    if (((stored.is_one >> bit) & 1) != 0) sets_.stored_is_one.Insert(cluster + bit);
  }
}

// 64 clusters from `cluster` on, whose stored refcounts are at `entries` (nullptr: all 0).
void Comparison::CompareWord(uint64_t cluster, const RefcountWord& stored, const uint8_t* entries) {
  if (cluster < state_.tracked_clusters) AskAboutCopied(cluster, stored);
  const bool in_file = cluster + kWordClusters <= end_of_file_;
  uint64_t bits = 0;
  uint64_t differ = ~uint64_t{0};
  if (in_file && state_.expected->BitWord(cluster, bits)) {
    differ = ~((bits & stored.is_one) | (~bits & stored.is_zero));
    const uint64_t in_use = bits | ~stored.is_zero;
    if (in_use != 0) {
      const uint64_t top = 63 - static_cast<uint64_t>(__builtin_clzll(in_use));
      part_->end_cluster = std::max(part_->end_cluster, cluster + top + 1);
    }
  } else if (const uint8_t* counts = in_file ? state_.expected->ByteCounts(cluster) : nullptr) {
    differ = entries == nullptr ? ~uint64_t{0}
             : order_ == 4      ? DifferingRefcounts16(entries, counts)
                                : DifferingRefcounts(entries, order_, counts);
    // Equal, in use or not: only the last one in use is of interest.
    for (uint64_t i = kWordClusters; i > 0 && cluster + i > part_->end_cluster; --i) {
      if (counts[i - 1] != 0) part_->end_cluster = cluster + i;
    }
  } else if (cluster >= end_of_file_) {
    differ = ~stored.is_zero;
  }
  for (; differ != 0; differ &= differ - 1) {
    const uint64_t bit = static_cast<uint64_t>(__builtin_ctzll(differ));
    CompareCluster(cluster + bit, Stored(entries, bit));
  }
}

void Comparison::ComparePiece(const RefcountBlock& block, uint64_t first,
                              absl::Span<const uint8_t> bytes) {
  const uint64_t word_bytes = kWordClusters << order_ >> 3;
  const uint64_t base = SaturatingMultiply(block.table_index, block_entries_);
  for (uint64_t at = 0; at < bytes.size(); at += word_bytes) {
    const uint64_t cluster = SaturatingAdd(base, first + (at << 3 >> order_));
    // So far behind the end that no offset reaches it: nothing can be counted there.
    if (cluster > kSaturated >> state_.geo().cluster_bits) return;
    const RefcountWord word = LoadWord(&bytes[at]);
    block_used_ += static_cast<uint64_t>(__builtin_popcountll(~word.is_zero));
    CompareWord(cluster, word, &bytes[at]);
  }
}

// Refcounts that cannot be read are unknown, not 0: nothing is said of their clusters.
void Comparison::CompareReadableSectors(const RefcountBlock& block, uint64_t begin,
                                        absl::Span<const uint8_t> piece) {
  uint8_t sector[kSectorBytes];
  for (uint64_t at = 0; at < piece.size(); at += kSectorBytes) {
    const HostOffset place = {block.offset_bytes + begin + at};
    if (!state_.file.ReadAt(place, absl::MakeSpan(sector)).ok()) continue;
    ComparePiece(block, (begin + at) << 3 >> order_, sector);
  }
}

// Most counts contradict the walk, and not because all are 0: it holds something else. What it
// says of clusters behind the end of the file then means nothing.
void Comparison::JudgeBlock(const RefcountBlock& block) {
  findings_.End(part_->notes);
  if (block_mismatches_ >= 64 && block_mismatches_ * 2 > block_used_ &&
      block_used_ * 4 >= block_entries_) {
    part_->notes.Add({.code = FindingCode::kRefcountBlockGarbage,
                      .structure = Structure::kRefcountBlock,
                      .host_offset = HostOffset{block.offset_bytes},
                      .length_bytes = state_.geo().cluster_size(),
                      .clusters = 1,
                      .count = 0,  // its wrong refcounts count
                      .confidence = Confidence::kProbable,
                      .detail = absl::StrFormat("%d of its %d refcounts are wrong",
                                                block_mismatches_, block_entries_)});
    return;
  }
  // A block of nothing but zeros was lost, and says nothing of the pointers.
  part_->counted_too_low |= block_is_too_low_ && block_used_ != 0;
  for (size_t i = 0; i < past_end_.size(); ++i) {
    const OrphanRun& run = past_end_[i];
    const bool is_last = i + 1 == past_end_.size();
    part_->notes.Add({.code = FindingCode::kRefcountPastEnd,
                      .structure = Structure::kRefcountBlock,
                      .host_offset = state_.geo().OffsetOf({run.first_cluster}),
                      .length_bytes = run.clusters << state_.geo().cluster_bits,
                      .clusters = run.clusters,
                      .count = run.clusters + (is_last ? more_past_end_ : 0),
                      .stored = run.stored,
                      .expected = 0});
  }
}

void Comparison::CompareBlock(const RefcountBlock& block, const ClusterBatch::Piece& piece,
                              uint64_t begin, uint64_t length) {
  const uint64_t first = begin << 3 >> order_;
  const absl::Span<const uint8_t> bytes(piece.bytes, piece.bytes != nullptr ? length : 0);
  if (piece.bytes == nullptr) {
    const uint64_t base = SaturatingMultiply(block.table_index, block_entries_);
    CompareAbsent(SaturatingAdd(base, first), SaturatingAdd(base, first + (length << 3 >> order_)));
  } else if (piece.complete) {
    ComparePiece(block, first, bytes);
  } else {
    CompareReadableSectors(block, begin, bytes);
  }
}

// Compares blocks that follow each other in the list, and the clusters between them.
ComparePart Comparison::Compare(const BlockRange& range) {
  ComparePart part = {.notes = state_.NewPart()};
  if (!state_.MayGoOn()) return part;
  part.blocks = range.blocks.size();
  part_ = &part;
  const uint64_t limit = state_.tracked_clusters;
  const uint64_t block_bytes = state_.geo().cluster_size();
  const uint64_t piece_bytes = std::min(block_bytes, kMaxPieceBytes);
  std::vector<uint64_t> offsets;
  for (const RefcountBlock& block : range.blocks) offsets.push_back(block.offset_bytes);
  const bool at_once = piece_bytes == block_bytes;
  if (at_once) {
    batch_.Read(state_.file, offsets, block_bytes, Structure::kRefcountBlock, part.notes);
  }
  uint64_t next = range.first_cluster;
  for (size_t i = 0; i < range.blocks.size(); ++i) {
    const RefcountBlock& block = range.blocks[i];
    const uint64_t begin = SaturatingMultiply(block.table_index, block_entries_);
    if (next < std::min(begin, limit)) CompareAbsent(next, std::min(begin, limit));
    next = SaturatingAdd(begin, block_entries_);
    block_mismatches_ = block_used_ = 0;
    block_is_too_low_ = false;
    past_end_.clear();
    more_past_end_ = 0;
    if (at_once) CompareBlock(block, batch_.pieces()[i], 0, block_bytes);
    for (uint64_t at = 0; at < block_bytes && !at_once; at += piece_bytes) {
      batch_.Read(state_.file, {block.offset_bytes + at}, piece_bytes, Structure::kRefcountBlock,
                  part.notes);
      CompareBlock(block, batch_.pieces()[0], at, piece_bytes);
    }
    JudgeBlock(block);
  }
  if (range.is_last && next < limit) CompareAbsent(next, limit);
  findings_.End(part.notes);
  return part;
}

// Clusters [begin, end) for which no block exists: their refcount is 0.
void Comparison::CompareAbsent(uint64_t begin, uint64_t end) {
  for (uint64_t cluster = begin; cluster < end;) {
    const uint64_t page = cluster / kPageClusters;
    const uint64_t next = std::min({state_.expected->NextPage(page), state_.copied->NextPage(page),
                                    state_.not_copied->NextPage(page)});
    if (next == kNoPage) return;
    cluster = std::max(cluster, next * kPageClusters);
    const uint64_t page_end = std::min(end, (next + 1) * kPageClusters);
    for (; cluster < page_end; cluster += kWordClusters) CompareWord(cluster, {}, nullptr);
  }
}

// A block's cluster must have exactly one reference; every reference beyond counts, as each block
// is compared when it is counted itself.
void CheckSharedBlocks(CheckState& state) {
  std::vector<RefcountBlock> blocks = state.refcount_blocks;
  std::sort(blocks.begin(), blocks.end(), [](const RefcountBlock& a, const RefcountBlock& b) {
    return a.offset_bytes < b.offset_bytes;
  });
  for (size_t i = 0; i < blocks.size();) {
    size_t end = i + 1;
    while (end < blocks.size() && blocks[end].offset_bytes == blocks[i].offset_bytes) ++end;
    const uint64_t cluster = state.geo().ClusterOf(HostOffset{blocks[i].offset_bytes}).value;
    const uint64_t references = state.expected->Get(cluster);
    const uint64_t same = end - i;
    if (references > 1) {
      state.findings.Add({.code = FindingCode::kRefcountBlockShared,
                          .structure = Structure::kRefcountBlock,
                          .host_offset = HostOffset{blocks[i].offset_bytes},
                          .length_bytes = state.geo().cluster_size(),
                          .clusters = 1,
                          .count = references > same ? same : same - 1,
                          .stored = std::nullopt,
                          .detail = absl::StrFormat("it is referenced %d times", references)});
    }
    i = end;
  }
}

// Divides the blocks into parts; with the clusters before, between and behind them they cover all.
std::vector<BlockRange> DivideBlocks(const CheckState& state,
                                     absl::Span<const RefcountBlock> blocks) {
  const size_t most = std::max<uint64_t>(1, state.options.part_bytes / state.geo().cluster_size());
  std::vector<BlockRange> ranges;
  uint64_t next = 0;
  for (size_t begin = 0; begin < blocks.size(); begin += most) {
    ranges.push_back({next, blocks.subspan(begin, most), false});
    const uint64_t entries = state.geo().refcount_block_entries();
    next = SaturatingAdd(SaturatingMultiply(ranges.back().blocks.back().table_index, entries),
                         entries);
  }
  if (ranges.empty()) ranges.push_back({});
  ranges.back().is_last = true;
  return ranges;
}

void CompareBlocks(CheckState& state, absl::Span<const RefcountBlock> blocks) {
  const std::vector<BlockRange> ranges = DivideBlocks(state, blocks);
  const uint64_t threads = std::clamp<uint64_t>(ranges.size(), 1, state.threads());
  const uint64_t end_of_file =
      state.file_clusters + (state.expected->Get(state.file_clusters) != 0 ? 1 : 0);
  std::vector<std::unique_ptr<Comparison>> comparisons;
  for (uint64_t i = 0; i < threads; ++i) {
    comparisons.push_back(std::make_unique<Comparison>(state, end_of_file));
  }
  uint64_t end_cluster = 0;
  RunInOrder<ComparePart>(
      ranges.size(), threads,
      [&](uint64_t worker, uint64_t range) { return comparisons[worker]->Compare(ranges[range]); },
      [&](ComparePart part) {
        state.Absorb(std::move(part.notes));
        state.memory->Take(part.orphans.size() * sizeof(OrphanRun));
        for (const OrphanRun& run : part.orphans) ExtendRuns(state.orphans, run);
        state.orphan_clusters += part.orphan_clusters;
        state.stored_past_end_in_use += part.stored_past_end_in_use;
        state.counted_too_low |= part.counted_too_low;
        end_cluster = std::max(end_cluster, part.end_cluster);
        state.coverage.refcount_blocks += part.blocks;
      });
  for (const auto& comparison : comparisons) {
    state.mismatched->Absorb(comparison->sets().mismatched);
    state.too_high->Absorb(comparison->sets().too_high);
    state.copied_questions->Absorb(comparison->sets().copied_questions);
    state.stored_is_one->Absorb(comparison->sets().stored_is_one);
  }
  const uint64_t end = std::max(end_cluster, EndOfReferences(state));
  state.statistics.image_end_offset = end << state.geo().cluster_bits;
}

// An image may name one block for many ranges, and each of its refcounts may be a run of orphans.
absl::Span<const RefcountBlock> BlocksWithinReason(CheckState& state) {
  const absl::Span<const RefcountBlock> blocks = state.refcount_blocks;
  absl::flat_hash_set<uint64_t> seen;
  bool is_first_repeat = true;
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (seen.insert(blocks[i].offset_bytes).second) continue;
    const uint64_t cost = is_first_repeat ? 0 : 4 * state.geo().refcount_block_entries();
    if (!state.Spend(cost, Structure::kRefcountBlock)) return blocks.first(i);
    is_first_repeat = false;
  }
  return blocks;
}

}  // namespace

void CompareRefcounts(CheckState& state) {
  if (!state.refcounts_readable) {
    state.statistics.image_end_offset = EndOfReferences(state) << state.geo().cluster_bits;
    return;
  }
  CheckSharedBlocks(state);
  CompareBlocks(state, BlocksWithinReason(state));
}

}  // namespace qcow2check

// The comparison: expected refcounts against the stored ones.
//
// Needs the finished count. Makes the findings about refcounts, the runs of orphans (stored but
// not referenced; classified later), the clusters whose COPIED flags must be looked at, and the
// image end offset. Compares over the union of what is stored and what is referenced. Reads each
// refcount block once; 64 clusters are compared at a time where counts are 0 or 1.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "checker/check_state.h"
#include "common/limits.h"
#include "common/refcount_block.h"

namespace qcow2check {
namespace {

constexpr uint64_t kWordClusters = 64;

// 64 stored refcounts as two bit masks.
struct StoredWord {
  uint64_t is_zero = ~uint64_t{0};
  uint64_t is_one = 0;
};

// Adds a cluster behind all others, to the last run if it continues it.
void ExtendRuns(std::vector<OrphanRun>& runs, uint64_t cluster, uint64_t stored) {
  if (!runs.empty()) {
    OrphanRun& last = runs.back();
    if (last.first_cluster + last.clusters == cluster && last.stored == stored) {
      ++last.clusters;
      return;
    }
  }
  runs.push_back({cluster, 1, stored});
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

class Comparison {
 public:
  explicit Comparison(CheckState& state)
      : state_(state),
        order_(state.geo().refcount_order),
        block_entries_(state.geo().refcount_block_entries()),
        end_of_file_(state.file_clusters + (state.expected->Get(state.file_clusters) != 0 ? 1 : 0)),
        // Without lazy refcounts the dirty bit is never set, but a set bit says the same.
        lazy_(state.header.Has(kDirty) && state.header.Has(kLazyRefcounts)) {}

  void Run();

 private:
  void CompareBlock(const RefcountBlock& block);
  void ComparePiece(const RefcountBlock& block, uint64_t first, absl::Span<const uint8_t> bytes);
  void CompareReadableSectors(const RefcountBlock& block, uint64_t begin,
                              absl::Span<uint8_t> piece);
  void CompareAbsent(uint64_t begin, uint64_t end);
  void CompareWord(uint64_t cluster, const StoredWord& stored, const uint8_t* entries);
  void CompareCluster(uint64_t cluster, uint64_t stored);
  void CountPastEnd(uint64_t cluster, uint64_t stored);
  bool MappingMayBeLost(uint64_t stored, uint64_t expected) const;
  void AskAboutCopied(uint64_t cluster, const StoredWord& stored);
  void AddRefcountFinding(FindingCode code, uint64_t cluster, uint64_t stored, uint64_t expected,
                          uint64_t count);
  StoredWord LoadWord(const uint8_t* entries) const;
  uint64_t Stored(const uint8_t* entries, uint64_t index) const {
    return entries == nullptr ? 0 : LoadRefcount(entries, index, order_);
  }
  void CheckSharedBlocks();

  CheckState& state_;
  const int order_;
  const uint64_t block_entries_;
  // Behind the last cluster that can be referenced: what starts in the file may end in the next.
  const uint64_t end_of_file_;
  const bool lazy_;
  uint64_t end_cluster_ = 0;       // behind the last one in use or counted
  uint64_t block_mismatches_ = 0;  // in the block at hand
  uint64_t block_used_ = 0;
  std::vector<OrphanRun> past_end_;  // refcounts of the block at hand behind the end of the file
};

StoredWord Comparison::LoadWord(const uint8_t* entries) const {
  StoredWord word = {0, 0};
  const auto add = [&word](uint64_t i, uint64_t value) {
    word.is_zero |= static_cast<uint64_t>(value == 0) << i;
    word.is_one |= static_cast<uint64_t>(value == 1) << i;
  };
  switch (order_) {
    case 3:
      for (uint64_t i = 0; i < kWordClusters; ++i) add(i, entries[i]);
      break;
    case 4:
      for (uint64_t i = 0; i < kWordClusters; ++i) add(i, Load16(entries + i * 2));
      break;
    default:
      for (uint64_t i = 0; i < kWordClusters; ++i) add(i, LoadRefcount(entries, i, order_));
  }
  return word;
}

void Comparison::AddRefcountFinding(FindingCode code, uint64_t cluster, uint64_t stored,
                                    uint64_t expected, uint64_t count) {
  const uint64_t size = state_.geo().cluster_size();
  state_.findings.Add({.code = code,
                       .structure = Structure::kRefcountBlock,
                       .host_offset = state_.geo().OffsetOf({cluster}),
                       .length_bytes = size,
                       .clusters = 1,
                       .count = count,
                       .stored = stored,
                       .expected = expected});
}

// A small count for what nothing references says more about the mapping than about the block.
// Narrow counts are always small.
bool Comparison::MappingMayBeLost(uint64_t stored, uint64_t expected) const {
  constexpr uint64_t kSmall = 16;
  constexpr int kNarrow = 3;
  const bool may_be_lost =
      order_ > kNarrow || !state_.coverage.complete() || state_.l2_tables.empty();
  return expected == 0 && stored <= kSmall && may_be_lost;
}

void Comparison::CountPastEnd(uint64_t cluster, uint64_t stored) {
  if (stored == 0) return;
  if (cluster < state_.tracked_clusters && state_.past_end->Contains(cluster)) {
    ++state_.stored_past_end_in_use;
    return;
  }
  ++block_mismatches_;
  ExtendRuns(past_end_, cluster, stored);
}

void Comparison::CompareCluster(uint64_t cluster, uint64_t stored) {
  if (cluster >= end_of_file_) {
    CountPastEnd(cluster, stored);
    return;
  }
  uint64_t expected = state_.expected->Get(cluster);
  if (stored != 0 || expected != 0) end_cluster_ = std::max(end_cluster_, cluster + 1);
  const uint64_t max = state_.geo().refcount_max();
  if (expected > max) {
    AddRefcountFinding(FindingCode::kRefcountOverflow, cluster, stored, expected, expected - max);
    expected = max;
    state_.mismatched->Insert(cluster);
  }
  if (stored == expected) return;
  if (!MappingMayBeLost(stored, expected)) ++block_mismatches_;
  state_.mismatched->Insert(cluster);
  if (stored < expected) {
    const FindingCode code = lazy_         ? FindingCode::kRefcountLazy
                             : stored == 0 ? FindingCode::kRefcountZeroInUse
                                           : FindingCode::kRefcountTooLow;
    AddRefcountFinding(code, cluster, stored, expected, 1);
  } else if (expected != 0) {
    AddRefcountFinding(FindingCode::kRefcountTooHigh, cluster, stored, expected, 1);
  } else {
    ++state_.orphan_clusters;
    ExtendRuns(state_.orphans, cluster, stored);
  }
}

void Comparison::AskAboutCopied(uint64_t cluster, const StoredWord& stored) {
  uint64_t questions = (state_.copied->Word(cluster) & ~stored.is_one) |
                       (state_.not_copied->Word(cluster) & stored.is_one);
  for (; questions != 0; questions &= questions - 1) {
    const uint64_t bit = static_cast<uint64_t>(__builtin_ctzll(questions));
    state_.copied_questions->Insert(cluster + bit);
    if (((stored.is_one >> bit) & 1) != 0) state_.stored_is_one->Insert(cluster + bit);
  }
}

// 64 clusters from `cluster` on, whose stored refcounts are at `entries` (nullptr: all 0).
void Comparison::CompareWord(uint64_t cluster, const StoredWord& stored, const uint8_t* entries) {
  if (cluster < state_.tracked_clusters) AskAboutCopied(cluster, stored);
  uint64_t bits = 0;
  uint64_t differ = ~uint64_t{0};
  if (cluster + kWordClusters <= end_of_file_ && state_.expected->BitWord(cluster, bits)) {
    differ = ~((bits & stored.is_one) | (~bits & stored.is_zero));
    const uint64_t in_use = bits | ~stored.is_zero;
    if (in_use != 0) {
      const uint64_t top = 63 - static_cast<uint64_t>(__builtin_clzll(in_use));
      end_cluster_ = std::max(end_cluster_, cluster + top + 1);
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
    const StoredWord word = LoadWord(&bytes[at]);
    block_used_ += static_cast<uint64_t>(__builtin_popcountll(~word.is_zero));
    CompareWord(cluster, word, &bytes[at]);
  }
}

// Refcounts that cannot be read are unknown, not 0: nothing is said of their clusters.
void Comparison::CompareReadableSectors(const RefcountBlock& block, uint64_t begin,
                                        absl::Span<uint8_t> piece) {
  for (uint64_t at = 0; at < piece.size(); at += kSectorBytes) {
    const absl::Span<uint8_t> sector = piece.subspan(at, kSectorBytes);
    if (!state_.file.ReadAt(HostOffset{block.offset_bytes + begin + at}, sector).ok()) continue;
    ComparePiece(block, (begin + at) << 3 >> order_, sector);
  }
}

void Comparison::CompareBlock(const RefcountBlock& block) {
  const uint64_t size = state_.geo().cluster_size();
  std::vector<uint8_t> piece(std::min(size, kMaxPieceBytes));
  block_mismatches_ = 0;
  block_used_ = 0;
  past_end_.clear();
  for (uint64_t at = 0; at < size; at += piece.size()) {
    if (state_.Read(HostOffset{block.offset_bytes + at}, absl::MakeSpan(piece),
                    Structure::kRefcountBlock)) {
      ComparePiece(block, at << 3 >> order_, piece);
    } else {
      CompareReadableSectors(block, at, absl::MakeSpan(piece));
    }
  }
  ++state_.coverage.refcount_blocks;
  // Most counts contradict the walk, and not because all are 0: it holds something else. What it
  // says of clusters behind the end of the file then means nothing.
  if (block_mismatches_ >= 64 && block_mismatches_ * 2 > block_used_ &&
      block_used_ * 4 >= block_entries_) {
    state_.findings.Add({.code = FindingCode::kRefcountBlockGarbage,
                         .structure = Structure::kRefcountBlock,
                         .host_offset = HostOffset{block.offset_bytes},
                         .length_bytes = size,
                         .clusters = 1,
                         .count = 0,  // its wrong refcounts count
                         .confidence = Confidence::kProbable,
                         .detail = absl::StrFormat("%d of its %d refcounts are wrong",
                                                   block_mismatches_, block_entries_)});
    return;
  }
  for (const OrphanRun& run : past_end_) {
    state_.findings.Add({.code = FindingCode::kRefcountPastEnd,
                         .structure = Structure::kRefcountBlock,
                         .host_offset = state_.geo().OffsetOf({run.first_cluster}),
                         .length_bytes = run.clusters << state_.geo().cluster_bits,
                         .clusters = run.clusters,
                         .count = run.clusters,
                         .stored = run.stored,
                         .expected = 0});
  }
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
void Comparison::CheckSharedBlocks() {
  std::vector<RefcountBlock> blocks = state_.refcount_blocks;
  std::sort(blocks.begin(), blocks.end(), [](const RefcountBlock& a, const RefcountBlock& b) {
    return a.offset_bytes < b.offset_bytes;
  });
  for (size_t i = 0; i < blocks.size();) {
    size_t end = i + 1;
    while (end < blocks.size() && blocks[end].offset_bytes == blocks[i].offset_bytes) ++end;
    const uint64_t cluster = state_.geo().ClusterOf(HostOffset{blocks[i].offset_bytes}).value;
    const uint64_t references = state_.expected->Get(cluster);
    const uint64_t same = end - i;
    if (references > 1) {
      state_.findings.Add({.code = FindingCode::kRefcountBlockShared,
                           .structure = Structure::kRefcountBlock,
                           .host_offset = HostOffset{blocks[i].offset_bytes},
                           .length_bytes = state_.geo().cluster_size(),
                           .clusters = 1,
                           .count = references > same ? same : same - 1,
                           .stored = std::nullopt,
                           .detail = absl::StrFormat("it is referenced %d times", references)});
    }
    i = end;
  }
}

void Comparison::Run() {
  CheckSharedBlocks();
  uint64_t next = 0;  // first cluster that is not compared yet
  // An image may name one block for many ranges; a sane one has no more blocks than clusters.
  uint64_t blocks_left = state_.file_clusters + 1024;
  for (const RefcountBlock& block : state_.refcount_blocks) {
    const uint64_t begin = SaturatingMultiply(block.table_index, block_entries_);
    const uint64_t limit = state_.tracked_clusters;
    if (next < std::min(begin, limit)) CompareAbsent(next, std::min(begin, limit));
    next = SaturatingAdd(begin, block_entries_);
    if (blocks_left-- == 0) {
      state_.findings.Add({.code = FindingCode::kLimitReached,
                           .structure = Structure::kRefcountBlock,
                           .host_offset = HostOffset{block.offset_bytes},
                           .detail = "one refcount block is named for too many ranges"});
      state_.Skip("refcounts of ranges that share a block", "limit reached");
      break;
    }
    CompareBlock(block);
  }
  if (next < state_.tracked_clusters) CompareAbsent(next, state_.tracked_clusters);
  const uint64_t end = std::max(end_cluster_, EndOfReferences(state_));
  state_.statistics.image_end_offset = end << state_.geo().cluster_bits;
}

}  // namespace

void CompareRefcounts(CheckState& state) {
  if (!state.refcounts_readable) {
    state.statistics.image_end_offset = EndOfReferences(state) << state.geo().cluster_bits;
    return;
  }
  Comparison(state).Run();
}

}  // namespace qcow2check

// The judgement after the walk: refcounts, COPIED flags, clusters that are used twice, totals.
#include <algorithm>
#include <utility>

#include "tests/reference_walk.h"

namespace qcow2check::testing {

uint64_t ReferenceWalk::Stored(uint64_t cluster) const {
  const auto block = blocks_.find(cluster / block_entries_);
  if (block == blocks_.end()) return 0;
  uint64_t value = 0;
  const uint64_t width = static_cast<uint64_t>(refcount_bits_);
  const uint64_t first_bit = cluster % block_entries_ * width;
  if (width < 8) {
    // Inside a byte the lowest bits are the first entry.
    return (Byte(block->second + first_bit / 8) >> first_bit % 8) & ((1u << width) - 1);
  }
  for (uint64_t i = 0; i < width / 8; ++i) {
    value = value << 8 | Byte(block->second + first_bit / 8 + i);
  }
  return value;
}

void ReferenceWalk::CompareRefcounts() {
  const bool lazy = Bit(header_.incompatible_features, 0) && Bit(header_.compatible_features, 0);
  const uint64_t max = refcount_bits_ == 64 ? ~uint64_t{0} : (uint64_t{1} << refcount_bits_) - 1;
  // What starts in the file may end in the cluster behind it.
  compared_clusters_ = file_clusters_;
  while (Expected(compared_clusters_) != 0) ++compared_clusters_;
  for (uint64_t cluster = 0; cluster < compared_clusters_; ++cluster) {
    const uint64_t stored = Stored(cluster);
    const uint64_t references = Expected(cluster);
    const uint64_t expected = std::min(references, max);
    report_.expected_refcounts.push_back(references);
    report_.stored_refcounts.push_back(stored);
    if (references > max) {
      Add(FindingCode::kRefcountOverflow, references - max);
      mismatched_.insert(cluster);
    }
    if (stored != 0 || references != 0) report_.image_end_offset = (cluster + 1) * cluster_size_;
    if (stored == expected) continue;
    mismatched_.insert(cluster);
    report_.mismatches.insert({cluster, stored, expected});
    if (stored < expected) {
      Add(lazy          ? FindingCode::kRefcountLazy
          : stored == 0 ? FindingCode::kRefcountZeroInUse
                        : FindingCode::kRefcountTooLow);
    } else if (expected != 0) {
      Add(FindingCode::kRefcountTooHigh);
    } else {
      report_.orphans.insert(cluster);
      Add(FindingCode::kLeakedCluster);
    }
  }
}

// What leads so far behind the end is not compared with the refcounts there: the checker would have
// to remember all of it.
bool ReferenceWalk::IsTooFar(uint64_t cluster) const {
  constexpr uint64_t kPageClusters = 4096;
  return cluster >= (file_clusters_ * 2 + (uint64_t{1} << 20)) / kPageClusters * kPageClusters;
}

// A refcount there is a leak, unless a pointer leads there, which has been counted.
void ReferenceWalk::CompareRefcountsBehindEnd() {
  for (const auto& [index, block] : blocks_) {
    for (uint64_t i = 0; i < block_entries_; ++i) {
      const uint64_t cluster = index * block_entries_ + i;
      if (cluster < compared_clusters_ || Stored(cluster) == 0) continue;
      if (pointed_behind_end_.count(cluster) != 0 && !IsTooFar(cluster)) continue;
      report_.mismatches.insert({cluster, Stored(cluster), 0});
      Add(FindingCode::kRefcountPastEnd);
    }
  }
}

// Blocks are counted last and each is looked at when it is: the first one finds only what else uses
// its cluster, every further entry for it finds the block itself, too.
void ReferenceWalk::JudgeSharedBlocks() {
  std::map<uint64_t, uint64_t> left = {};
  for (const auto& [index, block] : blocks_) ++left[block / cluster_size_];
  for (const auto& [index, block] : blocks_) {
    const uint64_t cluster = block / cluster_size_;
    if (Expected(cluster) - --left[cluster] != 1) Add(FindingCode::kRefcountBlockShared);
  }
}

void ReferenceWalk::JudgeCopied() {
  const bool lazy = Bit(header_.incompatible_features, 0) && Bit(header_.compatible_features, 0);
  for (const CopiedClaim& claim : copied_claims_) {
    if (claim.always) {
      if (!claim.copied) AddAt(FindingCode::kCopiedWrong, claim.place);
      continue;
    }
    if (!report_.refcounts_readable) continue;
    if (claim.copied == (!IsTooFar(claim.cluster) && Stored(claim.cluster) == 1)) continue;
    const bool is_one = claim.cluster < file_clusters_ && Expected(claim.cluster) == 1;
    // With lazy refcounts the refcount is what is behind, and the flag is right.
    const bool behind = lazy && claim.copied == is_one;
    AddAt(behind ? FindingCode::kRefcountLazy : FindingCode::kCopiedWrong, claim.place);
  }
}

// --- Clusters that are used twice ---

void ReferenceWalk::JudgeUses() {
  for (const auto& [cluster, uses] : uses_) {
    uint64_t metadata = 0;
    std::set<uint64_t> guests;
    bool misaligned = false, compressed = false, uncompressed = false, refcount_block = false;
    for (const Use& use : uses) {
      misaligned |= use.misaligned;
      compressed |= use.kind == UseKind::kCompressedCluster;
      uncompressed |= use.kind == UseKind::kGuestCluster;
      refcount_block |= use.kind == UseKind::kRefcountBlock;
      if (use.is_guest()) {
        guests.insert(use.guest);
      } else {
        ++metadata;
      }
    }
    // What a misaligned entry reaches into is that entry's fault.
    if (misaligned) continue;
    // A wrong refcount counts the damage already, and so does a shared refcount block.
    uint64_t count = IsMismatched(cluster) ? 0 : 1;
    FindingCode code;
    if (metadata != 0 && !guests.empty()) {
      code = FindingCode::kDataOnMetadata;
    } else if (metadata > 1) {
      code = FindingCode::kMetadataOverlap;
      if (refcount_block) count = 0;
    } else if (uncompressed && (compressed || guests.size() > 1)) {
      code = FindingCode::kCrossLinkedData;  // only compressed clusters may share a host cluster
    } else {
      continue;
    }
    report_.places.emplace(code, cluster * cluster_size_);
    Add(code, count);
  }
}

void ReferenceWalk::JudgeSharedL2Tables() {
  for (const uint64_t table : shared_l2_) {
    report_.places.emplace(FindingCode::kCrossLinkedL2, table);
    Add(FindingCode::kCrossLinkedL2, IsMismatched(table / cluster_size_) ? 0 : 1);
  }
}

void ReferenceWalk::Sum() {
  for (const auto& [code, count] : report_.counts) {
    if (InfoOf(code).tally == Tally::kCorruptions) report_.corruptions += count;
    if (InfoOf(code).tally == Tally::kLeaks) report_.leaks += count;
  }
}

ReferenceReport ReferenceWalk::Run() {
  if (CheckHeader()) {
    report_.walked = true;
    report_.cluster_size = cluster_size_;
    report_.l2_entry_bytes = l2_entry_bytes_;
    report_.total_clusters = CeilDiv(header_.size / 512 * 512, cluster_size_);
    Count(0, cluster_size_, {.kind = UseKind::kHeader});
    WalkSnapshotTable();
    WalkLuksHeader();
    WalkBitmaps();
    WalkActiveL1();
    FindSharedL2Tables();
    for (const L1User& user : l1_users_) CountL1(user);
    for (const L1User& user : l1_users_) WalkL1(user);
    WalkRefcountTable();
    if (report_.refcounts_readable) {
      CompareRefcounts();
      CompareRefcountsBehindEnd();
      JudgeSharedBlocks();
    } else {
      for (uint64_t cluster = 0; cluster < file_clusters_; ++cluster) {
        if (Expected(cluster) != 0) report_.image_end_offset = (cluster + 1) * cluster_size_;
      }
    }
    JudgeCopied();
    JudgeUses();
    JudgeSharedL2Tables();
  }
  Sum();
  return std::move(report_);
}

}  // namespace qcow2check::testing

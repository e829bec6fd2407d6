// How often each host cluster is referenced, as the walk finds it: the expected refcounts.
//
// Adaptive: a page of 4,096 clusters costs a bit while all its counts are 0 or all are 1, a bit a
// cluster while they are 0 or 1, and 1, 4 or 8 bytes a cluster from the first count that needs
// them. Counts saturate at 2^64-1. Not thread-safe, but for reading: threads count in maps of their
// own, which are added up afterwards.
#ifndef QCOW2CHECK_COMMON_REFCOUNT_MAP_H_
#define QCOW2CHECK_COMMON_REFCOUNT_MAP_H_

#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"
#include "common/page_directory.h"

namespace qcow2check {

class RefcountMap {
 public:
  // For clusters 0..cluster_count-1.
  explicit RefcountMap(uint64_t cluster_count, MemoryBudget* budget = nullptr)
      : pages_(cluster_count, budget) {}

  // Adds `weight` (>= 1) references; true if the cluster had none before.
  bool Add(uint64_t cluster, uint64_t weight) {
    Page& page = pages_.GetOrCreate(cluster / kPageClusters);
    const uint64_t index = cluster % kPageClusters;
    if (page.width == Width::kBit) {
      uint64_t& word = page.bits[index / 64];
      const uint64_t bit = uint64_t{1} << (index % 64);
      if ((word & bit) == 0 && weight == 1) {
        word |= bit;
        return true;
      }
    }
    return AddWide(page, index, weight);
  }

  // Adds `weight` references to each of the clusters first..first+count-1. Costs an operation for
  // each 64 clusters while counts are 0 or 1, and about one for 16 while they are below 256.
  void AddRun(uint64_t first, uint64_t count, uint64_t weight);

  // Whether any of the clusters first..first+count-1 has a count.
  bool HasAny(uint64_t first, uint64_t count) const;

  uint64_t Get(uint64_t cluster) const {
    const Page* page = pages_.Find(cluster / kPageClusters);
    return page == nullptr ? 0 : page->Get(cluster % kPageClusters);
  }

  // True, and sets `bits`, if every one of the 64 clusters from `cluster` (a multiple of 64) on
  // has a count of 0 or 1 that is known as a bit: bit i = count of cluster + i.
  bool BitWord(uint64_t cluster, uint64_t& bits) const {
    const Page* page = pages_.Find(cluster / kPageClusters);
    if (page == nullptr) {
      bits = 0;
      return true;
    }
    if (page->width != Width::kBit) return false;
    bits = page->bits[(cluster % kPageClusters) / 64];
    return true;
  }

  // The counts of the 64 clusters from `cluster` (a multiple of 64) on if they are kept as bytes,
  // otherwise nullptr. Valid until the map is changed.
  const uint8_t* ByteCounts(uint64_t cluster) const {
    const Page* page = pages_.Find(cluster / kPageClusters);
    return page != nullptr && page->width == Width::kByte ? &page->wide[cluster % kPageClusters]
                                                          : nullptr;
  }

  // Adds the counts of `other`, a map for as many clusters, which is empty afterwards, and calls
  // in_both(cluster) for each cluster that had a count in both. Takes over whole pages where it
  // can.
  void Absorb(RefcountMap& other, absl::FunctionRef<void(uint64_t cluster)> in_both);

  // Calls visit(cluster) for each cluster with a count, in ascending order.
  template <typename Visit>
  void ForEach(Visit visit) const {
    for (uint64_t page = NextPage(0); page != kNoPage; page = NextPage(page + 1)) {
      const Page& counts = *pages_.Find(page);
      for (uint64_t i = 0; i < kPageClusters; ++i) {
        if (counts.Get(i) != 0) visit(page * kPageClusters + i);
      }
    }
  }

  bool empty() const { return pages_.empty(); }

  // The first page number >= `page` with any count, or kNoPage.
  uint64_t NextPage(uint64_t page) const { return pages_.Next(page); }

 private:
  enum class Width : uint8_t { kBit, kByte, kWord32, kWord64 };

  struct Page {
    Width width = Width::kBit;
    std::unique_ptr<uint8_t[]> wide;  // kPageClusters numbers of `width`, native order
    PageBits bits = {};

    bool IsFull() const { return width == Width::kBit && AreAllBits(bits); }
    static const Page& Full();

    uint64_t Get(uint64_t index) const;
    void Set(uint64_t index, uint64_t count);
  };

  bool AddWide(Page& page, uint64_t index, uint64_t weight);
  void AddRunInPage(Page& page, uint64_t first, uint64_t count, uint64_t weight);
  static bool AddRunOfBits(Page& page, uint64_t first, uint64_t count);
  static bool AddRunOfBytes(Page& page, uint64_t first, uint64_t count, uint64_t weight);
  void AddPage(Page& page, const Page& other, uint64_t first_cluster,
               absl::FunctionRef<void(uint64_t cluster)> in_both);
  bool Widen(Page& page, uint64_t count);

  PageDirectory<Page> pages_;
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_REFCOUNT_MAP_H_

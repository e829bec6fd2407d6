// A set of host clusters: a bit a cluster, in pages that exist only where a bit was set.
//
// Not thread-safe. Cost: 512 bytes for each page of 4,096 clusters of which some but not all are
// members, plus a directory.
#ifndef QCOW2CHECK_COMMON_CLUSTER_SET_H_
#define QCOW2CHECK_COMMON_CLUSTER_SET_H_

#include <array>
#include <cstdint>
#include <memory>
#include <utility>

#include "common/page_directory.h"

namespace qcow2check {

class ClusterSet {
 public:
  struct Page {
    PageBits bits = {};

    bool IsFull() const { return AreAllBits(bits); }
    static const Page& Full() {
      static constexpr Page kFull = {MakeAllBits()};
      return kFull;
    }
  };

  // For clusters 0..cluster_count-1.
  explicit ClusterSet(uint64_t cluster_count, MemoryBudget* budget = nullptr)
      : pages_(cluster_count, budget) {}

  void Insert(uint64_t cluster) {
    pages_.GetOrCreate(cluster / kPageClusters).bits[(cluster % kPageClusters) / 64] |=
        uint64_t{1} << (cluster % 64);
  }

  // Inserts clusters first..first+count-1.
  void InsertRun(uint64_t first, uint64_t count) {
    ForEachRunWord(first, count, [this](uint64_t page, uint64_t word, uint64_t mask) {
      pages_.GetOrCreate(page).bits[word] |= mask;
    });
  }

  // Takes over all members of `other`, which is for as many clusters and empty afterwards.
  void Absorb(ClusterSet& other) {
    other.pages_.Drain([this](uint64_t number, std::unique_ptr<Page> page) {
      if (pages_.Find(number) == nullptr) {
        pages_.Adopt(number, std::move(page));
        return;
      }
      PageBits& mine = pages_.GetOrCreate(number).bits;
      const Page& added = page != nullptr ? *page : Page::Full();
      for (size_t i = 0; i < mine.size(); ++i) mine[i] |= added.bits[i];
    });
  }

  void Erase(uint64_t cluster) {
    if (!Contains(cluster)) return;
    pages_.GetOrCreate(cluster / kPageClusters).bits[(cluster % kPageClusters) / 64] &=
        ~(uint64_t{1} << (cluster % 64));
  }

  bool Contains(uint64_t cluster) const {
    const Page* page = pages_.Find(cluster / kPageClusters);
    return page != nullptr &&
           ((page->bits[(cluster % kPageClusters) / 64] >> (cluster % 64)) & 1) != 0;
  }

  bool empty() const { return pages_.empty(); }

  // The 64 clusters from `cluster` (a multiple of 64) on: bit i = cluster + i.
  uint64_t Word(uint64_t cluster) const {
    const Page* page = pages_.Find(cluster / kPageClusters);
    return page == nullptr ? 0 : page->bits[(cluster % kPageClusters) / 64];
  }

  // The first page number >= `page` that exists, or kNoPage.
  uint64_t NextPage(uint64_t page) const { return pages_.Next(page); }

  // Calls visit(cluster) for each member in ascending order.
  template <typename Visit>
  void ForEach(Visit visit) const {
    for (uint64_t page = NextPage(0); page != kNoPage; page = NextPage(page + 1)) {
      const PageBits& words = pages_.Find(page)->bits;
      for (uint64_t i = 0; i < words.size(); ++i) {
        for (uint64_t word = words[i]; word != 0; word &= word - 1) {
          visit(page * kPageClusters + i * 64 + static_cast<uint64_t>(__builtin_ctzll(word)));
        }
      }
    }
  }

 private:
  PageDirectory<Page> pages_;
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_CLUSTER_SET_H_

// Pages of per-cluster data, found by number in two steps. Regions that were not touched cost
// nothing, and neither do those in which every cluster is set.
#ifndef QCOW2CHECK_COMMON_PAGE_DIRECTORY_H_
#define QCOW2CHECK_COMMON_PAGE_DIRECTORY_H_

#include <algorithm>
#include <array>
#include <bitset>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "common/check.h"
#include "common/limits.h"
#include "common/memory_budget.h"

namespace qcow2check {

inline constexpr uint64_t kPageClusters = 4096;
inline constexpr uint64_t kNoPage = ~uint64_t{0};

// A bit for each cluster of a page.
using PageBits = std::array<uint64_t, kPageClusters / 64>;

inline constexpr PageBits MakeAllBits() {
  PageBits bits = {};
  for (uint64_t& word : bits) word = ~uint64_t{0};
  return bits;
}

// Most pages that are not all bits differ in the first or the last word.
inline bool AreAllBits(const PageBits& bits) {
  return bits.front() == ~uint64_t{0} && bits.back() == ~uint64_t{0} &&
         std::all_of(bits.begin(), bits.end(), [](uint64_t word) { return word == ~uint64_t{0}; });
}

// Calls visit(page, word, mask) for each word of 64 clusters that clusters first..first+count-1
// reach into: `word` counts within the page, `mask` has the bits of those clusters.
template <typename Visit>
void ForEachRunWord(uint64_t first, uint64_t count, Visit visit) {
  while (count != 0) {
    const uint64_t bit = first % 64;
    const uint64_t here = count < 64 - bit ? count : 64 - bit;
    const uint64_t mask = (here == 64 ? ~uint64_t{0} : (uint64_t{1} << here) - 1) << bit;
    visit(first / kPageClusters, first % kPageClusters / 64, mask);
    first += here;
    count -= here;
  }
}

// The directory. The top level is sized by the file's clusters (8 bytes for each 16M of them),
// never by a claim in the image. `Page` says whether it is full (IsFull) and what a full one looks
// like (Full); full pages are kept as a bit each. Pages are taken out of a MemoryBudget; when that
// is used up, all further pages are one and the same, and what they hold means nothing. Not
// thread-safe, but for Find and Next.
template <typename Page>
class PageDirectory {
 public:
  // `budget` (nullptr: none) must outlive this object.
  PageDirectory(uint64_t cluster_count, MemoryBudget* budget)
      : chapters_(cluster_count / (kPageClusters * kChapterPages) + 1), budget_(budget) {
    // A page more than a file may have, for pointers just behind its end.
    QCOW2CHECK_CHECK(cluster_count <= kMaxFileClusters + kPageClusters);
  }

  const Page* Find(uint64_t page) const {
    const uint64_t chapter = page / kChapterPages;
    if (chapter >= chapters_.size() || chapters_[chapter] == nullptr) return nullptr;
    const Page* found = chapters_[chapter]->pages[page % kChapterPages].get();
    if (found != nullptr) return found;
    return chapters_[chapter]->full[page % kChapterPages] ? &Page::Full() : nullptr;
  }

  // The page, to be changed before the next call of any function.
  Page& GetOrCreate(uint64_t page) {
    // NOLINTNEXTLINE(clang-analyzer-core.uninitialized.UndefReturn): both are set together
    if (page == last_page_) return *last_;
    CompactLast();
    Chapter* chapter = FindOrCreateChapter(page);
    if (chapter == nullptr) return Surplus();
    std::unique_ptr<Page>& slot = chapter->pages[page % kChapterPages];
    if (slot == nullptr) {
      if (!MayTake(kPageBytes)) return Surplus();
      slot = std::make_unique<Page>();
      if (chapter->full[page % kChapterPages]) slot->bits = Page::Full().bits;
      chapter->full[page % kChapterPages] = false;
    }
    empty_ = false;
    last_page_ = page;
    last_ = slot.get();
    return *last_;
  }

  // Calls take(page number, the page) for each page in ascending order, which then belongs to the
  // callee (nullptr: a full one), and leaves nothing.
  template <typename Take>
  void Drain(Take take) {
    CompactLast();
    for (uint64_t number = Next(0); number != kNoPage; number = Next(number + 1)) {
      take(number, std::move(chapters_[number / kChapterPages]->pages[number % kChapterPages]));
    }
    for (std::unique_ptr<Chapter>& chapter : chapters_) chapter.reset();
    empty_ = true;
  }

  // Makes `made` (nullptr: a full one) the page, which must not exist.
  void Adopt(uint64_t page, std::unique_ptr<Page> made) {
    Chapter* chapter = FindOrCreateChapter(page);
    if (chapter == nullptr) return;
    QCOW2CHECK_CHECK(Find(page) == nullptr);
    chapter->full[page % kChapterPages] = made == nullptr;
    chapter->pages[page % kChapterPages] = std::move(made);
    empty_ = false;
  }

  bool empty() const { return empty_; }
  MemoryBudget* budget() const { return budget_; }

  // The first existing page with a number >= `page`, or kNoPage.
  uint64_t Next(uint64_t page) const {
    for (uint64_t chapter = page / kChapterPages; chapter < chapters_.size(); ++chapter) {
      if (chapters_[chapter] == nullptr) continue;
      const uint64_t first = chapter == page / kChapterPages ? page % kChapterPages : 0;
      for (uint64_t i = first; i < kChapterPages; ++i) {
        if (chapters_[chapter]->pages[i] != nullptr || chapters_[chapter]->full[i]) {
          return chapter * kChapterPages + i;
        }
      }
    }
    return kNoPage;
  }

 private:
  static constexpr uint64_t kChapterPages = 4096;
  static constexpr uint64_t kPageBytes = sizeof(Page) + 16;  // and what the allocator adds

  struct Chapter {
    std::array<std::unique_ptr<Page>, kChapterPages> pages;
    std::bitset<kChapterPages> full;
  };

  bool MayTake(uint64_t bytes) { return budget_ == nullptr || budget_->Take(bytes); }

  // nullptr if there is no memory for it.
  Chapter* FindOrCreateChapter(uint64_t page) {
    QCOW2CHECK_CHECK(page / kChapterPages < chapters_.size());
    std::unique_ptr<Chapter>& chapter = chapters_[page / kChapterPages];
    if (chapter == nullptr && MayTake(sizeof(Chapter))) chapter = std::make_unique<Chapter>();
    return chapter.get();
  }

  Page& Surplus() {
    if (surplus_ == nullptr) surplus_ = std::make_unique<Page>();
    return *surplus_;
  }

  // Whoever asks for another page is done with the last one for now.
  void CompactLast() {
    if (last_page_ != kNoPage && last_->IsFull()) {
      Chapter& chapter = *chapters_[last_page_ / kChapterPages];
      chapter.full[last_page_ % kChapterPages] = true;
      chapter.pages[last_page_ % kChapterPages].reset();
      if (budget_ != nullptr) budget_->GiveBack(kPageBytes);
    }
    last_page_ = kNoPage;
    last_ = nullptr;
  }

  std::vector<std::unique_ptr<Chapter>> chapters_;
  MemoryBudget* budget_;
  std::unique_ptr<Page> surplus_;
  bool empty_ = true;
  uint64_t last_page_ = kNoPage;
  Page* last_ = nullptr;
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_PAGE_DIRECTORY_H_

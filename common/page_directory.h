// Pages of per-cluster data, found by number in two steps; untouched regions cost nothing.
//
// The top level is sized by the file's clusters (8 bytes for each 16M of them), never by a claim
// in the image. Not thread-safe.
#ifndef QCOW2CHECK_COMMON_PAGE_DIRECTORY_H_
#define QCOW2CHECK_COMMON_PAGE_DIRECTORY_H_

#include <array>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "common/check.h"
#include "common/limits.h"

namespace qcow2check {

inline constexpr uint64_t kPageClusters = 4096;
inline constexpr uint64_t kNoPage = ~uint64_t{0};

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

template <typename Page>
class PageDirectory {
 public:
  explicit PageDirectory(uint64_t cluster_count)
      : chapters_(cluster_count / (kPageClusters * kChapterPages) + 1) {
    // A page more than a file may have, for pointers just behind its end.
    QCOW2CHECK_CHECK(cluster_count <= kMaxFileClusters + kPageClusters);
  }

  Page* Find(uint64_t page) const {
    const uint64_t chapter = page / kChapterPages;
    if (chapter >= chapters_.size() || chapters_[chapter] == nullptr) return nullptr;
    return (*chapters_[chapter])[page % kChapterPages].get();
  }

  Page& GetOrCreate(uint64_t page) {
    if (page == last_page_) return *last_;
    QCOW2CHECK_CHECK(page / kChapterPages < chapters_.size());
    std::unique_ptr<Chapter>& chapter = chapters_[page / kChapterPages];
    if (chapter == nullptr) chapter = std::make_unique<Chapter>();
    std::unique_ptr<Page>& slot = (*chapter)[page % kChapterPages];
    if (slot == nullptr) slot = std::make_unique<Page>();
    empty_ = false;
    last_page_ = page;
    last_ = slot.get();
    return *last_;
  }

  // Calls take(page number, the page) for each page in ascending order, which then belongs to the
  // callee, and leaves nothing.
  template <typename Take>
  void Drain(Take take) {
    for (uint64_t chapter = 0; chapter < chapters_.size(); ++chapter) {
      if (chapters_[chapter] == nullptr) continue;
      for (uint64_t i = 0; i < kChapterPages; ++i) {
        std::unique_ptr<Page>& slot = (*chapters_[chapter])[i];
        if (slot != nullptr) take(chapter * kChapterPages + i, std::move(slot));
      }
      chapters_[chapter].reset();
    }
    Forget();
    empty_ = true;
  }

  // Takes `made` for the page, which must not exist.
  void Adopt(uint64_t page, std::unique_ptr<Page> made) {
    QCOW2CHECK_CHECK(page / kChapterPages < chapters_.size());
    std::unique_ptr<Chapter>& chapter = chapters_[page / kChapterPages];
    if (chapter == nullptr) chapter = std::make_unique<Chapter>();
    QCOW2CHECK_CHECK((*chapter)[page % kChapterPages] == nullptr);
    (*chapter)[page % kChapterPages] = std::move(made);
    empty_ = false;
  }

  bool empty() const { return empty_; }

  // The first existing page with a number >= `page`, or kNoPage.
  uint64_t Next(uint64_t page) const {
    for (uint64_t chapter = page / kChapterPages; chapter < chapters_.size(); ++chapter) {
      if (chapters_[chapter] == nullptr) continue;
      const uint64_t first = chapter == page / kChapterPages ? page % kChapterPages : 0;
      for (uint64_t i = first; i < kChapterPages; ++i) {
        if ((*chapters_[chapter])[i] != nullptr) return chapter * kChapterPages + i;
      }
    }
    return kNoPage;
  }

 private:
  static constexpr uint64_t kChapterPages = 4096;
  using Chapter = std::array<std::unique_ptr<Page>, kChapterPages>;

  void Forget() {
    last_page_ = kNoPage;
    last_ = nullptr;
  }

  std::vector<std::unique_ptr<Chapter>> chapters_;
  bool empty_ = true;
  uint64_t last_page_ = kNoPage;
  Page* last_ = nullptr;
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_PAGE_DIRECTORY_H_

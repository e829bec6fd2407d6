#include "common/refcount_map.h"

#include <cstring>
#include <utility>

#include "common/checked_math.h"

namespace qcow2check {
namespace {

template <typename T>
T LoadNative(const uint8_t* bytes, uint64_t index) {
  T value;
  std::memcpy(&value, bytes + index * sizeof(T), sizeof(T));
  return value;
}

template <typename T>
void StoreNative(uint8_t* bytes, uint64_t index, uint64_t value) {
  const T narrow = static_cast<T>(value);
  std::memcpy(bytes + index * sizeof(T), &narrow, sizeof(T));
}

}  // namespace

uint64_t RefcountMap::Page::Get(uint64_t index) const {
  switch (width) {
    case Width::kBit:
      return (bits[index / 64] >> (index % 64)) & 1;
    case Width::kByte:
      return wide[index];
    case Width::kWord32:
      return LoadNative<uint32_t>(wide.get(), index);
    default:
      return LoadNative<uint64_t>(wide.get(), index);
  }
}

const RefcountMap::Page& RefcountMap::Page::Full() {
  static const Page kFull = {.width = Width::kBit, .wide = nullptr, .bits = MakeAllBits()};
  return kFull;
}

void RefcountMap::Page::Set(uint64_t index, uint64_t count) {
  switch (width) {
    case Width::kBit:
      bits[index / 64] =
          (bits[index / 64] & ~(uint64_t{1} << (index % 64))) | (count << (index % 64));
      break;
    case Width::kByte:
      wide[index] = static_cast<uint8_t>(count);
      break;
    case Width::kWord32:
      StoreNative<uint32_t>(wide.get(), index, count);
      break;
    case Width::kWord64:
      StoreNative<uint64_t>(wide.get(), index, count);
      break;
  }
}

// Makes room for `count`; false if there is no memory for that.
bool RefcountMap::Widen(Page& page, uint64_t count) {
  Page wider;
  wider.width = count <= 0xff         ? Width::kByte
                : count <= 0xffffffff ? Width::kWord32
                                      : Width::kWord64;
  if (wider.width <= page.width) return true;
  const size_t bytes = wider.width == Width::kByte ? 1 : wider.width == Width::kWord32 ? 4 : 8;
  MemoryBudget* const budget = pages_.budget();
  if (budget != nullptr && !budget->Take(kPageClusters * bytes)) return false;
  wider.wide = std::make_unique<uint8_t[]>(kPageClusters * bytes);
  if (page.width == Width::kBit && wider.width == Width::kByte) {
    for (uint64_t word = 0; word < page.bits.size(); ++word) {
      uint8_t* const counts = &wider.wide[word * 64];
      for (uint64_t bits = page.bits[word]; bits != 0; bits &= bits - 1) {
        counts[__builtin_ctzll(bits)] = 1;
      }
    }
  } else {
    for (uint64_t i = 0; i < kPageClusters; ++i) wider.Set(i, page.Get(i));
  }
  page.width = wider.width;
  page.wide = std::move(wider.wide);
  return true;
}

bool RefcountMap::AddWide(Page& page, uint64_t index, uint64_t weight) {
  const uint64_t before = page.Get(index);
  const uint64_t count = SaturatingAdd(before, weight);
  if (count > 1 && !Widen(page, count)) return before == 0;
  page.Set(index, count);
  return before == 0;
}

bool RefcountMap::AddRunOfBits(Page& page, uint64_t first, uint64_t count) {
  bool possible = true;
  ForEachRunWord(first, count, [&](uint64_t, uint64_t word, uint64_t mask) {
    possible = possible && (page.bits[word] & mask) == 0;
  });
  if (!possible) return false;
  ForEachRunWord(first, count,
                 [&](uint64_t, uint64_t word, uint64_t mask) { page.bits[word] |= mask; });
  return true;
}

bool RefcountMap::AddRunOfBytes(Page& page, uint64_t first, uint64_t count, uint64_t weight) {
  uint8_t* const counts = &page.wide[first];
  uint8_t highest = 0;
  for (uint64_t i = 0; i < count; ++i) highest = std::max(highest, counts[i]);
  if (weight > 0xff || highest + weight > 0xff) return false;
  for (uint64_t i = 0; i < count; ++i) counts[i] = static_cast<uint8_t>(counts[i] + weight);
  return true;
}

void RefcountMap::AddRunInPage(Page& page, uint64_t first, uint64_t count, uint64_t weight) {
  if (page.width == Width::kBit) {
    if (weight == 1 && AddRunOfBits(page, first, count)) return;
    if (!Widen(page, std::max<uint64_t>(weight, 2))) return;
  }
  if (page.width == Width::kByte && AddRunOfBytes(page, first, count, weight)) return;
  for (uint64_t i = first; i < first + count; ++i) AddWide(page, i, weight);
}

void RefcountMap::AddRun(uint64_t first, uint64_t count, uint64_t weight) {
  while (count != 0) {
    const uint64_t index = first % kPageClusters;
    const uint64_t here = std::min(count, kPageClusters - index);
    AddRunInPage(pages_.GetOrCreate(first / kPageClusters), index, here, weight);
    first += here;
    count -= here;
  }
}

bool RefcountMap::HasAny(uint64_t first, uint64_t count) const {
  const uint64_t end = first + count;
  while (first < end) {
    const uint64_t page_end = std::min(end, (first / kPageClusters + 1) * kPageClusters);
    const Page* page = pages_.Find(first / kPageClusters);
    if (page != nullptr && page->width == Width::kBit) {
      uint64_t seen = 0;
      ForEachRunWord(first, page_end - first, [&](uint64_t, uint64_t word, uint64_t mask) {
        seen |= page->bits[word] & mask;
      });
      if (seen != 0) return true;
    } else if (page != nullptr) {
      for (uint64_t i = first; i < page_end; ++i) {
        if (page->Get(i % kPageClusters) != 0) return true;
      }
    }
    first = page_end;
  }
  return false;
}

void RefcountMap::AddPage(Page& page, const Page& other, uint64_t first_cluster,
                          absl::FunctionRef<void(uint64_t cluster)> in_both) {
  for (uint64_t at = 0; at < kPageClusters; at += 64) {
    uint64_t& word = page.bits[at / 64];
    const uint64_t added = other.bits[at / 64];
    if (page.width == Width::kBit && other.width == Width::kBit && (word & added) == 0) {
      word |= added;
      continue;
    }
    for (uint64_t i = at; i < at + 64; ++i) {
      const uint64_t weight = other.Get(i);
      if (weight != 0 && !AddWide(page, i, weight)) in_both(first_cluster + i);
    }
  }
}

void RefcountMap::Absorb(RefcountMap& other, absl::FunctionRef<void(uint64_t cluster)> in_both) {
  other.pages_.Drain([&](uint64_t number, std::unique_ptr<Page> page) {
    if (pages_.Find(number) == nullptr) {
      pages_.Adopt(number, std::move(page));
      return;
    }
    AddPage(pages_.GetOrCreate(number), page != nullptr ? *page : Page::Full(),
            number * kPageClusters, in_both);
  });
}

}  // namespace qcow2check

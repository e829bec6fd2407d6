#include "common/refcount_map.h"

#include <cstring>

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

void RefcountMap::Widen(Page& page, uint64_t count) {
  Page wider;
  wider.width = count <= 0xff         ? Width::kByte
                : count <= 0xffffffff ? Width::kWord32
                                      : Width::kWord64;
  if (wider.width <= page.width) return;
  const size_t bytes = wider.width == Width::kByte ? 1 : wider.width == Width::kWord32 ? 4 : 8;
  wider.wide = std::make_unique<uint8_t[]>(kPageClusters * bytes);
  for (uint64_t i = 0; i < kPageClusters; ++i) wider.Set(i, page.Get(i));
  page.width = wider.width;
  page.wide = std::move(wider.wide);
}

bool RefcountMap::AddSlow(Page& page, uint64_t index, uint64_t weight) {
  const uint64_t before = page.Get(index);
  const uint64_t count = SaturatingAdd(before, weight);
  if (count > 1) Widen(page, count);
  page.Set(index, count);
  return before == 0;
}

}  // namespace qcow2check

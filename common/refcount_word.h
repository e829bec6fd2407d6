// 64 refcounts at a time, as masks: bit i is about entry i.
#ifndef QCOW2CHECK_COMMON_REFCOUNT_WORD_H_
#define QCOW2CHECK_COMMON_REFCOUNT_WORD_H_

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include <cstdint>

#include "common/refcount_block.h"

namespace qcow2check {

inline constexpr uint64_t kWordClusters = 64;

struct RefcountWord {
  uint64_t is_zero = ~uint64_t{0};
  uint64_t is_one = 0;
};

// The masks of 64 entries.
inline RefcountWord LoadRefcountWord(const uint8_t* entries, int refcount_order) {
  RefcountWord word = {0, 0};
  for (uint64_t i = 0; i < kWordClusters; ++i) {
    const uint64_t value = LoadRefcount(entries, i, refcount_order);
    word.is_zero |= static_cast<uint64_t>(value == 0) << i;
    word.is_one |= static_cast<uint64_t>(value == 1) << i;
  }
  return word;
}

// Which of 64 entries differ from the `counts`, a byte each.
inline uint64_t DifferingRefcounts(const uint8_t* entries, int refcount_order,
                                   const uint8_t* counts) {
  uint64_t differ = 0;
  for (uint64_t i = 0; i < kWordClusters; ++i) {
    differ |= static_cast<uint64_t>(LoadRefcount(entries, i, refcount_order) != counts[i]) << i;
  }
  return differ;
}

#ifdef __SSE2__

// The same for entries of 16 bits, which nearly all images have: the compiler does not see that
// comparisons can become masks.

// One bit for each of 16 results of 16-bit comparisons.
inline uint64_t MaskOf(__m128i low, __m128i high) {
  return static_cast<uint32_t>(_mm_movemask_epi8(_mm_packs_epi16(low, high)));
}

inline RefcountWord LoadRefcountWord16(const uint8_t* entries) {
  const __m128i zero = _mm_setzero_si128();
  const __m128i one = _mm_set1_epi16(0x0100);  // big endian
  RefcountWord word = {0, 0};
  for (int i = 0; i < 4; ++i) {
    const __m128i* const at = reinterpret_cast<const __m128i*>(entries + i * 32);
    const __m128i low = _mm_loadu_si128(at), high = _mm_loadu_si128(at + 1);
    word.is_zero |= MaskOf(_mm_cmpeq_epi16(low, zero), _mm_cmpeq_epi16(high, zero)) << (i * 16);
    word.is_one |= MaskOf(_mm_cmpeq_epi16(low, one), _mm_cmpeq_epi16(high, one)) << (i * 16);
  }
  return word;
}

inline uint64_t DifferingRefcounts16(const uint8_t* entries, const uint8_t* counts) {
  const __m128i zero = _mm_setzero_si128();
  uint64_t equal = 0;
  for (int i = 0; i < 4; ++i) {
    const __m128i* const at = reinterpret_cast<const __m128i*>(entries + i * 32);
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(counts + i * 16));
    // A zero byte in front of each makes them numbers of 16 bits, big endian.
    const __m128i low = _mm_cmpeq_epi16(_mm_loadu_si128(at), _mm_unpacklo_epi8(zero, bytes));
    const __m128i high = _mm_cmpeq_epi16(_mm_loadu_si128(at + 1), _mm_unpackhi_epi8(zero, bytes));
    equal |= MaskOf(low, high) << (i * 16);
  }
  return ~equal;
}

#else

inline RefcountWord LoadRefcountWord16(const uint8_t* entries) {
  return LoadRefcountWord(entries, 4);
}
inline uint64_t DifferingRefcounts16(const uint8_t* entries, const uint8_t* counts) {
  return DifferingRefcounts(entries, 4, counts);
}

#endif

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_REFCOUNT_WORD_H_

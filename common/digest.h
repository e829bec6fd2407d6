// Digests of bytes, to tell whether they are what they were: XXH3 with 64 bits. Good against
// accidents, not against anybody who means to deceive.
#ifndef QCOW2CHECK_COMMON_DIGEST_H_
#define QCOW2CHECK_COMMON_DIGEST_H_

#include <cstdint>
#include <string>

#include "absl/types/span.h"

struct XXH3_state_s;

namespace qcow2check {

uint64_t DigestOf(absl::Span<const uint8_t> bytes);

// The same of bytes that come in pieces.
class Digest {
 public:
  Digest();
  ~Digest();
  Digest(const Digest&) = delete;
  Digest& operator=(const Digest&) = delete;

  void Add(absl::Span<const uint8_t> bytes);
  uint64_t value() const;

 private:
  XXH3_state_s* state_;
};

// 16 hexadecimal digits, as xxhsum prints them.
std::string DigestText(uint64_t digest);

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_DIGEST_H_

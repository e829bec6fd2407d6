#include "common/digest.h"

#include <xxhash.h>

#include "absl/strings/str_format.h"
#include "common/check.h"

namespace qcow2check {

uint64_t DigestOf(absl::Span<const uint8_t> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

Digest::Digest() : state_(XXH3_createState()) {
  QCOW2CHECK_CHECK(state_ != nullptr);
  XXH3_64bits_reset(state_);
}

Digest::~Digest() { XXH3_freeState(state_); }

void Digest::Add(absl::Span<const uint8_t> bytes) {
  XXH3_64bits_update(state_, bytes.data(), bytes.size());
}

uint64_t Digest::value() const { return XXH3_64bits_digest(state_); }

std::string DigestText(uint64_t digest) { return absl::StrFormat("%016x", digest); }

}  // namespace qcow2check

#include "fuzz/input.h"

#include <algorithm>

#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "common/byte_order.h"
#include "common/digest.h"
#include "tests/image_text.h"

namespace qcow2check::testing {
namespace {

constexpr uint64_t kLengthBytes = 8;

absl::string_view TextOf(Input input) {
  return {reinterpret_cast<const char*>(input.data()), input.size()};
}

}  // namespace

bool IsImageText(Input input) {
  return absl::StartsWith(TextOf(input), "#") || absl::StartsWith(TextOf(input), "size ");
}

std::optional<SparseFile> ImageOf(Input input) {
  if (!IsImageText(input)) return SparseFile(input);
  absl::StatusOr<SparseFile> image = ParseSparseImage(TextOf(input));
  if (!image.ok() || image->stored_bytes() > kMaxStoredBytes) return std::nullopt;
  return *std::move(image);
}

UndoInput UndoInputOf(Input input) {
  if (input.size() < kLengthBytes) return {};
  const uint64_t length = std::min<uint64_t>(Load64(input.data()), input.size() - kLengthBytes);
  const Input log = input.subspan(kLengthBytes + length);
  return {SparseFile(input.subspan(kLengthBytes, length)), {log.begin(), log.end()}};
}

std::vector<uint8_t> Encode(const UndoInput& input) {
  std::vector<uint8_t> bytes(kLengthBytes);
  Store64(bytes.data(), input.image.size_bytes());
  const std::vector<uint8_t> image = input.image.Bytes();
  bytes.insert(bytes.end(), image.begin(), image.end());
  bytes.insert(bytes.end(), input.log.begin(), input.log.end());
  return bytes;
}

uint64_t SeedOf(Input input) { return DigestOf(input); }

uint64_t SeedOf(const SparseFile& image) {
  uint64_t seed = image.size_bytes();
  for (Extent data = image.NextData(HostOffset{0}); !data.empty();
       data = image.NextData(HostOffset{data.end_bytes})) {
    seed = seed * 31 + DigestOf(image.Bytes(data.begin_bytes, data.end_bytes - data.begin_bytes));
  }
  return seed;
}

}  // namespace qcow2check::testing

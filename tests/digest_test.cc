// Digests are those of xxhsum -H3, whole or in pieces.
#include "common/digest.h"

#include <cstdint>
#include <vector>

#include "gtest/gtest.h"

namespace qcow2check::testing {
namespace {

TEST(DigestTest, KnownValues) {
  EXPECT_EQ(DigestText(DigestOf({})), "2d06800538d394c2");
  EXPECT_EQ(DigestText(0x1), "0000000000000001");
}

TEST(DigestTest, PiecesGiveTheSame) {
  std::vector<uint8_t> bytes(5000);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * i);
  Digest digest;
  for (size_t i = 0; i < bytes.size(); i += 300) {
    digest.Add(absl::MakeConstSpan(bytes).subspan(i, 300));
  }
  EXPECT_EQ(digest.value(), DigestOf(bytes));
  EXPECT_NE(digest.value(), DigestOf({}));
}

}  // namespace
}  // namespace qcow2check::testing

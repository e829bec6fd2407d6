// ParseImageText: what a text may say, and every way in which it can be wrong.
#include "tests/image_text.h"

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qcow2check::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::vector<uint8_t> Parse(absl::string_view text) {
  const absl::StatusOr<std::vector<uint8_t>> image = ParseImageText(text);
  EXPECT_TRUE(image.ok()) << image.status();
  return image.ok() ? *image : std::vector<uint8_t>();
}

std::string ErrorOf(absl::string_view text) {
  const absl::StatusOr<std::vector<uint8_t>> image = ParseImageText(text);
  EXPECT_EQ(image.status().code(), absl::StatusCode::kInvalidArgument) << text;
  return std::string(image.status().message());
}

TEST(ImageTextTest, BytesThatNoLineNamesAreZero) {
  EXPECT_THAT(Parse("size 5\n1: ff\n0x3: 0a"), ElementsAre(0, 0xff, 0, 0x0a, 0));
  EXPECT_THAT(Parse("size 0"), IsEmpty());
}

TEST(ImageTextTest, CommentsBlankLinesAndLineEndsDoNotMatter) {
  EXPECT_THAT(Parse("# an image\r\n\r\n  size 0x2  # two bytes\r\n\t0:\t01 02 # both\r\n"),
              ElementsAre(1, 2));
}

TEST(ImageTextTest, HexDigitsGroupAsOneLikes) {
  EXPECT_THAT(Parse("size 4\n0: 0102 03 0F"), ElementsAre(1, 2, 3, 15));
}

TEST(ImageTextTest, AUnitRepeats) {
  EXPECT_THAT(Parse("size 7\n1: 00 01 * 3"), ElementsAre(0, 0, 1, 0, 1, 0, 1));
  EXPECT_THAT(Parse("size 2\n0: aa*0x2"), ElementsAre(0xaa, 0xaa));
}

TEST(ImageTextTest, LinesComeInAnyOrder) {
  EXPECT_THAT(Parse("2: 02\n0: 01\nsize 3"), ElementsAre(1, 0, 2));
}

TEST(ImageTextTest, TheLineThatIsWrongIsNamed) {
  EXPECT_EQ(ErrorOf("size 1\n\n0: 0g"), "line 3: '0g' is not hexadecimal digits in pairs");
  EXPECT_EQ(ErrorOf("size 4\n0: 01 * 2\n1: 05"), "line 3: bytes at 0x1 are given twice");
  EXPECT_EQ(ErrorOf("size 4\n3: 0102"), "line 2: bytes end at 0x5, past the size 0x4");
}

TEST(ImageTextTest, RefusesWhatIsNoSize) {
  EXPECT_THAT(ErrorOf(""), HasSubstr("no size line"));
  EXPECT_THAT(ErrorOf("size 1\nsize 1"), HasSubstr("a second size"));
  EXPECT_THAT(ErrorOf("size"), HasSubstr("'' is not a number"));
  EXPECT_THAT(ErrorOf("size -1"), HasSubstr("'-1' is not a number"));
  EXPECT_THAT(ErrorOf("size 1k"), HasSubstr("'1k' is not a number"));
  EXPECT_THAT(ErrorOf("size 18446744073709551616"), HasSubstr("is not a number"));
}

TEST(ImageTextTest, RefusesWhatIsNoRun) {
  EXPECT_THAT(ErrorOf("size 1\n0 01"), HasSubstr("neither a size nor OFFSET: bytes"));
  EXPECT_THAT(ErrorOf("size 1\n0:"), HasSubstr("no bytes after the offset"));
  EXPECT_THAT(ErrorOf("size 1\n0: * 3"), HasSubstr("no bytes after the offset"));
  EXPECT_THAT(ErrorOf("size 1\n0: 012"), HasSubstr("'012' is not hexadecimal digits in pairs"));
  EXPECT_THAT(ErrorOf("size 1\n0x: 01"), HasSubstr("'0x' is not a number"));
  EXPECT_THAT(ErrorOf("size 1\n0: 01 *"), HasSubstr("'' is not a number"));
  EXPECT_THAT(ErrorOf("size 1\n0: 01 * 0"), HasSubstr("a repeat count of zero"));
}

TEST(ImageTextTest, MemoryIsBoundedWhateverTheTextClaims) {
  EXPECT_EQ(Parse("size 0x4000000").size(), 0x4000000u);
  EXPECT_THAT(ErrorOf("size 0x4000001"), HasSubstr("over 64 MiB"));
  EXPECT_THAT(ErrorOf("size 1\n0: 0102 * 0x8000000000000000"), HasSubstr("past 64 MiB"));
  EXPECT_THAT(ErrorOf("size 1\n0xffffffffffffffff: 0102"), HasSubstr("past 64 MiB"));
}

TEST(ImageTextTest, ASparseImageMayBeAsLongAsAnImageClaims) {
  const absl::StatusOr<SparseFile> image =
      ParseSparseImage("size 0x100000000000000\n0xfffffffffffff8: 01\n0x1ffe: 02030405");
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ(image->size_bytes(), uint64_t{1} << 56);
  EXPECT_EQ(image->stored_bytes(), 3 * SparseFile::kPageBytes);
  EXPECT_EQ(image->Word(0xfffffffffffff8), uint64_t{1} << 56);
  EXPECT_FALSE(ParseSparseImage("size 0x100000000000001").ok());
  EXPECT_FALSE(ParseSparseImage("size 0x100000000000000\n0: 01 * 0x4000001").ok());
}

TEST(ImageTextTest, WhatIsWrittenReadsTheSame) {
  const std::string texts[] = {"size 0", "size 5\n1: 0203",
                               "size 0x7000\n0: 01 * 40\n77: 02 * 99\n0x2ffc: ffffffff * 9",
                               "size 0x100000000000000\n0xfffffffffffff1: 0102030405 * 3"};
  for (const std::string& text : texts) {
    const absl::StatusOr<SparseFile> image = ParseSparseImage(text);
    ASSERT_TRUE(image.ok()) << image.status();
    const absl::StatusOr<SparseFile> again = ParseSparseImage(FormatImageText(*image));
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_TRUE(*again == *image) << FormatImageText(*image);
  }
}

TEST(ImageTextTest, TheSeedIsTheListedImage) {
  const absl::StatusOr<std::vector<uint8_t>> image = LoadCorpusImage("seeds/listing-v2-4k.qtxt");
  ASSERT_TRUE(image.ok()) << image.status();
  ASSERT_EQ(image->size(), 109u * 4096);
  EXPECT_EQ(std::string(image->begin(), image->begin() + 4), "QFI\xfb");
  // Row 7 of the L2 table, after six rows of zeros: host cluster 5.
  EXPECT_THAT(std::vector<uint8_t>(image->begin() + 0x4038, image->begin() + 0x4040),
              ElementsAre(0x80, 0, 0, 0, 0, 0, 0x50, 0));
  EXPECT_EQ((*image)[0x3000 + 2 * 108 + 1], 1);
  EXPECT_EQ((*image)[0x3000 + 2 * 109 + 1], 0);
}

TEST(ImageTextTest, AMissingCorpusImageIsNotFound) {
  EXPECT_EQ(LoadCorpusImage("seeds/none.qtxt").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace qcow2check::testing

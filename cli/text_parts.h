// What the text reports of a check and of a repair are put together from. Nothing of it contains
// control characters but line ends and, if asked for, colours.
#ifndef QCOW2CHECK_CLI_TEXT_PARTS_H_
#define QCOW2CHECK_CLI_TEXT_PARTS_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/finding.h"
#include "common/guest_ranges.h"

namespace qcow2check {

// Where the words behind a finding code start.
inline constexpr size_t kCodeIndent = 24;
// How many instances of a code a text lists.
inline constexpr size_t kShownPerCode = 3;
inline constexpr size_t kRangesShown = 4;

inline constexpr absl::string_view kRed = "\x1b[31m";
inline constexpr absl::string_view kYellow = "\x1b[33m";
inline constexpr absl::string_view kGreen = "\x1b[32m";
inline constexpr absl::string_view kPlain = "\x1b[0m";

std::string Coloured(absl::string_view text, absl::string_view colour, bool on);

// "  code                  words", the words wrapped behind kCodeIndent.
std::string CodeParagraph(FindingCode code, absl::string_view words, bool colour);

// "- text" as an item of a list that stands behind `indent` spaces.
std::string Item(absl::string_view text, size_t indent);

// "512 MiB to 1 GiB" where these numbers are exact; else in hexadecimal, with the length in words.
std::string RangeText(uint64_t offset, uint64_t length);

// "what (4 MiB): 0 to 1 MiB, ..." as a paragraph behind an empty line; empty without ranges.
std::string RangesParagraph(absl::string_view what, const std::vector<GuestRange>& ranges);

// Where one finding is: host place, guest range, owners.
std::string PlaceText(const Finding& finding);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CLI_TEXT_PARTS_H_

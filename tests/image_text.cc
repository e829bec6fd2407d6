// Reads qtxt line by line into the image's bytes. corpora/qtxt.py reads the same grammar; both must
// refuse the same texts.
#include "tests/image_text.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace qcow2check::testing {
namespace {

// A test image is kept whole in memory, several at a time.
constexpr uint64_t kMaxImageSize = uint64_t{64} << 20;

// `OFFSET: HEX... [* COUNT]`: `unit`, `times` times over, from `offset`.
struct Run {
  uint64_t offset = 0;
  std::string unit;
  uint64_t times = 1;
  int line = 0;

  uint64_t end() const { return offset + unit.size() * times; }
};

absl::StatusOr<uint64_t> ParseNumber(absl::string_view text) {
  text = absl::StripAsciiWhitespace(text);
  const bool is_hex = absl::StartsWithIgnoreCase(text, "0x");
  const absl::string_view digits = is_hex ? text.substr(2) : text;
  const bool is_plain = !digits.empty() && std::all_of(digits.begin(), digits.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c));
  });
  uint64_t value = 0;
  const bool is_number =
      is_plain && (is_hex ? absl::SimpleHexAtoi(digits, &value) : absl::SimpleAtoi(digits, &value));
  if (!is_number) return absl::InvalidArgumentError(absl::StrCat("'", text, "' is not a number"));
  return value;
}

absl::StatusOr<std::string> ParseHexGroups(absl::string_view text) {
  std::string bytes;
  for (const absl::string_view group :
       absl::StrSplit(text, absl::ByAnyChar(" \t"), absl::SkipEmpty())) {
    const bool is_hex = std::all_of(group.begin(), group.end(), [](char c) {
      return absl::ascii_isxdigit(static_cast<unsigned char>(c));
    });
    if (!is_hex || group.size() % 2 != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("'", group, "' is not hexadecimal digits in pairs"));
    }
    bytes += absl::HexStringToBytes(group);
  }
  if (bytes.empty()) return absl::InvalidArgumentError("no bytes after the offset");
  return bytes;
}

absl::StatusOr<Run> ParseRun(absl::string_view line) {
  const std::pair<absl::string_view, absl::string_view> parts =
      absl::StrSplit(line, absl::MaxSplits(':', 1));
  if (parts.first.size() == line.size()) {
    return absl::InvalidArgumentError("neither a size nor OFFSET: bytes");
  }
  const std::vector<absl::string_view> repeat =
      absl::StrSplit(parts.second, absl::MaxSplits('*', 1));
  Run run;
  absl::StatusOr<std::string> unit = ParseHexGroups(repeat[0]);
  if (!unit.ok()) return unit.status();
  run.unit = *std::move(unit);
  if (repeat.size() == 2) {
    const absl::StatusOr<uint64_t> times = ParseNumber(repeat[1]);
    if (!times.ok()) return times.status();
    if (*times == 0) return absl::InvalidArgumentError("a repeat count of zero");
    run.times = *times;
  }
  const absl::StatusOr<uint64_t> offset = ParseNumber(parts.first);
  if (!offset.ok()) return offset.status();
  run.offset = *offset;
  // Bounded before anything is multiplied or added, so that Run::end cannot overflow.
  if (run.offset > kMaxImageSize || run.times > kMaxImageSize / run.unit.size()) {
    return absl::InvalidArgumentError("bytes past 64 MiB, the largest image read from text");
  }
  return run;
}

// What the lines of a text say, before they are checked against each other.
struct Description {
  std::optional<uint64_t> size;
  std::vector<Run> runs;

  absl::Status AddLine(absl::string_view line, int number) {
    const std::pair<absl::string_view, absl::string_view> words =
        absl::StrSplit(line, absl::MaxSplits(' ', 1));
    if (words.first != "size") {
      absl::StatusOr<Run> run = ParseRun(line);
      if (!run.ok()) return run.status();
      run->line = number;
      runs.push_back(*std::move(run));
      return absl::OkStatus();
    }
    if (size.has_value()) return absl::InvalidArgumentError("a second size");
    const absl::StatusOr<uint64_t> value = ParseNumber(words.second);
    if (!value.ok()) return value.status();
    if (*value > kMaxImageSize) {
      return absl::InvalidArgumentError("a size over 64 MiB, the largest image read from text");
    }
    size = *value;
    return absl::OkStatus();
  }
};

absl::Status AtLine(int line, absl::string_view message) {
  return absl::InvalidArgumentError(absl::StrCat("line ", line, ": ", message));
}

absl::StatusOr<std::vector<uint8_t>> BuildImage(Description description) {
  if (!description.size.has_value()) return AtLine(1, "no size line");
  std::stable_sort(description.runs.begin(), description.runs.end(),
                   [](const Run& a, const Run& b) { return a.offset < b.offset; });
  std::vector<uint8_t> image(*description.size);
  uint64_t end = 0;
  for (const Run& run : description.runs) {
    if (run.offset < end) {
      return AtLine(run.line,
                    absl::StrCat("bytes at 0x", absl::Hex(run.offset), " are given twice"));
    }
    end = run.end();
    if (end > image.size()) {
      return AtLine(run.line, absl::StrCat("bytes end at 0x", absl::Hex(end), ", past the size 0x",
                                           absl::Hex(image.size())));
    }
    auto dst = image.begin() + static_cast<std::ptrdiff_t>(run.offset);
    for (uint64_t i = 0; i < run.times; ++i) dst = std::copy(run.unit.begin(), run.unit.end(), dst);
  }
  return image;
}

}  // namespace

absl::StatusOr<std::vector<uint8_t>> ParseImageText(absl::string_view text) {
  Description description;
  int number = 0;
  for (const absl::string_view raw_line : absl::StrSplit(text, '\n')) {
    ++number;
    const absl::string_view line =
        absl::StripAsciiWhitespace(raw_line.substr(0, raw_line.find('#')));
    if (line.empty()) continue;
    const absl::Status status = description.AddLine(line, number);
    if (!status.ok()) return AtLine(number, status.message());
  }
  return BuildImage(std::move(description));
}

absl::StatusOr<std::vector<uint8_t>> LoadCorpusImage(absl::string_view name) {
  const std::string path = absl::StrCat(QCOW2CHECK_SOURCE_DIR, "/corpora/", name);
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  return ParseImageText(text);
}

}  // namespace qcow2check::testing

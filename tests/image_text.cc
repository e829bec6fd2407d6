// Reads qtxt line by line into the image's bytes, and writes it. corpora/qtxt.py reads the same
// grammar; both must refuse the same texts.
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
constexpr uint64_t kMaxWholeImageBytes = uint64_t{64} << 20;
constexpr uint64_t kMaxNamedBytes = kMaxWholeImageBytes;
// More than any file system has; offsets in tables have 56 bits, too.
constexpr uint64_t kMaxSparseImageBytes = uint64_t{1} << 56;

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

absl::StatusOr<Run> ParseRun(absl::string_view line, uint64_t max_size_bytes) {
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
  if (run.offset > max_size_bytes || run.times > kMaxNamedBytes / run.unit.size()) {
    return absl::InvalidArgumentError(absl::StrCat("bytes past ", max_size_bytes >> 20,
                                                   " MiB, the largest image read from text"));
  }
  return run;
}

// What the lines of a text say, before they are checked against each other.
struct Description {
  uint64_t max_size_bytes = 0;
  std::optional<uint64_t> size = {};
  std::vector<Run> runs = {};
  uint64_t named_bytes = 0;

  absl::Status AddLine(absl::string_view line, int number) {
    const std::pair<absl::string_view, absl::string_view> words =
        absl::StrSplit(line, absl::MaxSplits(' ', 1));
    if (words.first != "size") {
      absl::StatusOr<Run> run = ParseRun(line, max_size_bytes);
      if (!run.ok()) return run.status();
      run->line = number;
      named_bytes += run->unit.size() * run->times;
      if (named_bytes > kMaxNamedBytes) return absl::InvalidArgumentError("over 64 MiB of bytes");
      runs.push_back(*std::move(run));
      return absl::OkStatus();
    }
    if (size.has_value()) return absl::InvalidArgumentError("a second size");
    const absl::StatusOr<uint64_t> value = ParseNumber(words.second);
    if (!value.ok()) return value.status();
    if (*value > max_size_bytes) {
      return absl::InvalidArgumentError(absl::StrCat("a size over ", max_size_bytes >> 20,
                                                     " MiB, the largest image read from text"));
    }
    size = *value;
    return absl::OkStatus();
  }
};

absl::Status AtLine(int line, absl::string_view message) {
  return absl::InvalidArgumentError(absl::StrCat("line ", line, ": ", message));
}

absl::StatusOr<SparseFile> BuildImage(Description description) {
  if (!description.size.has_value()) return AtLine(1, "no size line");
  std::stable_sort(description.runs.begin(), description.runs.end(),
                   [](const Run& a, const Run& b) { return a.offset < b.offset; });
  SparseFile image(*description.size);
  uint64_t end = 0;
  std::vector<uint8_t> bytes;
  for (const Run& run : description.runs) {
    if (run.offset < end) {
      return AtLine(run.line,
                    absl::StrCat("bytes at 0x", absl::Hex(run.offset), " are given twice"));
    }
    end = run.end();
    if (end > image.size_bytes()) {
      return AtLine(run.line, absl::StrCat("bytes end at 0x", absl::Hex(end), ", past the size 0x",
                                           absl::Hex(image.size_bytes())));
    }
    bytes.clear();
    for (uint64_t i = 0; i < run.times; ++i) {
      bytes.insert(bytes.end(), run.unit.begin(), run.unit.end());
    }
    const absl::Status status = image.WriteAt(HostOffset{run.offset}, bytes);
    if (!status.ok()) return status;
  }
  return image;
}

absl::StatusOr<SparseFile> Parse(absl::string_view text, uint64_t max_size_bytes) {
  Description description{.max_size_bytes = max_size_bytes};
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

// The unit that is left out (zeros) or folded (equal neighbours), and how many make a line.
constexpr uint64_t kWordBytes = 8;
constexpr uint64_t kWordsInLine = 2;

void AppendLine(uint64_t offset, absl::string_view bytes, uint64_t times, std::string& text) {
  absl::StrAppend(&text, "0x", absl::Hex(offset), ": ", absl::BytesToHexString(bytes));
  if (times > 1) absl::StrAppend(&text, " * ", times);
  text += '\n';
}

// The lines of a page or of what there is of it.
void AppendLines(uint64_t offset, absl::string_view bytes, std::string& text) {
  const auto word = [&](uint64_t at) { return bytes.substr(at, kWordBytes); };
  const auto is_zero = [&](uint64_t at) {
    return word(at).find_first_not_of('\0') == absl::string_view::npos;
  };
  for (uint64_t at = 0; at < bytes.size();) {
    uint64_t end = at + word(at).size();
    while (end < bytes.size() && word(end) == word(at)) end += word(end).size();
    const uint64_t times = (end - at) / word(at).size();
    if (is_zero(at)) {
      at = end;
    } else if (times > kWordsInLine) {
      AppendLine(offset + at, word(at), times, text);
      at = end;
    } else {
      end = at;
      do {
        end += word(end).size();
      } while (end < bytes.size() && end - at < kWordsInLine * kWordBytes && !is_zero(end));
      AppendLine(offset + at, bytes.substr(at, end - at), 1, text);
      at = end;
    }
  }
}

}  // namespace

absl::StatusOr<std::vector<uint8_t>> ParseImageText(absl::string_view text) {
  const absl::StatusOr<SparseFile> image = Parse(text, kMaxWholeImageBytes);
  if (!image.ok()) return image.status();
  return image->Bytes();
}

absl::StatusOr<SparseFile> ParseSparseImage(absl::string_view text) {
  return Parse(text, kMaxSparseImageBytes);
}

std::string FormatImageText(const SparseFile& image) {
  std::string text = absl::StrCat("size 0x", absl::Hex(image.size_bytes()), "\n");
  for (uint64_t at = 0;;) {
    const Extent data = image.NextData(HostOffset{at});
    if (data.empty()) return text;
    for (at = data.begin_bytes; at < data.end_bytes; at += SparseFile::kPageBytes) {
      const std::vector<uint8_t> page =
          image.Bytes(at, std::min(SparseFile::kPageBytes, data.end_bytes - at));
      AppendLines(at, {reinterpret_cast<const char*>(page.data()), page.size()}, text);
    }
    at = data.end_bytes;
  }
}

absl::StatusOr<std::vector<uint8_t>> LoadCorpusImage(absl::string_view name) {
  const std::string path = absl::StrCat(QCOW2CHECK_SOURCE_DIR, "/corpora/", name);
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  return ParseImageText(text);
}

}  // namespace qcow2check::testing

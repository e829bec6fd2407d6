#include "cli/shell_command.h"

#include <cstdint>

#include "absl/algorithm/container.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "cli/printable.h"

namespace qcow2check {

std::string ShellQuoted(absl::string_view word) {
  const auto is_plain = [](unsigned char c) {
    return absl::ascii_isalnum(c) || absl::StrContains("%+,-./:=@_", static_cast<char>(c));
  };
  if (!word.empty() && absl::c_all_of(word, is_plain)) return std::string(word);
  if (Printable(word) == word) {
    return absl::StrCat("'", absl::StrReplaceAll(word, {{"'", "'\\''"}}), "'");
  }
  std::string quoted = "$'";
  for (const char c : word) {
    if (c == '\'' || c == '\\') {
      absl::StrAppend(&quoted, "\\", absl::string_view(&c, 1));
    } else if (absl::ascii_isprint(static_cast<unsigned char>(c))) {
      quoted.push_back(c);
    } else {
      // Three octal digits always: a digit behind them stays a digit.
      absl::StrAppendFormat(&quoted, "\\%03o", static_cast<uint8_t>(c));
    }
  }
  return quoted + "'";
}

std::string CommandLine(absl::string_view words, const std::vector<std::string>& files) {
  std::string line = absl::StrCat("qcow2check", words.empty() ? "" : " ", words);
  for (const std::string& file : files) {
    absl::StrAppend(&line, " ", ShellQuoted(absl::StartsWith(file, "-") ? "./" + file : file));
  }
  return line;
}

}  // namespace qcow2check

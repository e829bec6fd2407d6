#include "cli/wrapped.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace qcow2check {

std::string Wrapped(absl::string_view text, size_t indent, size_t column) {
  std::string lines;
  bool line_is_empty = true;
  while (!text.empty()) {
    const size_t space = std::min(text.find(' '), text.size());
    const absl::string_view word = text.substr(0, space);
    if (!line_is_empty && column + 1 + word.size() > static_cast<size_t>(kTextReportColumns)) {
      absl::StrAppend(&lines, "\n", std::string(indent, ' '));
      column = indent;
      line_is_empty = true;
    }
    absl::StrAppend(&lines, line_is_empty ? "" : " ", word);
    column += word.size() + (line_is_empty ? 0 : 1);
    line_is_empty = false;
    text.remove_prefix(std::min(space + 1, text.size()));
  }
  return lines;
}

}  // namespace qcow2check

#include "fuzz/outputs.h"

#include "absl/strings/str_split.h"
#include "cli/printable.h"
#include "nlohmann/json.hpp"
#include "tests/plain_promises.h"

namespace qcow2check::testing {

void CheckJson(absl::string_view json, std::string& broken) {
  const nlohmann::json parsed =
      nlohmann::json::parse(json.begin(), json.end(), nullptr, /*allow_exceptions=*/false);
  if (parsed.is_discarded()) AddBroken("Reports are JSON in UTF-8", json, broken);
}

void CheckText(absl::string_view text, std::string& broken) {
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    if (Printable(line) != line) AddBroken("Text can be shown", Printable(line), broken);
  }
}

}  // namespace qcow2check::testing

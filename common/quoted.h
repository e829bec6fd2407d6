// Names from an image, made fit for a message: in quotes, without anything a terminal would act on.
#ifndef QCOW2CHECK_COMMON_QUOTED_H_
#define QCOW2CHECK_COMMON_QUOTED_H_

#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace qcow2check {

inline std::string Quoted(absl::string_view name) {
  return absl::StrCat("\"", absl::CHexEscape(name), "\"");
}

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_QUOTED_H_

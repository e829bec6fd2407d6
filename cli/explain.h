// `qcow2check explain CODE`, `--list-codes` and the text of docs/codes.md: all from the one table.
#ifndef QCOW2CHECK_CLI_EXPLAIN_H_
#define QCOW2CHECK_CLI_EXPLAIN_H_

#include <string>

#include "common/finding.h"

namespace qcow2check {

// What a finding of this code is, means and what can be done, in a few lines.
std::string ExplainCode(const FindingCodeInfo& info);

// One line for each code: its name, severity and sentence.
std::string ListCodes();

// docs/codes.md.
std::string CodesAsMarkdown();

}  // namespace qcow2check

#endif  // QCOW2CHECK_CLI_EXPLAIN_H_

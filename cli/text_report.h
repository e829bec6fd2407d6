// A report for people: what is wrong, where, how bad, what next; grouped, worst first, capped.
#ifndef QCOW2CHECK_CLI_TEXT_REPORT_H_
#define QCOW2CHECK_CLI_TEXT_REPORT_H_

#include <string>
#include <vector>

#include "checker/chain.h"
#include "checker/report.h"

namespace qcow2check {

// The whole text, ending in the lines that scripts look for in the output of `qemu-img check`.
std::string TextReport(const std::string& filename, const Report& report,
                       const std::vector<ChainLayer>& chain, bool colour);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CLI_TEXT_REPORT_H_

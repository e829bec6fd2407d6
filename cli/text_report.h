// A report for people: what is wrong, where, how bad, what next; grouped, worst first, capped.
#ifndef QCOW2CHECK_CLI_TEXT_REPORT_H_
#define QCOW2CHECK_CLI_TEXT_REPORT_H_

#include <string>
#include <vector>

#include "checker/chain.h"
#include "checker/report.h"

namespace qcow2check {

struct TextOptions {
  bool colour = false;
  bool several_images = false;  // say which image it is about, even if there is nothing to say
  // Where the image is, for command lines that repair it; empty if no repair is to be proposed.
  std::string repair_path;
};

// The whole text, ending in the lines that scripts look for in the output of `qemu-img check`.
// Lines are at most kTextReportColumns wide, unless a name is longer. Nothing from the image or
// the file name reaches a terminal as a control character.
std::string TextReport(const std::string& filename, const Report& report,
                       const std::vector<ChainLayer>& chain, const TextOptions& options);

// The last lines of that text: those of `qemu-img check`.
std::string ClosingLines(const Report& report);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CLI_TEXT_REPORT_H_

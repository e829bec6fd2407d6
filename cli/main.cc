// The program: dispatches to the command that the first argument names.
#include <csignal>
#include <cstdio>
#include <string>
#include <vector>

#include "cli/check_command.h"
#include "cli/explain.h"
#include "cli/inspect_command.h"
#include "cli/undo_command.h"

namespace qcow2check {
namespace {

int RunExplain(const std::vector<std::string>& arguments) {
  const bool wants_help =
      arguments.size() == 1 && (arguments[0] == "--help" || arguments[0] == "-h");
  if (arguments.size() != 1 || wants_help) {
    std::fputs("usage: qcow2check explain CODE (qcow2check --list-codes lists them)\n",
               wants_help ? stdout : stderr);
    return wants_help ? 0 : 1;
  }
  const FindingCodeInfo* info = FindFindingCode(arguments[0]);
  if (info == nullptr) {
    std::fprintf(stderr,
                 "qcow2check: there is no finding code '%s' (see qcow2check --list-codes)\n",
                 arguments[0].c_str());
    return 1;
  }
  std::fputs(ExplainCode(*info).c_str(), stdout);
  return 0;
}

int Run(std::vector<std::string> arguments) {
  const std::string command = arguments.empty() ? "" : arguments[0];
  const std::vector<std::string> rest(arguments.begin() + (arguments.empty() ? 0 : 1),
                                      arguments.end());
  if (command == "explain") return RunExplain(rest);
  if (command == "undo") return RunUndoCommand(rest);
  if (command == "inspect") return RunInspectCommand(rest);
  if (command == "--list-codes") {
    std::fputs(ListCodes().c_str(), stdout);
    return 0;
  }
  if (command == "--list-codes=markdown") {
    std::fputs(CodesAsMarkdown().c_str(), stdout);
    return 0;
  }
  return RunCheckCommand(command == "check" ? rest : arguments);
}

}  // namespace
}  // namespace qcow2check

int main(int argc, char** argv) {
  // Where no file may become so long a write fails, as on a full disk: a report says so, and a
  // repair stops where it can be taken back. The default is to end without a word.
  std::signal(SIGXFSZ, SIG_IGN);
  const int exit_code = qcow2check::Run(std::vector<std::string>(argv + 1, argv + argc));
  // A full disk or a closed pipe must not look like a finished report.
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    std::fputs("qcow2check: cannot write the report\n", stderr);
    return 1;
  }
  return exit_code;
}

// What one run of `qcow2check inspect` has to show.
#ifndef QCOW2CHECK_CLI_INSPECT_RESULT_H_
#define QCOW2CHECK_CLI_INSPECT_RESULT_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "checker/inspect.h"

namespace qcow2check {

// A part of the output. Nothing: not asked for; a status: why it cannot be shown.
template <typename View>
using Section = std::optional<absl::StatusOr<View>>;

struct InspectResult {
  std::string filename;
  HeaderView header;
  bool show_header = false;
  Section<ExtensionsView> extensions;
  Section<L1View> l1;
  Section<RefcountsView> refcounts;
  Section<SnapshotsView> snapshots;
  Section<BitmapsView> bitmaps;
  Section<L2View> l2;
  Section<GuestLocation> guest;
  Section<ClusterOwners> cluster;
  std::vector<std::string> notes;  // what could not be read on the way
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_CLI_INSPECT_RESULT_H_

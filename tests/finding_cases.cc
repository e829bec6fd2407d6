#include "tests/finding_cases.h"

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/memory_file.h"

namespace qcow2check::testing {

std::vector<FindingCase> AllFindingCases() {
  std::vector<FindingCase> all;
  for (absl::Span<const FindingCase> part :
       {HeaderCases(), ExtensionCases(), TableCases(), L2EntryCases(), OwnerCases(),
        RefcountCases(), SnapshotCases(), BitmapCases(), DataCases(), ChainCases(),
        CoverageCases()}) {
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

ImageOptions SmallOptions() {
  return {
      .cluster_bits = 12, .virtual_size = uint64_t{4} << 20, .steps = {WriteClusters{.count = 8}}};
}

BuiltImage SmallImage() { return BuildImage(SmallOptions()); }

Report Check(const BuiltImage& image, const CheckOptions& options) {
  return CheckImage(MemoryFile(image.bytes), options);
}

Fired FiresAt(const BuiltImage& image, uint64_t place, const CheckOptions& options) {
  return {Check(image, options), place};
}

Fired FiresAtField(const BuiltImage& image, absl::string_view field) {
  const auto found = std::find_if(kHeaderFields.begin(), kHeaderFields.end(),
                                  [&](const HeaderField& one) { return one.name == field; });
  QCOW2CHECK_CHECK(found != kHeaderFields.end());
  return FiresAt(image, found->offset);
}

}  // namespace qcow2check::testing

// The backing chain (--chain): opens the files that images name, one below the other.
#ifndef QCOW2CHECK_CHECKER_CHAIN_H_
#define QCOW2CHECK_CHECKER_CHAIN_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "checker/check.h"
#include "checker/report.h"
#include "common/open_image.h"

namespace qcow2check {

// A file below the image.
struct ChainLayer {
  std::string filename;
  std::string format;
  // Missing, with the verdict kUnsupported, for formats that are neither qcow2 nor raw: what the
  // file holds was not looked at.
  std::optional<uint64_t> virtual_size_bytes;
  Verdict verdict = Verdict::kClean;
  Totals totals;
};

// The path or NBD URI of a file that the image `image_path` names as `name`: relative names are
// relative to the folder of the image. kInvalidArgument for names that are neither (other
// protocols, json:), and for relative names in an image on an NBD server, which has no folder.
absl::StatusOr<std::string> ResolveName(const std::string& image_path, const std::string& name);

// Follows the backing files of the image at `path`, whose report is `report`, checks each layer
// that is qcow2, and adds what is wrong with the chain to the report. `id` is the image's, to
// notice a cycle. Opens at most kMaxChainDepth files, read-only.
std::vector<ChainLayer> CheckChain(const std::string& path, const ImageId& id,
                                   const CheckOptions& options, Report& report);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CHECKER_CHAIN_H_

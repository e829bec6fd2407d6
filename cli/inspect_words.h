// Words for what `qcow2check inspect` shows: entries as bytes, decoded entries, counts.
#ifndef QCOW2CHECK_CLI_INSPECT_WORDS_H_
#define QCOW2CHECK_CLI_INSPECT_WORDS_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "checker/inspect.h"

namespace qcow2check {

// A table entry as its bytes are in the file.
std::string EntryBytes(uint64_t entry);
// A name from the image, in quotes and fit for a terminal.
std::string QuotedText(absl::string_view text);
// "0 to 512 MiB".
std::string GuestRangeText(uint64_t begin, uint64_t length);
// "... and 7 more", as a line; empty for 0.
std::string LeftOut(uint64_t left_out, absl::string_view indent);

// "L2 table at 0x40000, COPIED".
std::string L1EntryText(uint64_t entry);
// "normal at 0x50000, COPIED".
std::string L2EntryText(const L2EntryView& entry, const Geometry& geometry);

// The answers to --guest and --cluster, in a few lines.
std::string GuestText(const GuestLocation& location, const Geometry& geometry);
std::string ClusterText(const ClusterOwners& view);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CLI_INSPECT_WORDS_H_

// Header extensions (specification, "Header extensions"): the list behind the header, and the
// records inside those that we know.
#ifndef QCOW2CHECK_COMMON_HEADER_EXTENSION_H_
#define QCOW2CHECK_COMMON_HEADER_EXTENSION_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace qcow2check {

enum ExtensionType : uint32_t {
  kExtensionEnd = 0,
  kExtensionBackingFormat = 0xe2792aca,
  kExtensionFeatureNames = 0x6803f857,
  kExtensionBitmaps = 0x23852875,
  kExtensionCrypto = 0x0537be77,
  kExtensionDataFile = 0x44415441,
  // Ours, "q2ck": a compatible extension that other programs ignore and QEMU keeps.
  kExtensionRepairNote = 0x7132636b,
};

struct HeaderExtension {
  uint32_t type = 0;
  uint64_t offset_bytes = 0;  // of the extension's type word, from the start of the file
  uint32_t length_bytes = 0;  // as stated, without padding
  bool padding_is_zero = true;
  std::vector<uint8_t> data;  // length_bytes long
};

struct HeaderExtensionList {
  std::vector<HeaderExtension> extensions;  // the end marker is not among them
  uint64_t end_bytes = 0;                   // first byte behind the list
  bool has_end_marker = false;
  // Set if an extension claims more bytes than the area has; parsing stops there.
  std::optional<HeaderExtension> overflow;
};

// Parses the extensions in first_cluster[begin, end). `first_cluster` are the first bytes of the
// file; `end` is where the area stops (the backing file name, or the end of the cluster).
HeaderExtensionList ParseHeaderExtensions(absl::Span<const uint8_t> first_cluster, uint64_t begin,
                                          uint64_t end);

// "backing file format", ..., or "" for a type we do not know.
absl::string_view ExtensionName(uint32_t type);

// One 48-byte row of the feature name table.
struct FeatureNameEntry {
  uint8_t type = 0;  // 0 incompatible, 1 compatible, 2 autoclear
  uint8_t bit = 0;
  std::string name;
};
inline constexpr uint32_t kFeatureNameEntryBytes = 48;
std::vector<FeatureNameEntry> DecodeFeatureNames(absl::Span<const uint8_t> data);

// "Bitmaps extension".
struct BitmapsExtension {
  uint32_t nb_bitmaps = 0;
  uint32_t reserved = 0;
  uint64_t directory_size_bytes = 0;
  uint64_t directory_offset = 0;
};
inline constexpr uint32_t kBitmapsExtensionBytes = 24;
// Nothing unless there are exactly kBitmapsExtensionBytes.
std::optional<BitmapsExtension> DecodeBitmapsExtension(absl::Span<const uint8_t> data);

// "Full disk encryption header pointer".
struct CryptoExtension {
  uint64_t offset = 0;
  uint64_t length_bytes = 0;
};
inline constexpr uint32_t kCryptoExtensionBytes = 16;
// Nothing unless there are exactly kCryptoExtensionBytes.
std::optional<CryptoExtension> DecodeCryptoExtension(absl::Span<const uint8_t> data);

inline constexpr uint32_t kRepairNoteVersion = 1;
inline constexpr uint32_t kRepairNoteBytes = 8;
// What a note says of the unreferenced clusters of an image.
enum class OrphanNote : uint32_t {
  kVoid = 0,      // nothing: the note was withdrawn
  kGivenUp = 1,   // keep them: what the repair gave up was the only sign that they matter
  kHeldBack = 2,  // keep them: what speaks for them is still in the image, but a guest may end it
  kCutOff = 3,    // as kGivenUp; and the file had been cut off
};
// The note that a repair leaves in an image where unreferenced clusters may be the only copy of
// something (docs/repair.md).
struct RepairNote {
  uint32_t version = kRepairNoteVersion;
  OrphanNote orphans = OrphanNote::kVoid;
};
// Nothing unless it is a note of this version. What it says of orphans is kGivenUp, which asks for
// most care, if it is none of the values.
std::optional<RepairNote> DecodeRepairNote(absl::Span<const uint8_t> data);
std::vector<uint8_t> EncodeRepairNote(const RepairNote& note);

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_HEADER_EXTENSION_H_

// The image header (specification, "Header"): its fields, their places and their decoding.
#ifndef QCOW2CHECK_COMMON_HEADER_H_
#define QCOW2CHECK_COMMON_HEADER_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/geometry.h"

namespace qcow2check {

inline constexpr uint32_t kMagic = 0x514649fb;  // "QFI\xfb"
inline constexpr size_t kHeaderBytesV2 = 72;
inline constexpr size_t kHeaderBytesV3 = 104;
// The part of a version 3 header that we decode; what follows is unknown and preserved.
inline constexpr size_t kHeaderBytesKnown = 112;

enum IncompatibleFeature : uint64_t {
  kDirty = uint64_t{1} << 0,             // refcounts may be too low
  kCorrupt = uint64_t{1} << 1,           // some structure was found corrupt
  kExternalDataFile = uint64_t{1} << 2,  // guest clusters are in another file
  kCompressionType = uint64_t{1} << 3,   // compression_type is not deflate
  kExtendedL2 = uint64_t{1} << 4,        // 16-byte L2 entries with subclusters
};
inline constexpr uint64_t kKnownIncompatible = 0x1f;

enum CompatibleFeature : uint64_t { kLazyRefcounts = uint64_t{1} << 0 };
inline constexpr uint64_t kKnownCompatible = 0x1;

enum AutoclearFeature : uint64_t {
  kBitmapsConsistent = uint64_t{1} << 0,
  kRawExternalData = uint64_t{1} << 1,
};
inline constexpr uint64_t kKnownAutoclear = 0x3;

enum CryptMethod : uint32_t { kCryptNone = 0, kCryptAes = 1, kCryptLuks = 2 };
enum CompressionType : uint8_t { kDeflate = 0, kZstd = 1 };

// The header as it is in the file. Fields that version 2 does not have hold the values that it
// implies (16-bit refcounts, a header of 72 bytes, no features, deflate).
struct Header {
  uint32_t magic = 0;
  uint32_t version = 0;
  uint64_t backing_file_offset = 0;
  uint32_t backing_file_size = 0;
  uint32_t cluster_bits = 0;
  uint64_t size = 0;
  uint32_t crypt_method = 0;
  uint32_t l1_size = 0;
  uint64_t l1_table_offset = 0;
  uint64_t refcount_table_offset = 0;
  uint32_t refcount_table_clusters = 0;
  uint32_t nb_snapshots = 0;
  uint64_t snapshots_offset = 0;
  uint64_t incompatible_features = 0;
  uint64_t compatible_features = 0;
  uint64_t autoclear_features = 0;
  uint32_t refcount_order = 4;
  uint32_t header_length = kHeaderBytesV2;
  uint8_t compression_type = kDeflate;

  bool Has(IncompatibleFeature bit) const { return (incompatible_features & bit) != 0; }
  bool Has(CompatibleFeature bit) const { return (compatible_features & bit) != 0; }
  bool Has(AutoclearFeature bit) const { return (autoclear_features & bit) != 0; }
  uint64_t cluster_size() const { return uint64_t{1} << cluster_bits; }
};

// One row for each header field, in file order: where it is and how wide. The decoder, the
// `inspect` listing and the tests that damage fields by name all read this table.
struct HeaderField {
  absl::string_view name;
  size_t offset;   // bytes from the start of the file
  size_t width;    // bytes
  uint32_t since;  // first version that has it
};
inline constexpr std::array<HeaderField, 19> kHeaderFields = {{
    {"magic", 0, 4, 2},
    {"version", 4, 4, 2},
    {"backing_file_offset", 8, 8, 2},
    {"backing_file_size", 16, 4, 2},
    {"cluster_bits", 20, 4, 2},
    {"size", 24, 8, 2},
    {"crypt_method", 32, 4, 2},
    {"l1_size", 36, 4, 2},
    {"l1_table_offset", 40, 8, 2},
    {"refcount_table_offset", 48, 8, 2},
    {"refcount_table_clusters", 56, 4, 2},
    {"nb_snapshots", 60, 4, 2},
    {"snapshots_offset", 64, 8, 2},
    {"incompatible_features", 72, 8, 3},
    {"compatible_features", 80, 8, 3},
    {"autoclear_features", 88, 8, 3},
    {"refcount_order", 96, 4, 3},
    {"header_length", 100, 4, 3},
    {"compression_type", 104, 1, 3},
}};

// The field's value in `bytes`, or nothing if the bytes end before it.
std::optional<uint64_t> LoadHeaderField(const HeaderField& field, absl::Span<const uint8_t> bytes);

// Decodes whatever `bytes` (the start of the file) hold; missing bytes count as zero. Never
// fails: judging the values is the checker's work. compression_type is read only where
// header_length says that it is there.
Header DecodeHeader(absl::Span<const uint8_t> bytes);

// The geometry, if cluster_bits and refcount_order are in range; otherwise nothing, and no table
// can be read.
std::optional<Geometry> GeometryOf(const Header& header);

// Names of feature bits as the specification calls them, or "" for unknown bits.
// `type`: 0 incompatible, 1 compatible, 2 autoclear; bit 0..63.
absl::string_view FeatureName(int type, int bit);

// The set bits in words: "dirty, bit 40".
std::string DescribeFeatures(int type, uint64_t bits);

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_HEADER_H_

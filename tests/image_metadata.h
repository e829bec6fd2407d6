// Encoders for the records of an image that are not tables of words: header, extensions, snapshot
// and bitmap directory entries, LUKS header. Pure; a part of the image builder.
#ifndef QCOW2CHECK_TESTS_IMAGE_METADATA_H_
#define QCOW2CHECK_TESTS_IMAGE_METADATA_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/bitmap_entry.h"
#include "common/header.h"
#include "common/header_extension.h"
#include "common/snapshot_entry.h"
#include "tests/image_builder.h"

namespace qcow2check::testing {

// The header's fields, header.header_length bytes of them.
std::vector<uint8_t> EncodeHeader(const Header& header);

// QEMU's feature name table.
std::vector<uint8_t> EncodeFeatureNames();
std::vector<uint8_t> EncodeBitmapsExtension(const BitmapsExtension& extension);
std::vector<uint8_t> EncodeCryptoExtension(const CryptoExtension& extension);
std::vector<uint8_t> BytesOf(absl::string_view text);

// An extension with its type, length and padding; type 0 is the end marker.
std::vector<uint8_t> EncodeExtension(uint32_t type, absl::Span<const uint8_t> data);

// A snapshot table entry: the lengths come from `entry.id`, `entry.name` and extra_data_bytes, of
// which those behind the 24 that are known are zeros.
std::vector<uint8_t> EncodeSnapshotEntry(const SnapshotEntry& entry);
std::vector<uint8_t> EncodeBitmapEntry(const BitmapEntry& entry);

// A LUKS1 header and its key material, up to the payload.
std::vector<uint8_t> EncodeLuksHeader(const LuksOptions& options);

// `cluster` as QEMU compresses it, padded to nothing.
std::vector<uint8_t> Compress(CompressionType type, absl::Span<const uint8_t> cluster);

// `length` bytes that look random and are always the same for the same seed.
std::vector<uint8_t> RandomBytes(uint64_t seed, uint64_t length);

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_IMAGE_METADATA_H_

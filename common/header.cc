#include "common/header.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/byte_order.h"
#include "common/limits.h"

namespace qcow2check {

std::optional<uint64_t> LoadHeaderField(const HeaderField& field, absl::Span<const uint8_t> bytes) {
  if (bytes.size() < field.offset + field.width) return std::nullopt;
  const uint8_t* p = bytes.data() + field.offset;
  switch (field.width) {
    case 1:
      return *p;
    case 4:
      return Load32(p);
    default:
      return Load64(p);
  }
}

Header DecodeHeader(absl::Span<const uint8_t> bytes) {
  std::array<uint8_t, kHeaderBytesKnown> raw = {};
  std::copy_n(bytes.begin(), std::min(bytes.size(), raw.size()), raw.begin());
  const uint8_t* p = raw.data();
  Header header;
  header.magic = Load32(p);
  header.version = Load32(p + 4);
  header.backing_file_offset = Load64(p + 8);
  header.backing_file_size = Load32(p + 16);
  header.cluster_bits = Load32(p + 20);
  header.size = Load64(p + 24);
  header.crypt_method = Load32(p + 32);
  header.l1_size = Load32(p + 36);
  header.l1_table_offset = Load64(p + 40);
  header.refcount_table_offset = Load64(p + 48);
  header.refcount_table_clusters = Load32(p + 56);
  header.nb_snapshots = Load32(p + 60);
  header.snapshots_offset = Load64(p + 64);
  if (header.version < 3) return header;
  header.incompatible_features = Load64(p + 72);
  header.compatible_features = Load64(p + 80);
  header.autoclear_features = Load64(p + 88);
  header.refcount_order = Load32(p + 96);
  header.header_length = Load32(p + 100);
  if (header.header_length > kHeaderBytesV3) header.compression_type = p[104];
  return header;
}

std::optional<Geometry> GeometryOf(const Header& header) {
  if (header.cluster_bits < kMinClusterBits || header.cluster_bits > kMaxClusterBits ||
      header.refcount_order > kMaxRefcountOrder) {
    return std::nullopt;
  }
  Geometry geometry;
  geometry.version = header.version < 3 ? 2 : 3;
  geometry.cluster_bits = static_cast<int>(header.cluster_bits);
  geometry.refcount_order = static_cast<int>(header.refcount_order);
  geometry.extended_l2 = header.Has(kExtendedL2);
  geometry.data_file = header.Has(kExternalDataFile);
  geometry.virtual_size_bytes = header.size;
  return geometry;
}

absl::string_view FeatureName(int type, int bit) {
  static constexpr absl::string_view kIncompatible[] = {"dirty", "corrupt", "external data file",
                                                        "compression type", "extended L2 entries"};
  static constexpr absl::string_view kAutoclear[] = {"bitmaps", "raw external data"};
  if (bit < 0) return "";
  if (type == 0 && bit < 5) return kIncompatible[bit];
  if (type == 1 && bit == 0) return "lazy refcounts";
  if (type == 2 && bit < 2) return kAutoclear[bit];
  return "";
}

std::string DescribeFeatures(int type, uint64_t bits) {
  std::string text;
  for (int bit = 0; bit < 64; ++bit) {
    if (((bits >> bit) & 1) == 0) continue;
    const absl::string_view name = FeatureName(type, bit);
    absl::StrAppend(&text, text.empty() ? "" : ", ");
    if (name.empty()) {
      absl::StrAppend(&text, "bit ", bit);
    } else {
      absl::StrAppend(&text, name);
    }
  }
  return text;
}

}  // namespace qcow2check

#include "tests/image_builder.h"

#include <algorithm>
#include <utility>

#include "absl/types/span.h"
#include "common/byte_order.h"
#include "common/check.h"
#include "common/checked_math.h"
#include "common/header_extension.h"
#include "tests/image_mapping.h"
#include "tests/image_metadata.h"

namespace qcow2check::testing {
namespace {

constexpr uint8_t kTrailingByte = 0x5a;
// The smallest clusters for which QEMU writes a feature name table.
constexpr int kMinClusterBitsFeatureNames = 13;

void CheckOptions(const ImageOptions& options) {
  QCOW2CHECK_CHECK(options.version == 2 || options.version == 3);
  QCOW2CHECK_CHECK(options.cluster_bits >= 9 && options.cluster_bits <= 21);
  QCOW2CHECK_CHECK(options.refcount_order >= 0 && options.refcount_order <= 6);
  QCOW2CHECK_CHECK(!options.extended_l2 || options.cluster_bits >= 14);
  QCOW2CHECK_CHECK(options.header_length >= kHeaderBytesV3 && options.header_length % 8 == 0);
  QCOW2CHECK_CHECK(options.compression_type == kDeflate || options.header_length > kHeaderBytesV3);
  QCOW2CHECK_CHECK(!options.backing.has_value() || !options.data_file.has_value() ||
                   !options.data_file->raw);
  if (options.version == 3) return;
  QCOW2CHECK_CHECK(options.refcount_order == 4 && !options.extended_l2 && options.bitmaps.empty());
  QCOW2CHECK_CHECK(options.compression_type == kDeflate && !options.data_file.has_value());
  QCOW2CHECK_CHECK(!options.lazy_refcounts && !options.dirty && !options.corrupt);
}

// --- Bitmaps ---

// The bitmap's data: one bit a granule.
std::vector<uint8_t> BitsOf(const BitmapOptions& options, uint64_t virtual_size) {
  const uint64_t granules = DivideRoundingUp(virtual_size, uint64_t{1} << options.granularity_bits);
  std::vector<uint8_t> bits(DivideRoundingUp(granules, 8));
  for (const DirtyRange& range : options.dirty) {
    const uint64_t end = std::min(range.guest_offset + range.length, virtual_size);
    for (uint64_t i = range.guest_offset >> options.granularity_bits;
         i << options.granularity_bits < end; ++i) {
      bits[i / 8] = static_cast<uint8_t>(bits[i / 8] | 1u << (i % 8));
    }
  }
  return bits;
}

BuiltBitmap StoreBitmap(const BitmapOptions& options, const BuiltImage& image,
                        ImageMapping& mapping) {
  const std::vector<uint8_t> bits = BitsOf(options, image.geometry.virtual_size_bytes);
  const uint64_t cluster_size = image.cluster_size();
  BuiltBitmap bitmap;
  bitmap.name = options.name;
  bitmap.table_entries = DivideRoundingUp(bits.size(), cluster_size);
  std::vector<uint8_t> table(bitmap.table_entries * 8);
  for (uint64_t i = 0; i < bitmap.table_entries; ++i) {
    const absl::Span<const uint8_t> piece =
        absl::MakeConstSpan(bits).subspan(i * cluster_size, cluster_size);
    const auto all = [&](uint8_t value) {
      return std::all_of(piece.begin(), piece.end(), [&](uint8_t byte) { return byte == value; });
    };
    if (all(0)) continue;
    if (options.use_all_ones && piece.size() == cluster_size && all(0xff)) {
      Store64(&table[8 * i], 1);
      continue;
    }
    std::vector<uint8_t> cluster(piece.begin(), piece.end());
    cluster.resize(cluster_size);
    bitmap.data_offsets.push_back(mapping.AppendRegion(cluster));
    Store64(&table[8 * i], bitmap.data_offsets.back());
  }
  bitmap.table_offset = mapping.AppendRegion(table);
  return bitmap;
}

void StoreBitmaps(const ImageOptions& options, ImageMapping& mapping, BuiltImage& image) {
  if (options.bitmaps.empty()) return;
  std::vector<uint8_t> directory;
  for (const BitmapOptions& one : options.bitmaps) {
    BuiltBitmap bitmap = StoreBitmap(one, image, mapping);
    BitmapEntry entry;
    entry.table_offset = bitmap.table_offset;
    entry.table_entries = static_cast<uint32_t>(bitmap.table_entries);
    entry.flags = (one.in_use ? kBitmapInUse : 0u) | (one.auto_flag ? kBitmapAuto : 0u);
    entry.granularity_bits = static_cast<uint8_t>(one.granularity_bits);
    entry.name = one.name;
    const std::vector<uint8_t> encoded = EncodeBitmapEntry(entry);
    bitmap.entry_offset = directory.size();
    bitmap.entry_length = encoded.size();
    directory.insert(directory.end(), encoded.begin(), encoded.end());
    image.bitmaps.push_back(std::move(bitmap));
  }
  image.bitmap_directory = {mapping.AppendRegion(directory), directory.size()};
  for (BuiltBitmap& bitmap : image.bitmaps) bitmap.entry_offset += image.bitmap_directory.offset;
}

// --- The header cluster ---

uint64_t BitIf(bool condition, uint64_t bit) { return condition ? bit : 0; }

Header MakeHeader(const ImageOptions& options, const BuiltImage& image) {
  Header header;
  header.magic = kMagic;
  header.version = static_cast<uint32_t>(options.version);
  header.cluster_bits = static_cast<uint32_t>(options.cluster_bits);
  header.size = image.geometry.virtual_size_bytes;
  header.crypt_method = options.luks.has_value() ? kCryptLuks : kCryptNone;
  header.l1_size = static_cast<uint32_t>(image.l1.entries);
  header.l1_table_offset = image.l1.offset;
  header.refcount_table_offset = image.refcount_table.offset;
  header.refcount_table_clusters =
      static_cast<uint32_t>(image.refcount_table.length / image.cluster_size());
  header.nb_snapshots = static_cast<uint32_t>(image.snapshots.size());
  header.snapshots_offset = image.snapshot_table.offset;
  if (options.version < 3) return header;
  const bool data_file = options.data_file.has_value();
  header.incompatible_features = BitIf(options.dirty, kDirty) | BitIf(options.corrupt, kCorrupt) |
                                 BitIf(data_file, kExternalDataFile) |
                                 BitIf(options.compression_type != kDeflate, kCompressionType) |
                                 BitIf(options.extended_l2, kExtendedL2);
  header.compatible_features = BitIf(options.lazy_refcounts, kLazyRefcounts);
  header.autoclear_features = BitIf(!options.bitmaps.empty(), kBitmapsConsistent) |
                              BitIf(data_file && options.data_file->raw, kRawExternalData);
  header.refcount_order = static_cast<uint32_t>(options.refcount_order);
  header.header_length = options.header_length;
  header.compression_type = options.compression_type;
  return header;
}

// In the order in which QEMU writes them.
std::vector<ExtensionOptions> ExtensionsOf(const ImageOptions& options, const BuiltImage& image) {
  std::vector<ExtensionOptions> list;
  if (options.backing.has_value() && !options.backing->format.empty()) {
    list.push_back({kExtensionBackingFormat, BytesOf(options.backing->format)});
  }
  if (options.data_file.has_value() && !options.data_file->name.empty()) {
    list.push_back({kExtensionDataFile, BytesOf(options.data_file->name)});
  }
  if (options.luks.has_value()) {
    list.push_back({kExtensionCrypto,
                    EncodeCryptoExtension({image.luks_header.offset, image.luks_header.length})});
  }
  const bool feature_names =
      options.version >= 3 && options.cluster_bits >= kMinClusterBitsFeatureNames;
  if (options.feature_names.value_or(feature_names)) {
    list.push_back({kExtensionFeatureNames, EncodeFeatureNames()});
  }
  if (!image.bitmaps.empty()) {
    list.push_back(
        {kExtensionBitmaps,
         EncodeBitmapsExtension({static_cast<uint32_t>(image.bitmaps.size()), 0,
                                 image.bitmap_directory.length, image.bitmap_directory.offset})});
  }
  list.insert(list.end(), options.extensions.begin(), options.extensions.end());
  return list;
}

void StoreHeaderCluster(const ImageOptions& options, BuiltImage& image) {
  Header header = MakeHeader(options, image);
  std::vector<uint8_t> extensions;
  for (const ExtensionOptions& one : ExtensionsOf(options, image)) {
    image.extensions.push_back(
        {one.type, header.header_length + extensions.size(), one.data.size()});
    const std::vector<uint8_t> encoded = EncodeExtension(one.type, one.data);
    extensions.insert(extensions.end(), encoded.begin(), encoded.end());
  }
  const std::vector<uint8_t> end_marker = EncodeExtension(kExtensionEnd, {});
  extensions.insert(extensions.end(), end_marker.begin(), end_marker.end());
  image.extensions_end = header.header_length + extensions.size();

  std::vector<uint8_t> name;
  if (options.backing.has_value()) {
    name = BytesOf(options.backing->file);
    image.backing_name = {image.extensions_end, name.size()};
    header.backing_file_offset = image.backing_name.offset;
    header.backing_file_size = static_cast<uint32_t>(image.backing_name.length);
  }
  QCOW2CHECK_CHECK(image.extensions_end + name.size() <= image.cluster_size());
  const std::vector<uint8_t> fields = EncodeHeader(header);
  auto at = std::copy(fields.begin(), fields.end(), image.bytes.begin());
  at = std::copy(extensions.begin(), extensions.end(), at);
  std::copy(name.begin(), name.end(), at);
}

}  // namespace

BuiltImage BuildImage(const ImageOptions& options) {
  CheckOptions(options);
  BuiltImage image;
  ImageMapping mapping(options);
  if (options.luks.has_value()) {
    const std::vector<uint8_t> luks_header = EncodeLuksHeader(*options.luks);
    image.luks_header = {mapping.AppendRegion(luks_header), luks_header.size()};
  }
  for (const Step& step : options.steps) mapping.Apply(step);
  image.geometry = mapping.geometry();
  StoreBitmaps(options, mapping, image);
  mapping.MoveTo(image);
  StoreHeaderCluster(options, image);
  if (!options.end_at_last_byte)
    image.bytes.resize(RoundUp(image.bytes.size(), image.cluster_size()));
  image.bytes.resize(image.bytes.size() + options.trailing_bytes, kTrailingByte);
  return image;
}

std::vector<uint8_t> ReadGuest(const GuestClusters& guest, int cluster_bits, uint64_t guest_offset,
                               uint64_t length) {
  const uint64_t cluster_size = uint64_t{1} << cluster_bits;
  std::vector<uint8_t> bytes(length);
  for (auto it = guest.lower_bound(guest_offset >> cluster_bits); it != guest.end(); ++it) {
    const uint64_t base = it->first << cluster_bits;
    if (base >= guest_offset + length) break;
    const uint64_t begin = std::max(base, guest_offset);
    const uint64_t end = std::min(base + cluster_size, guest_offset + length);
    std::copy_n(it->second->begin() + static_cast<int64_t>(begin - base), end - begin,
                bytes.begin() + static_cast<int64_t>(begin - guest_offset));
  }
  return bytes;
}

std::vector<uint8_t> PatternOf(uint64_t guest_offset, uint64_t generation, uint64_t cluster_size) {
  std::vector<uint8_t> bytes(cluster_size);
  for (uint64_t at = 0; at < cluster_size; at += 16) {
    Store64(&bytes[at], uint64_t{0x3d} << 56 | guest_offset);
    Store64(&bytes[at + 8], uint64_t{0x3e} << 56 | generation);
  }
  return bytes;
}

const BuiltL2Table& BuiltImage::L2At(uint64_t l1_index) const {
  const auto found =
      std::find_if(l1.l2_tables.begin(), l1.l2_tables.end(),
                   [&](const BuiltL2Table& table) { return table.l1_index == l1_index; });
  QCOW2CHECK_CHECK(found != l1.l2_tables.end());
  return *found;
}

const BuiltCluster& BuiltImage::At(uint64_t guest_offset) const {
  const uint64_t base = guest_offset & ~(cluster_size() - 1);
  const auto found = std::lower_bound(
      l1.clusters.begin(), l1.clusters.end(), base,
      [](const BuiltCluster& cluster, uint64_t offset) { return cluster.guest_offset < offset; });
  QCOW2CHECK_CHECK(found != l1.clusters.end() && found->guest_offset == base);
  return *found;
}

uint64_t BuiltImage::L2EntryOffset(uint64_t guest_offset) const {
  const uint64_t cluster = guest_offset >> geometry.cluster_bits;
  const BuiltL2Table& table = L2At(cluster / geometry.l2_entries());
  return table.host_offset + cluster % geometry.l2_entries() * geometry.l2_entry_bytes();
}

const BuiltExtension& BuiltImage::Extension(uint32_t type) const {
  const auto found =
      std::find_if(extensions.begin(), extensions.end(),
                   [&](const BuiltExtension& extension) { return extension.type == type; });
  QCOW2CHECK_CHECK(found != extensions.end());
  return *found;
}

}  // namespace qcow2check::testing

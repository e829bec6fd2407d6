#include "tests/image_metadata.h"

#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <array>

#include "common/byte_order.h"
#include "common/check.h"
#include "common/checked_math.h"
#include "common/luks_header.h"

namespace qcow2check::testing {
namespace {

void PutText(std::vector<uint8_t>& bytes, uint64_t offset, absl::string_view text) {
  std::copy(text.begin(), text.end(), bytes.begin() + static_cast<int64_t>(offset));
}

std::vector<uint8_t> Deflate(absl::Span<const uint8_t> cluster) {
  z_stream stream = {};
  // QEMU's parameters: raw deflate, a window of 12 bits.
  QCOW2CHECK_CHECK(
      deflateInit2(&stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY) == Z_OK);
  std::vector<uint8_t> out(deflateBound(&stream, cluster.size()));
  stream.next_in = const_cast<uint8_t*>(cluster.data());
  stream.avail_in = static_cast<uInt>(cluster.size());
  stream.next_out = out.data();
  stream.avail_out = static_cast<uInt>(out.size());
  QCOW2CHECK_CHECK(deflate(&stream, Z_FINISH) == Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

std::vector<uint8_t> CompressZstd(absl::Span<const uint8_t> cluster) {
  std::vector<uint8_t> out(ZSTD_compressBound(cluster.size()));
  const size_t length =
      ZSTD_compress(out.data(), out.size(), cluster.data(), cluster.size(), ZSTD_CLEVEL_DEFAULT);
  QCOW2CHECK_CHECK(ZSTD_isError(length) == 0);
  out.resize(length);
  return out;
}

}  // namespace

std::vector<uint8_t> BytesOf(absl::string_view text) { return {text.begin(), text.end()}; }

std::vector<uint8_t> EncodeHeader(const Header& header) {
  std::vector<uint8_t> bytes(std::max<size_t>(header.header_length, kHeaderBytesKnown));
  uint8_t* p = bytes.data();
  Store32(p, header.magic);
  Store32(p + 4, header.version);
  Store64(p + 8, header.backing_file_offset);
  Store32(p + 16, header.backing_file_size);
  Store32(p + 20, header.cluster_bits);
  Store64(p + 24, header.size);
  Store32(p + 32, header.crypt_method);
  Store32(p + 36, header.l1_size);
  Store64(p + 40, header.l1_table_offset);
  Store64(p + 48, header.refcount_table_offset);
  Store32(p + 56, header.refcount_table_clusters);
  Store32(p + 60, header.nb_snapshots);
  Store64(p + 64, header.snapshots_offset);
  Store64(p + 72, header.incompatible_features);
  Store64(p + 80, header.compatible_features);
  Store64(p + 88, header.autoclear_features);
  Store32(p + 96, header.refcount_order);
  Store32(p + 100, header.header_length);
  p[104] = header.compression_type;
  bytes.resize(header.header_length);
  return bytes;
}

std::vector<uint8_t> EncodeFeatureNames() {
  struct Row {
    uint8_t type;
    uint8_t bit;
    absl::string_view name;
  };
  static constexpr std::array<Row, 8> kRows = {{{0, 0, "dirty bit"},
                                                {0, 1, "corrupt bit"},
                                                {0, 2, "external data file"},
                                                {0, 3, "compression type"},
                                                {0, 4, "extended L2 entries"},
                                                {1, 0, "lazy refcounts"},
                                                {2, 0, "bitmaps"},
                                                {2, 1, "raw external data"}}};
  std::vector<uint8_t> bytes(kRows.size() * kFeatureNameEntryBytes);
  uint64_t at = 0;
  for (const Row& row : kRows) {
    bytes[at] = row.type;
    bytes[at + 1] = row.bit;
    PutText(bytes, at + 2, row.name);
    at += kFeatureNameEntryBytes;
  }
  return bytes;
}

std::vector<uint8_t> EncodeBitmapsExtension(const BitmapsExtension& extension) {
  std::vector<uint8_t> bytes(kBitmapsExtensionBytes);
  Store32(&bytes[0], extension.nb_bitmaps);
  Store32(&bytes[4], extension.reserved);
  Store64(&bytes[8], extension.directory_size_bytes);
  Store64(&bytes[16], extension.directory_offset);
  return bytes;
}

std::vector<uint8_t> EncodeCryptoExtension(const CryptoExtension& extension) {
  std::vector<uint8_t> bytes(kCryptoExtensionBytes);
  Store64(&bytes[0], extension.offset);
  Store64(&bytes[8], extension.length_bytes);
  return bytes;
}

std::vector<uint8_t> EncodeExtension(uint32_t type, absl::Span<const uint8_t> data) {
  std::vector<uint8_t> bytes(8 + RoundUp(data.size(), 8));
  Store32(&bytes[0], type);
  Store32(&bytes[4], static_cast<uint32_t>(data.size()));
  std::copy(data.begin(), data.end(), bytes.begin() + 8);
  return bytes;
}

std::vector<uint8_t> EncodeSnapshotEntry(const SnapshotEntry& entry) {
  const uint64_t text_at = kSnapshotFixedBytes + entry.extra_data_bytes;
  std::vector<uint8_t> bytes(RoundUp(text_at + entry.id.size() + entry.name.size(), 8));
  Store64(&bytes[0], entry.l1_table_offset);
  Store32(&bytes[8], entry.l1_size);
  Store16(&bytes[12], static_cast<uint16_t>(entry.id.size()));
  Store16(&bytes[14], static_cast<uint16_t>(entry.name.size()));
  Store32(&bytes[16], entry.date_seconds);
  Store32(&bytes[20], entry.date_nanoseconds);
  Store64(&bytes[24], entry.vm_clock_nanoseconds);
  Store32(&bytes[32], entry.vm_state_size_32);
  Store32(&bytes[36], entry.extra_data_bytes);
  std::array<uint8_t, kSnapshotKnownExtraBytes> extra;
  Store64(&extra[0], entry.vm_state_size_64.value_or(0));
  Store64(&extra[8], entry.disk_size.value_or(0));
  Store64(&extra[16], entry.icount.value_or(~uint64_t{0}));
  std::copy_n(extra.begin(), std::min<uint64_t>(entry.extra_data_bytes, extra.size()),
              bytes.begin() + kSnapshotFixedBytes);
  PutText(bytes, text_at, entry.id);
  PutText(bytes, text_at + entry.id.size(), entry.name);
  return bytes;
}

std::vector<uint8_t> EncodeBitmapEntry(const BitmapEntry& entry) {
  std::vector<uint8_t> bytes(RoundUp(kBitmapFixedBytes + entry.name.size(), 8));
  Store64(&bytes[0], entry.table_offset);
  Store32(&bytes[8], entry.table_entries);
  Store32(&bytes[12], entry.flags);
  bytes[16] = kBitmapTypeDirtyTracking;
  bytes[17] = entry.granularity_bits;
  Store16(&bytes[18], static_cast<uint16_t>(entry.name.size()));
  PutText(bytes, kBitmapFixedBytes, entry.name);
  return bytes;
}

std::vector<uint8_t> EncodeLuksHeader(const LuksOptions& options) {
  constexpr uint64_t kAlignment = 4096;
  constexpr uint64_t kSector = 512;
  constexpr uint64_t kSlots = 8;
  const uint64_t material_bytes = uint64_t{options.key_bytes} * options.stripes;
  const uint64_t slot_bytes = RoundUp(material_bytes, kAlignment);
  const uint64_t payload = kAlignment + kSlots * slot_bytes;
  QCOW2CHECK_CHECK(options.active_slots <= kSlots);

  std::vector<uint8_t> bytes(payload);
  PutText(bytes, 0, "LUKS\xba\xbe");
  Store16(&bytes[6], 1);
  PutText(bytes, 8, "aes");
  PutText(bytes, 40, "xts-plain64");
  PutText(bytes, 72, "sha256");
  Store32(&bytes[104], static_cast<uint32_t>(payload / kSector));
  Store32(&bytes[108], options.key_bytes);
  const std::vector<uint8_t> digest_and_salt = RandomBytes(1, 52);
  std::copy(digest_and_salt.begin(), digest_and_salt.end(), bytes.begin() + 112);
  Store32(&bytes[164], 100000);
  PutText(bytes, 168, "5a8c1f3e-0d2b-4c6a-9e77-31b4d5f60812");
  for (uint64_t slot = 0; slot < kSlots; ++slot) {
    const uint64_t at = 208 + 48 * slot;
    const uint64_t material = kAlignment + slot * slot_bytes;
    const bool active = slot < options.active_slots;
    Store32(&bytes[at], active ? kLuksSlotActive : kLuksSlotDisabled);
    Store32(&bytes[at + 40], static_cast<uint32_t>(material / kSector));
    Store32(&bytes[at + 44], options.stripes);
    if (!active) continue;
    Store32(&bytes[at + 4], 200000);
    const std::vector<uint8_t> salt = RandomBytes(2 + slot, 32);
    std::copy(salt.begin(), salt.end(), bytes.begin() + static_cast<int64_t>(at) + 8);
    const std::vector<uint8_t> key = RandomBytes(100 + slot, material_bytes);
    std::copy(key.begin(), key.end(), bytes.begin() + static_cast<int64_t>(material));
  }
  return bytes;
}

std::vector<uint8_t> Compress(CompressionType type, absl::Span<const uint8_t> cluster) {
  return type == kZstd ? CompressZstd(cluster) : Deflate(cluster);
}

std::vector<uint8_t> RandomBytes(uint64_t seed, uint64_t length) {
  std::vector<uint8_t> bytes(length);
  uint64_t state = seed * 0x9e3779b97f4a7c15;
  for (uint8_t& byte : bytes) {  // splitmix64
    state += 0x9e3779b97f4a7c15;
    uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    byte = static_cast<uint8_t>((z ^ (z >> 31)) >> 24);
  }
  return bytes;
}

}  // namespace qcow2check::testing

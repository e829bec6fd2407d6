#include "tests/damage.h"

#include <algorithm>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_format.h"
#include "common/byte_order.h"
#include "common/check.h"
#include "common/checked_math.h"
#include "common/refcount_block.h"
#include "tests/image_metadata.h"

namespace qcow2check::testing {
namespace {

// A pointer to `length` bytes at `offset`, which must be there.
uint8_t* At(std::vector<uint8_t>& bytes, uint64_t offset, uint64_t length) {
  QCOW2CHECK_CHECK(offset <= bytes.size() && length <= bytes.size() - offset);
  return bytes.data() + offset;
}

void PokeBytes(std::vector<uint8_t>& bytes, uint64_t offset, absl::Span<const uint8_t> content) {
  std::copy(content.begin(), content.end(), At(bytes, offset, content.size()));
}

const HeaderField& FieldNamed(absl::string_view name) {
  const auto* found = std::find_if(kHeaderFields.begin(), kHeaderFields.end(),
                                   [&](const HeaderField& field) { return field.name == name; });
  QCOW2CHECK_CHECK(found != kHeaderFields.end());
  return *found;
}

// Where the refcount block for `cluster` is.
uint64_t BlockOffset(const BuiltImage& image, uint64_t cluster) {
  const uint64_t index = cluster / image.geometry.refcount_block_entries();
  QCOW2CHECK_CHECK(index < image.refcount_blocks.size() && image.refcount_blocks[index] != 0);
  return image.refcount_blocks[index];
}

const BuiltCluster& DataCluster(const BuiltImage& image, uint64_t number) {
  QCOW2CHECK_CHECK(number < image.l1.clusters.size());
  return image.l1.clusters[number];
}

const BuiltL2Table& FirstL2(const BuiltImage& image) {
  QCOW2CHECK_CHECK(!image.l1.l2_tables.empty());
  return image.l1.l2_tables.front();
}

// Where a writer would append: the end of the file in whole clusters.
uint64_t EndOfFile(const BuiltImage& image) {
  return RoundUp(image.bytes.size(), image.cluster_size());
}

}  // namespace

// --- Bytes ---

void Poke(std::vector<uint8_t>& bytes, uint64_t offset, absl::string_view hex) {
  std::string digits(hex);
  digits.erase(std::remove(digits.begin(), digits.end(), ' '), digits.end());
  QCOW2CHECK_CHECK(digits.size() % 2 == 0);
  QCOW2CHECK_CHECK(std::all_of(digits.begin(), digits.end(), [](char c) {
    return absl::ascii_isxdigit(static_cast<unsigned char>(c));
  }));
  PokeText(bytes, offset, absl::HexStringToBytes(digits));
}

void PokeText(std::vector<uint8_t>& bytes, uint64_t offset, absl::string_view text) {
  PokeBytes(bytes, offset, BytesOf(text));
}

void Poke16(std::vector<uint8_t>& bytes, uint64_t offset, uint16_t value) {
  Store16(At(bytes, offset, 2), value);
}

void Poke32(std::vector<uint8_t>& bytes, uint64_t offset, uint32_t value) {
  Store32(At(bytes, offset, 4), value);
}

void Poke64(std::vector<uint8_t>& bytes, uint64_t offset, uint64_t value) {
  Store64(At(bytes, offset, 8), value);
}

uint64_t Peek64(const std::vector<uint8_t>& bytes, uint64_t offset) {
  QCOW2CHECK_CHECK(bytes.size() >= 8 && offset <= bytes.size() - 8);
  return Load64(bytes.data() + offset);
}

void FlipBit(std::vector<uint8_t>& bytes, uint64_t offset, int bit) {
  QCOW2CHECK_CHECK(bit >= 0 && bit < 8);
  uint8_t& byte = *At(bytes, offset, 1);
  byte = static_cast<uint8_t>(byte ^ 1u << bit);
}

void FlipBit64(std::vector<uint8_t>& bytes, uint64_t offset, int bit) {
  QCOW2CHECK_CHECK(bit >= 0 && bit < 64);
  Poke64(bytes, offset, Peek64(bytes, offset) ^ uint64_t{1} << bit);
}

void Fill(std::vector<uint8_t>& bytes, uint64_t offset, uint64_t length, uint8_t byte) {
  std::fill_n(At(bytes, offset, length), length, byte);
}

void FillWithText(std::vector<uint8_t>& bytes, uint64_t offset, uint64_t length) {
  std::string text;
  for (int line = 0; text.size() < length; ++line) {
    absl::StrAppendFormat(&text, "Nov 22 10:%02d:%02d guest kernel: [%5d.%06d] usb 1-%d: reset\n",
                          line / 60 % 60, line % 60, line, line * 7919 % 1000000, line % 8 + 1);
  }
  PokeText(bytes, offset, absl::string_view(text).substr(0, length));
}

void FillWithGarbage(std::vector<uint8_t>& bytes, uint64_t offset, uint64_t length) {
  PokeBytes(bytes, offset, RandomBytes(offset, length));
}

void Truncate(std::vector<uint8_t>& bytes, uint64_t size) {
  QCOW2CHECK_CHECK(size <= bytes.size());
  bytes.resize(size);
}

void Extend(std::vector<uint8_t>& bytes, uint64_t size, uint8_t byte) {
  QCOW2CHECK_CHECK(size >= bytes.size());
  bytes.resize(size, byte);
}

// --- Fields and entries ---

void PokeField(BuiltImage& image, absl::string_view name, uint64_t value) {
  const HeaderField& field = FieldNamed(name);
  uint8_t* p = At(image.bytes, field.offset, field.width);
  for (size_t i = 0; i < field.width; ++i) {
    p[i] = static_cast<uint8_t>(value >> (8 * (field.width - 1 - i)));
  }
}

uint64_t GetField(const BuiltImage& image, absl::string_view name) {
  const std::optional<uint64_t> value = LoadHeaderField(FieldNamed(name), image.bytes);
  QCOW2CHECK_CHECK(value.has_value());
  return *value;
}

void SetL1Entry(BuiltImage& image, uint64_t l1_index, uint64_t value) {
  Poke64(image.bytes, image.l1.EntryOffset(l1_index), value);
}

uint64_t GetL1Entry(const BuiltImage& image, uint64_t l1_index) {
  return Peek64(image.bytes, image.l1.EntryOffset(l1_index));
}

void SetL2Entry(BuiltImage& image, uint64_t guest_offset, uint64_t value) {
  Poke64(image.bytes, image.L2EntryOffset(guest_offset), value);
}

uint64_t GetL2Entry(const BuiltImage& image, uint64_t guest_offset) {
  return Peek64(image.bytes, image.L2EntryOffset(guest_offset));
}

void SetL2Bitmap(BuiltImage& image, uint64_t guest_offset, uint64_t value) {
  QCOW2CHECK_CHECK(image.geometry.extended_l2);
  Poke64(image.bytes, image.L2EntryOffset(guest_offset) + 8, value);
}

uint64_t GetL2Bitmap(const BuiltImage& image, uint64_t guest_offset) {
  QCOW2CHECK_CHECK(image.geometry.extended_l2);
  return Peek64(image.bytes, image.L2EntryOffset(guest_offset) + 8);
}

void SetRefcount(BuiltImage& image, uint64_t cluster, uint64_t value) {
  QCOW2CHECK_CHECK(value <= image.geometry.refcount_max());
  uint8_t* block = At(image.bytes, BlockOffset(image, cluster), image.cluster_size());
  StoreRefcount(block, cluster % image.geometry.refcount_block_entries(),
                image.geometry.refcount_order, value);
}

uint64_t GetRefcount(const BuiltImage& image, uint64_t cluster) {
  const uint64_t block = BlockOffset(image, cluster);
  QCOW2CHECK_CHECK(block + image.cluster_size() <= image.bytes.size());
  return LoadRefcount(image.bytes.data() + block, cluster % image.geometry.refcount_block_entries(),
                      image.geometry.refcount_order);
}

void ZeroCluster(BuiltImage& image, uint64_t host_offset) {
  Fill(image.bytes, host_offset, image.cluster_size(), 0);
}

void CopyCluster(BuiltImage& image, uint64_t from_offset, uint64_t to_offset) {
  const uint8_t* from = At(image.bytes, from_offset, image.cluster_size());
  std::copy_n(from, image.cluster_size(), At(image.bytes, to_offset, image.cluster_size()));
}

// --- Accidents ---

ImageOptions FieldImageOptions() {
  return {.virtual_size = uint64_t{2} << 30,
          .steps = {WriteClusters{.first = 0, .count = 256, .stride = 32},
                    WriteClusters{.first = 2 * 8192, .count = 256, .stride = 32}}};
}

void L1Zeroed(BuiltImage& image) { Fill(image.bytes, image.l1.offset, image.l1.entries * 8, 0); }

void L2Zeroed(BuiltImage& image) { ZeroCluster(image, FirstL2(image).host_offset); }

void L2HasRefcountBlock(BuiltImage& image) {
  CopyCluster(image, image.refcount_blocks[0], FirstL2(image).host_offset);
}

void L2HasText(BuiltImage& image) {
  FillWithText(image.bytes, FirstL2(image).host_offset, image.cluster_size());
}

void HeaderText(BuiltImage& image) { FillWithText(image.bytes, 0, image.cluster_size()); }

void HeaderZeroed4k(BuiltImage& image) {
  Fill(image.bytes, 0, std::min<uint64_t>(4096, image.bytes.size()), 0);
}

void TwoGuestOneHost(BuiltImage& image) {
  const BuiltCluster& first = DataCluster(image, 0);
  const BuiltCluster& second = DataCluster(image, 1);
  Poke64(image.bytes, second.entry_offset, Peek64(image.bytes, first.entry_offset));
}

void DataEntryIsLiveL2(BuiltImage& image) {
  const uint64_t l2_table = image.l1.l2_tables.back().host_offset;
  Poke64(image.bytes, DataCluster(image, 0).entry_offset, l2_table | kCopiedBit);
}

void DataEntryIsRefcountBlock(BuiltImage& image) {
  Poke64(image.bytes, DataCluster(image, 0).entry_offset, image.refcount_blocks[0] | kCopiedBit);
}

void RefcountBlockZeroed(BuiltImage& image) { ZeroCluster(image, image.refcount_blocks[0]); }

void RefcountTableZeroed(BuiltImage& image) {
  Fill(image.bytes, image.refcount_table.offset, image.refcount_table.length, 0);
}

void LiveL2RefcountZero(BuiltImage& image) {
  SetRefcount(image, image.ClusterOf(FirstL2(image).host_offset), 0);
}

void TruncatedTail(BuiltImage& image) {
  const uint64_t cut = std::min(64 * image.cluster_size(), image.bytes.size() / 4 * 3);
  Truncate(image.bytes, image.bytes.size() - cut);
}

void EntryOnePastEnd(BuiltImage& image) {
  Poke64(image.bytes, DataCluster(image, 0).entry_offset, EndOfFile(image) | kCopiedBit);
}

void EntryMisaligned(BuiltImage& image) {
  // Bit 9 is an offset bit that larger clusters do not have; with 512-byte clusters nothing is
  // misaligned.
  QCOW2CHECK_CHECK(image.cluster_size() > 512);
  FlipBit64(image.bytes, DataCluster(image, 0).entry_offset, 9);
}

void DataClusterZeroed(BuiltImage& image) { ZeroCluster(image, DataCluster(image, 0).host_offset); }

void CopiedFlagsClearedInL1(BuiltImage& image) {
  for (const BuiltL2Table& table : image.l1.l2_tables) {
    Poke64(image.bytes, table.entry_offset, table.host_offset);
  }
}

void TwoL1SameL2(BuiltImage& image) {
  const uint64_t first = FirstL2(image).l1_index;
  QCOW2CHECK_CHECK(first + 1 < image.l1.entries);
  SetL1Entry(image, first + 1, GetL1Entry(image, first));
}

void TornL2SecondHalfZero(BuiltImage& image) {
  const uint64_t half = image.cluster_size() / 2;
  Fill(image.bytes, FirstL2(image).host_offset + half, half, 0);
}

void GarbageRefcountBlock(BuiltImage& image) {
  FillWithGarbage(image.bytes, image.refcount_blocks[0], image.cluster_size());
}

void RefcountTableToData(BuiltImage& image) {
  Poke64(image.bytes, image.refcount_table.offset, DataCluster(image, 0).host_offset);
}

void SnapshotTableGarbage(BuiltImage& image) {
  Region table = image.snapshot_table;
  if (image.snapshots.empty()) {
    table = {EndOfFile(image), image.cluster_size()};
    Extend(image.bytes, table.offset + table.length);
    SetRefcount(image, image.ClusterOf(table.offset), 1);
    PokeField(image, "nb_snapshots", 2);
    PokeField(image, "snapshots_offset", table.offset);
  }
  FillWithGarbage(image.bytes, table.offset, table.length);
}

void L1OffsetWrong(BuiltImage& image) {
  PokeField(image, "l1_table_offset", FirstL2(image).host_offset);
}

void VirtualSizeGrown(BuiltImage& image) {
  const uint64_t mapped = image.l1.entries * image.geometry.l2_guest_bytes();
  PokeField(image, "size", 2 * mapped);
}

void LazyRefcountsStale(BuiltImage& image) {
  PokeField(image, "incompatible_features", GetField(image, "incompatible_features") | kDirty);
  PokeField(image, "compatible_features", GetField(image, "compatible_features") | kLazyRefcounts);
  for (const BuiltL2Table& table : image.l1.l2_tables) {
    SetRefcount(image, image.ClusterOf(table.host_offset), 0);
  }
  for (const BuiltCluster& cluster : image.l1.clusters) {
    SetRefcount(image, image.ClusterOf(cluster.host_offset), 0);
  }
}

absl::Span<const FieldDamage> AllFieldDamages() {
  static constexpr FieldDamage kAll[] = {
      {"l1-zeroed", L1Zeroed},
      {"l2-zeroed", L2Zeroed},
      {"l2-has-refcount-block", L2HasRefcountBlock},
      {"l2-has-text", L2HasText},
      {"header-text", HeaderText},
      {"header-zeroed-4k", HeaderZeroed4k},
      {"two-guest-one-host", TwoGuestOneHost},
      {"data-entry-is-live-l2", DataEntryIsLiveL2},
      {"data-entry-is-refcount-block", DataEntryIsRefcountBlock},
      {"refcount-block-zeroed", RefcountBlockZeroed},
      {"refcount-table-zeroed", RefcountTableZeroed},
      {"live-l2-refcount-zero", LiveL2RefcountZero},
      {"truncated-tail", TruncatedTail},
      {"entry-one-past-end", EntryOnePastEnd},
      {"entry-misaligned", EntryMisaligned},
      {"data-cluster-zeroed", DataClusterZeroed},
      {"copied-flags-cleared-in-l1", CopiedFlagsClearedInL1},
      {"two-l1-same-l2", TwoL1SameL2},
      {"torn-l2-second-half-zero", TornL2SecondHalfZero},
      {"garbage-refcount-block", GarbageRefcountBlock},
      {"refcount-table-to-data", RefcountTableToData},
      {"snapshot-table-garbage", SnapshotTableGarbage},
      {"l1-offset-wrong", L1OffsetWrong},
      {"virtual-size-grown", VirtualSizeGrown},
      {"lazy-refcounts-stale", LazyRefcountsStale},
  };
  return kAll;
}

}  // namespace qcow2check::testing

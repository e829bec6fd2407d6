#include "tests/field_images.h"

#include <algorithm>
#include <iterator>

#include "common/bitmap_entry.h"
#include "common/check.h"
#include "common/checked_math.h"
#include "common/header.h"
#include "common/header_extension.h"
#include "common/luks_header.h"
#include "common/snapshot_entry.h"
#include "tests/image_metadata.h"
#include "tests/repair_corpus.h"

namespace qcow2check::testing {
namespace {

constexpr uint32_t kUnknownExtension = 0x12345678;

// --- The images ---

// Guest clusters of the images, by number.
constexpr uint64_t kData = 0;        // 6 of them; written again behind the first snapshot:
constexpr uint64_t kRewritten = 1;   // 2
constexpr uint64_t kShared = 4;      // one that was not
constexpr uint64_t kCompressed = 8;  // 3, in fewer host clusters
constexpr uint64_t kZeroPlain = 16;
constexpr uint64_t kZeroAllocated = 20;
constexpr uint64_t kPartly = 24;  // some of its subclusters
constexpr uint64_t kUnallocated = 30;
constexpr uint64_t kSecondTable = 512;  // with 4 KiB clusters

std::vector<Step> DiskSteps() {
  return {WriteClusters{kData, 6}, WriteCompressed{kCompressed, 3, 1000},
          WriteClusters{kSecondTable, 3}};
}
std::vector<Step> SnapshotSteps() {
  return {TakeSnapshot{.name = "first", .vm_state_bytes = 1000}, WriteClusters{kRewritten, 2},
          TakeSnapshot{.name = "other"}, WriteClusters{kRewritten, 1}};
}
std::vector<Step> ZeroSteps() {
  return {WriteZeros{kZeroPlain, 2}, WriteZeros{kZeroAllocated, 2, true}};
}

std::vector<Step> operator+(std::vector<Step> steps, const std::vector<Step>& more) {
  steps.insert(steps.end(), more.begin(), more.end());
  return steps;
}

ImageOptions SmallDisk() {
  return {.cluster_bits = 12, .virtual_size = 4 << 20, .steps = DiskSteps() + ZeroSteps()};
}

ImageOptions Version2() {
  return {.version = 2,
          .cluster_bits = 12,
          .virtual_size = 4 << 20,
          .backing = BackingOptions{.file = kCorpusBackingName, .format = "raw"},
          .steps = DiskSteps() + SnapshotSteps(),
          .snapshot_extra_bytes = 0};
}
ImageOptions Version3() {
  ImageOptions options = SmallDisk();
  options.extra_l1_entries = 1;
  options.steps = options.steps + SnapshotSteps();
  options.feature_names = true;
  return options;
}
ImageOptions Backing() {
  ImageOptions options = SmallDisk();
  options.backing = BackingOptions{.file = kCorpusBackingName, .format = "raw"};
  return options;
}
ImageOptions DataFile() {
  return {.cluster_bits = 12,
          .virtual_size = 4 << 20,
          .data_file = DataFileOptions{.name = kCorpusDataFileName, .raw = true},
          .steps = {WriteClusters{kData, 6}, WriteClusters{kSecondTable, 3}}};
}
ImageOptions Luks() {
  return {.cluster_bits = 12,
          .virtual_size = 4 << 20,
          .luks = LuksOptions{.key_bytes = 16, .stripes = 4000, .active_slots = 2},
          .steps = {WriteClusters{kData, 6}}};
}
ImageOptions Zstd() {
  ImageOptions options = SmallDisk();
  options.compression_type = kZstd;
  return options;
}
// A note of a repair, an extension that nobody knows, and unknown bytes in a snapshot's extra data.
ImageOptions Unknown() {
  ImageOptions options = SmallDisk();
  options.steps = options.steps + SnapshotSteps();
  options.snapshot_extra_bytes = kSnapshotKnownExtraBytes + 8;
  options.extensions = {{kExtensionRepairNote, EncodeRepairNote({.orphans = OrphanNote::kGivenUp})},
                        {kUnknownExtension, BytesOf("magic")}};
  return options;
}
// A table of four entries: data, none, all ones, data.
ImageOptions Bitmaps() {
  constexpr uint64_t kEntryGuestBytes = 512 * 8 * 512;
  return {.cluster_bits = 9,
          .virtual_size = (8 << 20) - (64 << 10),  // the L1 table does not fill its last cluster
          .steps = {WriteClusters{kData, 6}, WriteClusters{100, 20}},
          .bitmaps = {{.name = "bitmap1",
                       .granularity_bits = 9,
                       .use_all_ones = true,
                       .dirty = {{0, 4096}, {2 * kEntryGuestBytes, kEntryGuestBytes + 4096}}},
                      {.name = "bitmap2", .granularity_bits = 16, .dirty = {{65536, 65536}}}}};
}
ImageOptions ExtendedL2() {
  return {.cluster_bits = 14,
          .virtual_size = 4 << 20,
          .extended_l2 = true,
          .steps = {WriteClusters{kData, 6}, WriteCompressed{kCompressed, 2, 1000},
                    WriteZeros{kZeroPlain, 1}, Write{kPartly << 14, 1024},
                    WriteZeros{.first = kPartly, .subclusters = 0xf0}}};
}
// Of the size that extended L2 entries would need.
ImageOptions LargeClusters() {
  return {.cluster_bits = 14,
          .virtual_size = 4 << 20,
          .steps = {WriteClusters{kData, 6}, WriteCompressed{kCompressed, 2, 1000},
                    WriteZeros{kZeroPlain, 1}}};
}
ImageOptions RefcountsOf(int order) {
  return {.cluster_bits = 12,
          .refcount_order = order,
          .virtual_size = 4 << 20,
          .steps = {WriteClusters{kData, 16}}};
}

// --- Where the records are ---

constexpr uint64_t kEntryBytes = 8;

const BuiltExtension& ExtensionOf(const BuiltImage& image, uint32_t type) {
  return image.Extension(type);
}
template <uint32_t type>
Region ExtensionHead(const BuiltImage& image) {
  return {ExtensionOf(image, type).offset, 8};
}
template <uint32_t type>
Region ExtensionData(const BuiltImage& image) {
  const BuiltExtension& extension = ExtensionOf(image, type);
  return {extension.offset + 8, RoundUp(extension.length, 8)};
}
template <uint64_t row>
Region FeatureNameRow(const BuiltImage& image) {
  return {ExtensionOf(image, kExtensionFeatureNames).offset + 8 + row * kFeatureNameEntryBytes,
          kFeatureNameEntryBytes};
}
Region EndMarker(const BuiltImage& image) { return {image.extensions_end - 8, 8}; }

Region WholeHeader(const BuiltImage&) { return {0, kHeaderBytesKnown}; }
Region HeaderV2(const BuiltImage&) { return {0, kHeaderBytesV2}; }
Region FeatureBits(const BuiltImage&) { return {72, 24}; }

template <uint64_t index>
Region L1Entry(const BuiltImage& image) {
  return {image.l1.EntryOffset(index), kEntryBytes};
}
template <uint64_t guest_cluster>
Region L2Entry(const BuiltImage& image) {
  return {image.L2EntryOffset(guest_cluster << image.geometry.cluster_bits), kEntryBytes};
}
template <uint64_t guest_cluster>
Region SubclustersOf(const BuiltImage& image) {
  return {L2Entry<guest_cluster>(image).offset + kEntryBytes, kEntryBytes};
}
Region SnapshotL1Entry(const BuiltImage& image) {
  return {image.snapshots[0].l1.EntryOffset(0), kEntryBytes};
}
// The entry of the VM state is behind those of the disk.
Region SnapshotVmStateL1Entry(const BuiltImage& image) {
  return {image.snapshots[0].l1.l2_tables.back().entry_offset, kEntryBytes};
}
// Of the cluster that was written again since.
Region SnapshotL2Entry(const BuiltImage& image) {
  return {image.snapshots[0].l1.clusters[kRewritten].entry_offset, kEntryBytes};
}

template <uint64_t index>
Region RefcountTableEntry(const BuiltImage& image) {
  return {image.refcount_table.offset + index * kEntryBytes, kEntryBytes};
}
Region RefcountOf(const BuiltImage& image, uint64_t host_offset) {
  const uint64_t cluster = image.ClusterOf(host_offset);
  const uint64_t entries = image.geometry.refcount_block_entries();
  const uint64_t bits = static_cast<uint64_t>(image.geometry.refcount_bits());
  const uint64_t at = cluster % entries * bits;
  QCOW2CHECK_CHECK(at % 8 == 0);
  return {image.refcount_blocks[cluster / entries] + at / 8, bits / 8};
}
template <uint64_t guest_cluster>
Region RefcountOfData(const BuiltImage& image) {
  return RefcountOf(image, image.At(guest_cluster << image.geometry.cluster_bits).host_offset);
}
// One whose refcount starts a byte, whatever the width.
Region RefcountOfSomeData(const BuiltImage& image) {
  for (const BuiltCluster& cluster : image.l1.clusters) {
    if (image.ClusterOf(cluster.host_offset) % 8 == 0)
      return RefcountOf(image, cluster.host_offset);
  }
  QCOW2CHECK_CHECK(false);
}
Region RefcountOfHeader(const BuiltImage& image) { return RefcountOf(image, 0); }
Region RefcountOfL1(const BuiltImage& image) { return RefcountOf(image, image.l1.offset); }
Region RefcountOfL2(const BuiltImage& image) {
  return RefcountOf(image, image.L2At(0).host_offset);
}
Region RefcountBehindEnd(const BuiltImage& image) {
  const uint64_t end = RoundUp(image.bytes.size(), image.cluster_size());
  return RefcountOf(image, RoundUp(end, 8 * image.cluster_size()));
}

template <uint64_t index>
Region SnapshotEntryOf(const BuiltImage& image) {
  return {image.snapshots[index].entry_offset, kSnapshotFixedBytes};
}
Region SnapshotExtra(const BuiltImage& image) {
  return {image.snapshots[0].entry_offset + kSnapshotFixedBytes, kSnapshotKnownExtraBytes};
}
Region SnapshotUnknownExtra(const BuiltImage& image) {
  return {SnapshotExtra(image).offset + kSnapshotKnownExtraBytes, 8};
}
template <uint64_t extra_bytes>
Region SnapshotText(const BuiltImage& image) {
  const BuiltSnapshot& snapshot = image.snapshots[0];
  const uint64_t begin = kSnapshotFixedBytes + extra_bytes;
  return {snapshot.entry_offset + begin, snapshot.entry_length - begin};
}

template <uint64_t index>
Region BitmapEntryOf(const BuiltImage& image) {
  return {image.bitmaps[index].entry_offset, image.bitmaps[index].entry_length};
}
template <uint64_t index>
Region BitmapTableEntry(const BuiltImage& image) {
  return {image.bitmaps[0].table_offset + index * kEntryBytes, kEntryBytes};
}

Region LuksHeaderOf(const BuiltImage& image) { return {image.luks_header.offset, 208}; }
template <uint64_t slot>
Region LuksSlot(const BuiltImage& image) {
  return {image.luks_header.offset + 208 + slot * 48, 48};
}

constexpr absl::string_view kAllButVersion2[] = {"version 3", "backing file", "data file",
                                                 "LUKS",      "zstd",         "unknown parts",
                                                 "bitmaps",   "extended L2",  "16 KiB clusters"};
constexpr absl::string_view kCompressed4k = "compressed L2 entry, 4 KiB clusters";
constexpr absl::string_view kCompressed16k = "compressed L2 entry, 16 KiB clusters";

const RecordPlace kRecords[] = {
    {"version 2", "header of version 2", "version 2 header", HeaderV2},
    {"version 2", "L1 entry", "L1 entry", L1Entry<0>},
    {"version 2", "L2 entry of data", "L2 entry", L2Entry<kRewritten>},
    {"version 2", "L2 entry of compressed data", kCompressed4k, L2Entry<kCompressed>},
    {"version 2", "L2 entry of nothing", "L2 entry", L2Entry<kUnallocated>},
    {"version 2", "snapshot", "snapshot table entry", SnapshotEntryOf<0>},
    {"version 2", "snapshot id and name", "snapshot id and name", SnapshotText<0>},
    {"version 2", "L1 entry of a snapshot", "L1 entry", SnapshotL1Entry},
    {"version 2", "L2 entry of a snapshot", "L2 entry", SnapshotL2Entry},
    {"version 2", "backing file name", "backing file name",
     [](const BuiltImage& image) { return image.backing_name; }},

    {"version 3", "feature names", "header extension", ExtensionHead<kExtensionFeatureNames>},
    {"version 3", "feature name", "feature name row", FeatureNameRow<0>},
    {"version 3", "another feature name", "feature name row", FeatureNameRow<5>},
    {"version 3", "end of extensions", "header extension", EndMarker},
    {"version 3", "L1 entry", "L1 entry", L1Entry<0>},
    {"version 3", "L1 entry behind the disk", "L1 entry", L1Entry<2>},
    {"version 3", "L2 entry of data", "L2 entry", L2Entry<kRewritten>},
    {"version 3", "L2 entry of shared data", "L2 entry", L2Entry<kShared>},
    {"version 3", "L2 entry of compressed data", kCompressed4k, L2Entry<kCompressed>},
    {"version 3", "L2 entry of zeros", "L2 entry", L2Entry<kZeroPlain>},
    {"version 3", "L2 entry of preallocated zeros", "L2 entry", L2Entry<kZeroAllocated>},
    {"version 3", "L2 entry of nothing", "L2 entry", L2Entry<kUnallocated>},
    {"version 3", "refcount table entry", "refcount table entry", RefcountTableEntry<0>},
    {"version 3", "empty refcount table entry", "refcount table entry", RefcountTableEntry<1>},
    {"version 3", "refcount of the header", "refcount, 16 bits", RefcountOfHeader},
    {"version 3", "refcount of the L1 table", "refcount, 16 bits", RefcountOfL1},
    {"version 3", "refcount of an L2 table", "refcount, 16 bits", RefcountOfL2},
    {"version 3", "refcount of data", "refcount, 16 bits", RefcountOfData<kRewritten>},
    {"version 3", "refcount of shared data", "refcount, 16 bits", RefcountOfData<kShared>},
    {"version 3", "refcount of compressed data", "refcount, 16 bits", RefcountOfData<kCompressed>},
    {"version 3", "refcount behind the end", "refcount, 16 bits", RefcountBehindEnd},
    {"version 3", "snapshot with VM state", "snapshot table entry", SnapshotEntryOf<0>},
    {"version 3", "extra data of a snapshot", "snapshot extra data", SnapshotExtra},
    {"version 3", "snapshot id and name", "snapshot id and name",
     SnapshotText<kSnapshotKnownExtraBytes>},
    {"version 3", "last snapshot", "snapshot table entry", SnapshotEntryOf<1>},
    {"version 3", "L1 entry of a snapshot", "L1 entry", SnapshotL1Entry},
    {"version 3", "L1 entry of VM state", "L1 entry", SnapshotVmStateL1Entry},
    {"version 3", "L2 entry of a snapshot", "L2 entry", SnapshotL2Entry},

    {"backing file", "backing format", "header extension", ExtensionHead<kExtensionBackingFormat>},
    {"backing file", "name of the format", "backing format",
     ExtensionData<kExtensionBackingFormat>},
    {"backing file", "backing file name", "backing file name",
     [](const BuiltImage& image) { return image.backing_name; }},
    {"backing file", "L1 entry", "L1 entry", L1Entry<0>},
    {"backing file", "L2 entry of data", "L2 entry", L2Entry<kData>},
    {"backing file", "L2 entry of zeros", "L2 entry", L2Entry<kZeroPlain>},
    {"backing file", "L2 entry of nothing", "L2 entry", L2Entry<kUnallocated>},

    {"data file", "data file name", "header extension", ExtensionHead<kExtensionDataFile>},
    {"data file", "name of the data file", "data file name", ExtensionData<kExtensionDataFile>},
    {"data file", "L1 entry", "L1 entry", L1Entry<0>},
    {"data file", "L2 entry of data", "L2 entry", L2Entry<kRewritten>},
    {"data file", "L2 entry of nothing", "L2 entry", L2Entry<kUnallocated>},

    {"LUKS", "pointer to the LUKS header", "header extension", ExtensionHead<kExtensionCrypto>},
    {"LUKS", "place of the LUKS header", "encryption header pointer",
     ExtensionData<kExtensionCrypto>},
    {"LUKS", "LUKS header", "LUKS header", LuksHeaderOf},
    {"LUKS", "active key slot", "LUKS key slot", LuksSlot<0>},
    {"LUKS", "unused key slot", "LUKS key slot", LuksSlot<7>},
    {"LUKS", "L2 entry of data", "L2 entry", L2Entry<kData>},

    {"zstd", "L2 entry of compressed data", kCompressed4k, L2Entry<kCompressed>},
    {"zstd", "another L2 entry of compressed data", kCompressed4k, L2Entry<kCompressed + 1>},

    {"unknown parts", "note of a repair", "header extension", ExtensionHead<kExtensionRepairNote>},
    {"unknown parts", "words of the note", "repair note", ExtensionData<kExtensionRepairNote>},
    {"unknown parts", "unknown extension", "header extension", ExtensionHead<kUnknownExtension>},
    {"unknown parts", "data of the unknown extension", "unknown extension",
     ExtensionData<kUnknownExtension>},
    {"unknown parts", "last snapshot", "snapshot table entry", SnapshotEntryOf<1>},
    {"unknown parts", "unknown extra data of a snapshot", "unknown snapshot extra data",
     SnapshotUnknownExtra},

    {"bitmaps", "bitmaps", "header extension", ExtensionHead<kExtensionBitmaps>},
    {"bitmaps", "bitmaps extension", "bitmaps extension", ExtensionData<kExtensionBitmaps>},
    {"bitmaps", "first bitmap", "bitmap directory entry", BitmapEntryOf<0>},
    {"bitmaps", "last bitmap", "bitmap directory entry", BitmapEntryOf<1>},
    {"bitmaps", "bitmap table entry of data", "bitmap table entry", BitmapTableEntry<0>},
    {"bitmaps", "bitmap table entry of zeros", "bitmap table entry", BitmapTableEntry<1>},
    {"bitmaps", "bitmap table entry of ones", "bitmap table entry", BitmapTableEntry<2>},
    {"bitmaps", "L1 entry", "L1 entry", L1Entry<0>},
    {"bitmaps", "L2 entry of data", "L2 entry", L2Entry<kData>},

    {"extended L2", "L1 entry", "L1 entry", L1Entry<0>},
    {"extended L2", "L2 entry of data", "L2 entry", L2Entry<kData>},
    {"extended L2", "subclusters of data", "subcluster bitmap", SubclustersOf<kData>},
    {"extended L2", "L2 entry of some subclusters", "L2 entry", L2Entry<kPartly>},
    {"extended L2", "some subclusters", "subcluster bitmap", SubclustersOf<kPartly>},
    {"extended L2", "L2 entry of zeros", "L2 entry", L2Entry<kZeroPlain>},
    {"extended L2", "subclusters of zeros", "subcluster bitmap", SubclustersOf<kZeroPlain>},
    {"extended L2", "L2 entry of nothing", "L2 entry", L2Entry<kUnallocated>},
    {"extended L2", "subclusters of nothing", "subcluster bitmap", SubclustersOf<kUnallocated>},
    {"extended L2", "L2 entry of compressed data", kCompressed16k, L2Entry<kCompressed>},
    {"extended L2", "subclusters of compressed data", "subcluster bitmap",
     SubclustersOf<kCompressed>},

    {"16 KiB clusters", "L1 entry", "L1 entry", L1Entry<0>},
    {"16 KiB clusters", "L2 entry of data", "L2 entry", L2Entry<kData>},
    {"16 KiB clusters", "L2 entry of zeros", "L2 entry", L2Entry<kZeroPlain>},
    {"16 KiB clusters", "L2 entry of compressed data", kCompressed16k, L2Entry<kCompressed>},

    {"1-bit refcounts", "refcount of data", "refcount, 1 bit", RefcountOfSomeData},
    {"1-bit refcounts", "refcount behind the end", "refcount, 1 bit", RefcountBehindEnd},
    {"2-bit refcounts", "refcount of data", "refcount, 2 bits", RefcountOfSomeData},
    {"2-bit refcounts", "refcount behind the end", "refcount, 2 bits", RefcountBehindEnd},
    {"4-bit refcounts", "refcount of data", "refcount, 4 bits", RefcountOfSomeData},
    {"4-bit refcounts", "refcount behind the end", "refcount, 4 bits", RefcountBehindEnd},
    {"8-bit refcounts", "refcount of data", "refcount, 8 bits", RefcountOfSomeData},
    {"8-bit refcounts", "refcount behind the end", "refcount, 8 bits", RefcountBehindEnd},
    {"32-bit refcounts", "refcount of data", "refcount, 32 bits", RefcountOfSomeData},
    {"32-bit refcounts", "refcount behind the end", "refcount, 32 bits", RefcountBehindEnd},
    {"64-bit refcounts", "refcount of data", "refcount, 64 bits", RefcountOfSomeData},
    {"64-bit refcounts", "refcount behind the end", "refcount, 64 bits", RefcountBehindEnd},
};

}  // namespace

std::vector<FieldImage> FieldImages() {
  return {{"version 2", Version2()},
          {"version 3", Version3()},
          {"backing file", Backing()},
          {"data file", DataFile()},
          {"LUKS", Luks()},
          {"zstd", Zstd()},
          {"unknown parts", Unknown()},
          {"bitmaps", Bitmaps()},
          {"extended L2", ExtendedL2()},
          {"16 KiB clusters", LargeClusters()},
          {"1-bit refcounts", RefcountsOf(0)},
          {"2-bit refcounts", RefcountsOf(1)},
          {"4-bit refcounts", RefcountsOf(2)},
          {"8-bit refcounts", RefcountsOf(3)},
          {"32-bit refcounts", RefcountsOf(5)},
          {"64-bit refcounts", RefcountsOf(6)}};
}

std::vector<RecordPlace> RecordsOf(absl::string_view image) {
  std::vector<RecordPlace> records;
  if (std::find(std::begin(kAllButVersion2), std::end(kAllButVersion2), image) !=
      std::end(kAllButVersion2)) {
    records.push_back({image, "header", "header", WholeHeader});
    records.push_back({image, "feature bits", "feature bits", FeatureBits});
  }
  std::copy_if(std::begin(kRecords), std::end(kRecords), std::back_inserter(records),
               [image](const RecordPlace& record) { return record.image == image; });
  return records;
}

}  // namespace qcow2check::testing

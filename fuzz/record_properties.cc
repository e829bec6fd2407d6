// The properties of the records in common/: see fuzz/properties.h.
#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <vector>

#include "checker/check.h"
#include "common/bitmap_entry.h"
#include "common/byte_order.h"
#include "common/header.h"
#include "common/header_extension.h"
#include "common/limits.h"
#include "common/luks_header.h"
#include "common/memory_file.h"
#include "common/refcount_block.h"
#include "common/snapshot_entry.h"
#include "common/table_entry.h"
#include "fuzz/properties.h"
#include "repair/snapshot_table.h"
#include "tests/plain_promises.h"

namespace qcow2check::testing {
namespace {

void Expect(bool is_true, absl::string_view what, std::string& broken) {
  if (!is_true) AddBroken("Records", what, broken);
}

// What each field says, wherever the header ends.
void LookAtHeader(Input input, std::string& broken) {
  const Header header = DecodeHeader(input);
  for (const HeaderField& field : kHeaderFields) {
    const std::optional<uint64_t> value = LoadHeaderField(field, input);
    Expect(value.has_value() == (input.size() >= field.offset + field.width),
           "a field is there if its bytes are", broken);
  }
  if (input.size() >= kHeaderBytesV2) {
    Expect(LoadHeaderField(kHeaderFields[5], input) == header.size, "the size", broken);
    Expect(LoadHeaderField(kHeaderFields[8], input) == header.l1_table_offset, "the L1 offset",
           broken);
  }
  if (const std::optional<Geometry> geometry = GeometryOf(header)) {
    Expect(header.cluster_bits >= kMinClusterBits && header.cluster_bits <= kMaxClusterBits,
           "a geometry has clusters that tables can be read with", broken);
    Expect(geometry->l2_entries() * geometry->l2_entry_bytes() == geometry->cluster_size(),
           "an L2 table fills a cluster", broken);
  }
}

void LookAtExtensions(Input input, std::string& broken) {
  const Header header = DecodeHeader(input);
  for (const uint64_t end : {uint64_t{input.size()}, header.backing_file_offset}) {
    const HeaderExtensionList list = ParseHeaderExtensions(input, header.header_length, end);
    uint64_t at = header.header_length;
    for (const HeaderExtension& extension : list.extensions) {
      Expect(extension.offset_bytes == at, "extensions follow each other", broken);
      Expect(extension.data.size() == extension.length_bytes, "an extension has its data", broken);
      at += 8 + RoundUp(extension.length_bytes, 8);
      // Only the padding of the last one may be missing.
      Expect(at < std::min<uint64_t>(end, input.size()) + 8, "extensions stay inside", broken);
      for (const FeatureNameEntry& row : DecodeFeatureNames(extension.data)) {
        Expect(row.name.size() <= kFeatureNameEntryBytes - 2, "a feature has a name", broken);
      }
      Expect(DecodeBitmapsExtension(extension.data).has_value() ==
                 (extension.data.size() == kBitmapsExtensionBytes),
             "a bitmaps extension has its length", broken);
      (void)DecodeCryptoExtension(extension.data);
      if (const std::optional<RepairNote> note = DecodeRepairNote(extension.data)) {
        const std::optional<RepairNote> again = DecodeRepairNote(EncodeRepairNote(*note));
        Expect(again.has_value() && again->orphans == note->orphans,
               "a repair note is read as it was written", broken);
      }
    }
  }
}

void LookAtEntries(Input input, std::string& broken) {
  if (input.size() >= kSnapshotFixedBytes) {
    SnapshotEntry entry = DecodeSnapshotFixed(input.first(kSnapshotFixedBytes), 0);
    Expect(entry.length_bytes >= kSnapshotFixedBytes && IsAligned(entry.length_bytes, 8),
           "a snapshot entry has a length", broken);
    DecodeSnapshotExtra(input.subspan(kSnapshotFixedBytes), entry);
    (void)entry.vm_state_bytes();
    const MemoryFile file({input.begin(), input.end()});
    for (const SnapshotEntry& one : ReadPlausibleEntries(file, 0, 100)) {
      Expect(one.offset_bytes < input.size(), "an entry is in the file", broken);
      Expect(EntryBytes(file, one).size() == one.length_bytes, "an entry is whole", broken);
      const std::vector<uint8_t> completed = CompletedEntryBytes(file, one, Geometry{});
      Expect(completed.size() >= kSnapshotFixedBytes + kSnapshotKnownExtraBytes,
             "a completed entry is complete", broken);
    }
  }
  if (input.size() >= kBitmapFixedBytes) {
    const BitmapEntry entry = DecodeBitmapFixed(input.first(kBitmapFixedBytes), 0);
    Expect(entry.length_bytes >= kBitmapFixedBytes && IsAligned(entry.length_bytes, 8),
           "a bitmap entry has a length", broken);
    if (entry.granularity_bits <= 63) (void)entry.DataBytes(entry.table_offset);
  }
  if (input.size() >= kLuksHeaderBytes) (void)DecodeLuksHeader(input);
}

void LookAtWords(Input input, std::string& broken) {
  for (size_t at = 0; at + 8 <= input.size() && at < 512; at += 8) {
    const uint64_t word = Load64(&input[at]);
    for (int order = 0; order <= static_cast<int>(kMaxRefcountOrder); ++order) {
      std::array<uint8_t, 8> block;
      std::copy_n(&input[at], 8, block.begin());
      const uint64_t index = (uint64_t{64} >> order) - 1;
      StoreRefcount(block.data(), index, order, LoadRefcount(block.data(), index, order));
      Expect(Load64(block.data()) == word, "a refcount stored is what was loaded", broken);
    }
    if (!IsCompressed(word)) continue;
    for (int bits = 9; bits <= 30; ++bits) {
      const CompressedRange range = DecodeCompressed(word, bits);
      Expect(
          DecodeCompressed(EncodeCompressed(range, bits), bits).offset_bytes == range.offset_bytes,
          "a compressed range", broken);
    }
  }
}

}  // namespace

std::string BrokenByRecords(Input input) {
  std::string broken;
  for (const auto look : {&LookAtHeader, &LookAtExtensions, &LookAtEntries, &LookAtWords}) {
    look(input, broken);
  }
  (void)SummarizeImage(MemoryFile({input.begin(), input.end()}));
  return broken;
}

}  // namespace qcow2check::testing

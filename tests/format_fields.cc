#include "tests/format_fields.h"

#include <algorithm>
#include <array>
#include <iterator>

#include "common/bitmap_entry.h"
#include "common/header.h"
#include "common/snapshot_entry.h"

namespace qcow2check::testing {
namespace {

constexpr FieldUse kNumber = FieldUse::kNumber;
constexpr FieldUse kOffset = FieldUse::kOffset;

constexpr FormatField Bytes(absl::string_view record, absl::string_view name, uint64_t offset_bytes,
                            int bytes, FieldUse use = kNumber) {
  return {record, name, offset_bytes, bytes, 0, 8 * bytes, use, 0};
}
constexpr FormatField Long(absl::string_view record, absl::string_view name, uint64_t offset_bytes,
                           uint64_t bytes) {
  return {record, name, offset_bytes, 8, 0, 64, kNumber, bytes - 8};
}
// Of a 64-bit word.
constexpr FormatField Bits(absl::string_view record, absl::string_view name, int lowest_bit,
                           int bits, FieldUse use = kNumber, uint64_t offset_bytes = 0) {
  return {record, name, offset_bytes, 8, lowest_bit, bits, use, 0};
}

constexpr uint64_t kIncompatible = 0;
constexpr uint64_t kCompatible = 8;
constexpr uint64_t kAutoclear = 16;

// The sizes of texts, and of what depends on the cluster size, are those in tests/field_images.cc.
constexpr auto kFields = std::to_array<FormatField>({
    // Behind the fields of kHeaderFields.
    Bytes("header", "padding", kHeaderBytesV3 + 1, 7),

    Bits("feature bits", "dirty", 0, 1, kNumber, kIncompatible),
    Bits("feature bits", "corrupt", 1, 1, kNumber, kIncompatible),
    Bits("feature bits", "external data file", 2, 1, kNumber, kIncompatible),
    Bits("feature bits", "compression type", 3, 1, kNumber, kIncompatible),
    Bits("feature bits", "extended L2", 4, 1, kNumber, kIncompatible),
    Bits("feature bits", "unknown incompatible", 5, 59, kNumber, kIncompatible),
    Bits("feature bits", "lazy refcounts", 0, 1, kNumber, kCompatible),
    Bits("feature bits", "unknown compatible", 1, 63, kNumber, kCompatible),
    Bits("feature bits", "bitmaps consistent", 0, 1, kNumber, kAutoclear),
    Bits("feature bits", "raw external data", 1, 1, kNumber, kAutoclear),
    Bits("feature bits", "unknown autoclear", 2, 62, kNumber, kAutoclear),

    Bytes("header extension", "type", 0, 4),
    Bytes("header extension", "length", 4, 4),
    Bytes("backing format", "name", 0, 3),
    Bytes("backing format", "padding", 3, 5),
    Long("backing file name", "name", 0, 11),
    Bytes("data file name", "name", 0, 8),
    Bytes("feature name row", "type", 0, 1),
    Bytes("feature name row", "bit", 1, 1),
    Long("feature name row", "name", 2, 46),
    Bytes("bitmaps extension", "nb_bitmaps", 0, 4),
    Bytes("bitmaps extension", "reserved", 4, 4),
    Bytes("bitmaps extension", "directory_size", 8, 8),
    Bytes("bitmaps extension", "directory_offset", 16, 8, kOffset),
    Bytes("encryption header pointer", "offset", 0, 8, kOffset),
    Bytes("encryption header pointer", "length", 8, 8),
    Bytes("repair note", "version", 0, 4),
    Bytes("repair note", "orphans", 4, 4),
    Bytes("unknown extension", "data", 0, 5),
    Bytes("unknown extension", "padding", 5, 3),

    Bits("L1 entry", "reserved low bits", 0, 9),
    Bits("L1 entry", "offset", 9, 47, kOffset),
    Bits("L1 entry", "reserved high bits", 56, 7),
    Bits("L1 entry", "COPIED", 63, 1),

    Bits("L2 entry", "zero flag", 0, 1),
    Bits("L2 entry", "reserved low bits", 1, 8),
    Bits("L2 entry", "offset", 9, 47, kOffset),
    Bits("L2 entry", "reserved high bits", 56, 6),
    Bits("L2 entry", "compressed flag", 62, 1),
    Bits("L2 entry", "COPIED", 63, 1),
    Bits("compressed L2 entry, 4 KiB clusters", "offset", 0, 58, kOffset),
    Bits("compressed L2 entry, 4 KiB clusters", "sectors", 58, 4),
    Bits("compressed L2 entry, 4 KiB clusters", "compressed flag", 62, 1),
    Bits("compressed L2 entry, 4 KiB clusters", "COPIED", 63, 1),
    Bits("compressed L2 entry, 16 KiB clusters", "offset", 0, 56, kOffset),
    Bits("compressed L2 entry, 16 KiB clusters", "sectors", 56, 6),
    Bits("compressed L2 entry, 16 KiB clusters", "compressed flag", 62, 1),
    Bits("compressed L2 entry, 16 KiB clusters", "COPIED", 63, 1),
    Bits("subcluster bitmap", "allocated", 0, 32),
    Bits("subcluster bitmap", "reads as zeros", 32, 32),

    Bits("refcount table entry", "reserved bits", 0, 9),
    Bits("refcount table entry", "offset", 9, 55, kOffset),
    // Below 8 bits: entries that come first in their byte.
    {"refcount, 1 bit", "refcount", 0, 1, 0, 1, kNumber, 0},
    {"refcount, 2 bits", "refcount", 0, 1, 0, 2, kNumber, 0},
    {"refcount, 4 bits", "refcount", 0, 1, 0, 4, kNumber, 0},
    Bytes("refcount, 8 bits", "refcount", 0, 1),
    Bytes("refcount, 16 bits", "refcount", 0, 2),
    Bytes("refcount, 32 bits", "refcount", 0, 4),
    Bytes("refcount, 64 bits", "refcount", 0, 8),

    Bytes("snapshot table entry", "l1_table_offset", 0, 8, kOffset),
    Bytes("snapshot table entry", "l1_size", 8, 4),
    Bytes("snapshot table entry", "id_size", 12, 2),
    Bytes("snapshot table entry", "name_size", 14, 2),
    Bytes("snapshot table entry", "date_seconds", 16, 4),
    Bytes("snapshot table entry", "date_nanoseconds", 20, 4),
    Bytes("snapshot table entry", "vm_clock_nanoseconds", 24, 8),
    Bytes("snapshot table entry", "vm_state_size", 32, 4),
    Bytes("snapshot table entry", "extra_data_size", 36, 4),
    Bytes("snapshot extra data", "vm_state_size_64", 0, 8),
    Bytes("snapshot extra data", "disk_size", 8, 8),
    Bytes("snapshot extra data", "icount", 16, 8),
    Bytes("unknown snapshot extra data", "data", 0, 8),
    Bytes("snapshot id and name", "id", 0, 1),
    Bytes("snapshot id and name", "name", 1, 5),
    Bytes("snapshot id and name", "padding", 6, 2),

    Bytes("bitmap directory entry", "table_offset", 0, 8, kOffset),
    Bytes("bitmap directory entry", "table_size", 8, 4),
    Bytes("bitmap directory entry", "flags", 12, 4),
    Bytes("bitmap directory entry", "type", 16, 1),
    Bytes("bitmap directory entry", "granularity_bits", 17, 1),
    Bytes("bitmap directory entry", "name_size", 18, 2),
    Bytes("bitmap directory entry", "extra_data_size", 20, 4),
    Bytes("bitmap directory entry", "name", kBitmapFixedBytes, 7),
    Bytes("bitmap directory entry", "padding", kBitmapFixedBytes + 7, 1),
    Bits("bitmap table entry", "all-ones flag", 0, 1),
    Bits("bitmap table entry", "reserved low bits", 1, 8),
    Bits("bitmap table entry", "offset", 9, 47, kOffset),
    Bits("bitmap table entry", "reserved high bits", 56, 8),

    Bytes("LUKS header", "magic", 0, 6),
    Bytes("LUKS header", "version", 6, 2),
    Long("LUKS header", "cipher_name", 8, 32),
    Long("LUKS header", "cipher_mode", 40, 32),
    Long("LUKS header", "hash_spec", 72, 32),
    Bytes("LUKS header", "payload_offset", 104, 4),
    Bytes("LUKS header", "key_bytes", 108, 4),
    Long("LUKS header", "digest", 112, 20),
    Long("LUKS header", "digest_salt", 132, 32),
    Bytes("LUKS header", "digest_iterations", 164, 4),
    Long("LUKS header", "uuid", 168, 40),
    Bytes("LUKS key slot", "state", 0, 4),
    Bytes("LUKS key slot", "iterations", 4, 4),
    Long("LUKS key slot", "salt", 8, 32),
    Bytes("LUKS key slot", "material_offset", 40, 4),
    Bytes("LUKS key slot", "stripes", 44, 4),
});

uint64_t Mask(int bits) { return bits == 64 ? ~uint64_t{0} : (uint64_t{1} << bits) - 1; }

uint64_t LoadWord(const uint8_t* place, int bytes) {
  uint64_t word = 0;
  for (int i = 0; i < bytes; ++i) word = word << 8 | place[i];
  return word;
}

void StoreWord(uint8_t* place, int bytes, uint64_t word) {
  for (int i = bytes; i-- > 0; word >>= 8) place[i] = static_cast<uint8_t>(word);
}

}  // namespace

std::vector<FormatField> AllFormatFields() {
  std::vector<FormatField> fields;
  for (const HeaderField& field : kHeaderFields) {
    const bool is_offset = field.name == "backing_file_offset" || field.name == "l1_table_offset" ||
                           field.name == "refcount_table_offset" ||
                           field.name == "snapshots_offset";
    const int bytes = static_cast<int>(field.width);
    fields.push_back(
        Bytes("header", field.name, field.offset, bytes, is_offset ? kOffset : kNumber));
    if (field.since > 2) continue;
    fields.push_back(fields.back());
    fields.back().record = "version 2 header";
  }
  fields.insert(fields.end(), kFields.begin(), kFields.end());
  return fields;
}

std::vector<FormatField> FieldsOf(absl::string_view record) {
  std::vector<FormatField> fields = AllFormatFields();
  std::erase_if(fields, [record](const FormatField& field) { return field.record != record; });
  return fields;
}

uint64_t LoadField(const std::vector<uint8_t>& image, uint64_t record_offset,
                   const FormatField& field) {
  const uint64_t word = LoadWord(&image[record_offset + field.offset_bytes], field.word_bytes);
  return word >> field.lowest_bit & Mask(field.bits);
}

void StoreField(std::vector<uint8_t>& image, uint64_t record_offset, const FormatField& field,
                uint64_t value) {
  uint8_t* place = &image[record_offset + field.offset_bytes];
  const uint64_t mask = Mask(field.bits) << field.lowest_bit;
  const uint64_t word = LoadWord(place, field.word_bytes);
  StoreWord(place, field.word_bytes, (word & ~mask) | (value << field.lowest_bit & mask));
}

}  // namespace qcow2check::testing

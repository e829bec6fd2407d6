// The bitmaps extension, the bitmap directory and bitmap tables as the planner needs them: which
// of what is there is beyond doubt.
#ifndef QCOW2CHECK_REPAIR_BITMAP_DIRECTORY_H_
#define QCOW2CHECK_REPAIR_BITMAP_DIRECTORY_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "checker/check_state.h"
#include "common/bitmap_entry.h"
#include "common/geometry.h"
#include "common/header_extension.h"
#include "common/image_file.h"

namespace qcow2check {

// Fields of an extension, and of a directory entry, from its first byte.
inline constexpr uint64_t kExtensionHeadBytes = 8;
inline constexpr uint64_t kBitmapTableOffsetField = 0;
inline constexpr uint64_t kBitmapTableSizeField = 8;
inline constexpr uint64_t kBitmapFlagsField = 12;
inline constexpr uint64_t kBitmapTypeField = 16;
inline constexpr uint64_t kBitmapNameSizeField = 18;
inline constexpr uint64_t kBitmapExtraSizeField = 20;

struct BitmapsPlace {
  uint64_t offset_bytes = 0;  // of the extension's type word
  uint32_t length_bytes = 0;  // of its data
  std::optional<BitmapsExtension> fields;
  bool is_last = false;  // nothing but the end of the list follows
};
// The extension that the bitmap pass judges.
std::optional<BitmapsPlace> FindBitmapsExtension(const CheckState& state);

// The entry at `at`, whatever is in it, if it ends at or before `end`.
std::optional<BitmapEntry> ReadBitmapEntry(const ImageFile& file, uint64_t at, uint64_t end);

// Where the directory ends, or the file.
uint64_t DirectoryEnd(const ImageFile& file, const BitmapsExtension& fields);

// The entries of the directory, from the first on, as far as they lie in it.
std::vector<BitmapEntry> ReadBitmapDirectory(const ImageFile& file, const BitmapsExtension& fields);

// Whether everything in the entry could be right.
bool IsPlausible(const BitmapEntry& entry, const ImageFile& file, const Geometry& geometry);

// Whether there is a directory as `fields` say: plausible entries, and nothing behind them.
bool IsWholeDirectory(const ImageFile& file, const Geometry& geometry,
                      const BitmapsExtension& fields);

// Entries that the table of a bitmap has for the disk.
uint64_t TableEntriesNeeded(const BitmapEntry& entry, const Geometry& geometry);

// Whether an entry of a bitmap table could be right.
bool IsTableEntry(uint64_t entry, const ImageFile& file, const Geometry& geometry);

// Calls visit(index, entry) for the entries of a bitmap table that are not 0. False if they cannot
// be read; the table must be in the file.
bool ForEachTableEntry(const ImageFile& file, uint64_t table_offset, uint64_t entries,
                       const std::function<void(uint64_t, uint64_t)>& visit);

}  // namespace qcow2check

#endif  // QCOW2CHECK_REPAIR_BITMAP_DIRECTORY_H_

#include "cli/header_meaning.h"

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/format_bytes.h"
#include "common/limits.h"

namespace qcow2check {
namespace {

std::string Bytes(uint64_t bytes) {
  const std::string exact = absl::StrCat(FormatCount(bytes), bytes == 1 ? " byte" : " bytes");
  return bytes < 1024 ? exact : absl::StrCat(FormatBytes(bytes), " (", exact, ")");
}

// "the L1 table is at byte 4,096, in cluster 1".
std::string Place(absl::string_view what, uint64_t offset, const HeaderView& view) {
  std::string text = absl::StrCat(what, " is at byte ", FormatCount(offset));
  if (view.geometry) {
    absl::StrAppend(&text, ", in cluster ",
                    FormatCount(view.geometry->ClusterOf(HostOffset{offset}).value));
    if (!IsAligned(offset, view.geometry->cluster_size())) {
      absl::StrAppend(&text, ", not at its start: an error");
    }
  }
  if (offset >= view.file_bytes) absl::StrAppend(&text, ", behind the end of the file");
  return text;
}

using Meaning = std::string (*)(uint64_t value, const HeaderView& view);

std::string Magic(uint64_t value, const HeaderView&) {
  return value == kMagic ? "a qcow2 image (\"QFI\", 0xfb)" : "not the qcow2 magic";
}

std::string Version(uint64_t value, const HeaderView&) {
  if (value == 2) return "version 2: a header of 72 bytes, 16-bit refcounts, no feature bits";
  if (value == 3) return "version 3";
  return "an unknown version; what follows is read as version 3";
}

std::string BackingOffset(uint64_t value, const HeaderView& view) {
  if (value == 0) return "no backing file";
  if (!view.backing_name.empty())
    return absl::StrCat("the backing file is \"", view.backing_name, "\"");
  return "the backing file name is not inside the first cluster";
}

std::string BackingSize(uint64_t value, const HeaderView& view) {
  if (value == 0) return "no backing file name";
  if (view.header.backing_file_offset == 0) return "ignored: there is no backing file";
  std::string text = absl::StrCat("the name has ", Counted(value, "byte", "bytes"));
  if (value > kMaxBackingNameBytes) absl::StrAppend(&text, ", more than the 1,023 allowed");
  return text;
}

std::string ClusterBits(uint64_t value, const HeaderView&) {
  if (value < kMinClusterBits) return "impossible: clusters of less than 512 bytes";
  if (value > kMaxClusterBits) return "impossible: larger clusters than any table can name";
  const uint64_t size = uint64_t{1} << value;
  std::string text =
      absl::StrFormat("clusters of %s bytes (%s, %s of 512 bytes)", FormatCount(size),
                      FormatBytes(size), Counted(size / kSectorBytes, "sector", "sectors"));
  if (value > kQemuMaxClusterBits) absl::StrAppend(&text, "; QEMU opens 2 MiB at most");
  return text;
}

std::string Size(uint64_t value, const HeaderView& view) {
  std::string text = absl::StrCat("the virtual disk has ", Bytes(value));
  if (view.geometry) {
    const uint64_t clusters = DivideRoundingUp(value, view.geometry->cluster_size());
    absl::StrAppend(&text, ", ", Counted(clusters, "cluster", "clusters"));
  }
  if (value % kSectorBytes != 0) absl::StrAppend(&text, ", not whole sectors");
  return text;
}

std::string CryptMethod(uint64_t value, const HeaderView&) {
  static constexpr std::array<absl::string_view, 3> kMethods = {"not encrypted", "AES-CBC", "LUKS"};
  if (value >= kMethods.size()) return "an unknown method of encryption";
  return std::string(kMethods[value]);
}

std::string L1Size(uint64_t value, const HeaderView& view) {
  std::string text =
      absl::StrCat("the L1 table has ", Counted(value, "entry", "entries"), " of 8 bytes");
  if (view.geometry) {
    const uint64_t mapped = SaturatingMultiply(value, view.geometry->l2_guest_bytes());
    absl::StrAppend(&text, " for ", FormatBytes(mapped), "; the disk needs ",
                    FormatCount(view.geometry->l1_entries_needed()));
  }
  return text;
}

std::string L1Offset(uint64_t value, const HeaderView& view) {
  return Place("the L1 table", value, view);
}

std::string RefcountTableOffset(uint64_t value, const HeaderView& view) {
  return Place("the refcount table", value, view);
}

std::string RefcountTableClusters(uint64_t value, const HeaderView& view) {
  std::string text = absl::StrCat("the refcount table has ", Counted(value, "cluster", "clusters"));
  if (view.geometry) {
    const uint64_t entries = SaturatingMultiply(value, view.geometry->cluster_size()) / 8;
    absl::StrAppend(&text, ": ", Counted(entries, "entry", "entries"), " of 8 bytes");
  }
  return text;
}

std::string Snapshots(uint64_t value, const HeaderView&) {
  return value == 0 ? "no internal snapshots"
                    : Counted(value, "internal snapshot", "internal snapshots");
}

std::string SnapshotsOffset(uint64_t value, const HeaderView& view) {
  if (view.header.nb_snapshots == 0 && value == 0) return "no snapshot table";
  return Place("the snapshot table", value, view);
}

std::string Features(int type, uint64_t value, uint64_t known, absl::string_view unknown) {
  if (value == 0) return "none set";
  std::string text = DescribeFeatures(type, value);
  if ((value & ~known) != 0) absl::StrAppend(&text, unknown);
  return text;
}

std::string Incompatible(uint64_t value, const HeaderView&) {
  return Features(0, value, kKnownIncompatible, " (unknown: programs must refuse the image)");
}

std::string Compatible(uint64_t value, const HeaderView&) {
  return Features(1, value, kKnownCompatible, " (unknown: can be ignored)");
}

std::string Autoclear(uint64_t value, const HeaderView&) {
  return Features(2, value, kKnownAutoclear, " (unknown: cleared by the next writer)");
}

std::string RefcountOrder(uint64_t value, const HeaderView&) {
  if (value > kMaxRefcountOrder) return "impossible: 6 at most";
  return absl::StrCat("refcounts of ", Counted(uint64_t{1} << value, "bit", "bits"));
}

std::string HeaderLength(uint64_t value, const HeaderView& view) {
  std::string text = absl::StrCat("a header of ", Counted(value, "byte", "bytes"));
  if (value < kHeaderBytesV3) {
    absl::StrAppend(&text, "; version 3 has 104 at least: an error");
  } else if (view.geometry && value > view.geometry->cluster_size()) {
    absl::StrAppend(&text, ", longer than its cluster: an error");
  } else if (value % 8 != 0) {
    absl::StrAppend(&text, ", not a multiple of 8: an error");
  }
  return text;
}

std::string Compression(uint64_t value, const HeaderView&) {
  if (value == kDeflate) return "deflate (zlib)";
  return value == kZstd ? "Zstandard" : "an unknown type";
}

struct FieldMeaning {
  absl::string_view name;
  Meaning meaning;
};
constexpr std::array<FieldMeaning, kHeaderFields.size()> kMeanings = {{
    {"magic", Magic},
    {"version", Version},
    {"backing_file_offset", BackingOffset},
    {"backing_file_size", BackingSize},
    {"cluster_bits", ClusterBits},
    {"size", Size},
    {"crypt_method", CryptMethod},
    {"l1_size", L1Size},
    {"l1_table_offset", L1Offset},
    {"refcount_table_offset", RefcountTableOffset},
    {"refcount_table_clusters", RefcountTableClusters},
    {"nb_snapshots", Snapshots},
    {"snapshots_offset", SnapshotsOffset},
    {"incompatible_features", Incompatible},
    {"compatible_features", Compatible},
    {"autoclear_features", Autoclear},
    {"refcount_order", RefcountOrder},
    {"header_length", HeaderLength},
    {"compression_type", Compression},
}};

constexpr bool SameOrderAsFields() {
  for (size_t i = 0; i < kMeanings.size(); ++i) {
    if (kMeanings[i].name != kHeaderFields[i].name) return false;
  }
  return true;
}
static_assert(SameOrderAsFields());

}  // namespace

std::string MeaningOf(const HeaderFieldView& field, const HeaderView& header) {
  if (field.name == "padding" || field.name == "unknown_fields") {
    const bool zero =
        std::all_of(field.bytes.begin(), field.bytes.end(), [](uint8_t b) { return b == 0; });
    if (field.name == "padding") return zero ? "zero, as it must be" : "not zero";
    return zero ? "fields of later versions, all zero" : "fields of later versions";
  }
  if (!field.value) return "the file ends before it";
  for (const FieldMeaning& row : kMeanings) {
    if (row.name == field.name) return row.meaning(*field.value, header);
  }
  return "";
}

}  // namespace qcow2check

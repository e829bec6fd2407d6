// The header pass: header fields, feature bits, header extensions, backing and data file names.
//
// Needs nothing. Makes the header, the geometry (without which nothing else can be examined) and
// the names. Reads the first cluster only.
#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "checker/check_state.h"
#include "checker/lost_header.h"
#include "common/limits.h"
#include "common/quoted.h"

namespace qcow2check {
namespace {

const HeaderField& FieldNamed(absl::string_view name) {
  return *std::find_if(kHeaderFields.begin(), kHeaderFields.end(),
                       [name](const HeaderField& field) { return field.name == name; });
}

void AddField(CheckState& state, FindingCode code, absl::string_view field, uint64_t stored,
              std::string detail, std::optional<uint64_t> expected = std::nullopt) {
  const HeaderField& place = FieldNamed(field);
  state.findings.Add({.code = code,
                      .structure = Structure::kHeader,
                      .host_offset = HostOffset{place.offset},
                      .length_bytes = place.width,
                      .stored = stored,
                      .expected = expected,
                      .detail = std::move(detail)});
}

void AddExtension(CheckState& state, FindingCode code, const HeaderExtension& extension,
                  std::string detail) {
  state.findings.Add({.code = code,
                      .structure = Structure::kHeaderExtension,
                      .host_offset = HostOffset{extension.offset_bytes},
                      .length_bytes = 8 + uint64_t{extension.length_bytes},
                      .stored = extension.type,
                      .detail = std::move(detail)});
}

void CheckFeatures(CheckState& state) {
  const Header& header = state.header;
  const uint64_t unknown = header.incompatible_features & ~kKnownIncompatible;
  if (unknown != 0) {
    std::string names = DescribeFeatures(0, unknown);
    for (const HeaderExtension& extension : state.extensions.extensions) {
      if (extension.type != kExtensionFeatureNames) continue;
      for (const FeatureNameEntry& row : DecodeFeatureNames(extension.data)) {
        if (row.type == 0 && row.bit < 64 && ((unknown >> row.bit) & 1) != 0) {
          absl::StrAppend(&names, " (\"", row.name, "\" is bit ", row.bit, ")");
        }
      }
    }
    AddField(state, FindingCode::kUnknownIncompatibleFeature, "incompatible_features",
             header.incompatible_features, names);
    state.Skip("the meaning of unknown features", "this program does not know them");
  }
  const uint64_t ignorable = header.compatible_features & ~kKnownCompatible;
  if (ignorable != 0) {
    AddField(state, FindingCode::kUnknownFeature, "compatible_features", header.compatible_features,
             absl::StrCat("compatible ", DescribeFeatures(1, ignorable)));
  }
  const uint64_t autoclear = header.autoclear_features & ~kKnownAutoclear;
  if (autoclear != 0) {
    AddField(state, FindingCode::kUnknownFeature, "autoclear_features", header.autoclear_features,
             absl::StrCat("autoclear ", DescribeFeatures(2, autoclear)));
  }
  if (header.Has(kDirty)) {
    AddField(state, FindingCode::kDirtyBit, "incompatible_features", header.incompatible_features,
             "");
  }
  if (header.Has(kCorrupt)) {
    AddField(state, FindingCode::kCorruptBit, "incompatible_features", header.incompatible_features,
             "");
  }
}

void CheckSizes(CheckState& state) {
  const Header& header = state.header;
  if (header.version != 2 && header.version != 3) {
    AddField(state, FindingCode::kUnsupportedVersion, "version", header.version,
             absl::StrCat("version ", header.version));
    state.Skip("the meaning of this version", "only versions 2 and 3 are known");
  }
  if (header.cluster_bits < kMinClusterBits || header.cluster_bits > kMaxClusterBits) {
    AddField(state, FindingCode::kClusterBitsInvalid, "cluster_bits", header.cluster_bits,
             absl::StrCat("cluster_bits is ", header.cluster_bits));
  } else if (header.cluster_bits > kQemuMaxClusterBits) {
    AddField(state, FindingCode::kClusterBitsLarge, "cluster_bits", header.cluster_bits,
             absl::StrCat("cluster_bits is ", header.cluster_bits));
  }
  if (header.refcount_order > kMaxRefcountOrder) {
    AddField(state, FindingCode::kRefcountOrderInvalid, "refcount_order", header.refcount_order,
             absl::StrCat("refcount_order is ", header.refcount_order));
  }
  if (header.size % kSectorBytes != 0) {
    AddField(state, FindingCode::kVirtualSizeUnaligned, "size", header.size,
             absl::StrCat(header.size, " bytes"));
  }
  if (header.Has(kExtendedL2) && header.cluster_bits < kMinClusterBitsExtendedL2) {
    AddField(state, FindingCode::kExtendedL2SmallClusters, "cluster_bits", header.cluster_bits,
             absl::StrCat("cluster_bits is ", header.cluster_bits));
  }
  if (header.version < 3) return;
  if (header.header_length < kHeaderBytesV3 ||
      (header.cluster_bits <= kMaxClusterBits && header.header_length > header.cluster_size())) {
    AddField(state, FindingCode::kHeaderLengthInvalid, "header_length", header.header_length,
             absl::StrCat("header_length is ", header.header_length), kHeaderBytesV3);
  } else if (header.header_length % 8 != 0) {
    AddField(state, FindingCode::kHeaderLengthUnaligned, "header_length", header.header_length,
             absl::StrCat("header_length is ", header.header_length));
  }
  const bool bit = header.Has(kCompressionType);
  if (header.compression_type > kZstd) {
    AddField(state, FindingCode::kCompressionTypeInvalid, "compression_type",
             header.compression_type, absl::StrCat("type ", header.compression_type));
  } else if (bit != (header.compression_type != kDeflate)) {
    AddField(state, FindingCode::kCompressionTypeInvalid, "compression_type",
             header.compression_type,
             bit ? "the feature bit is set, the type is deflate"
                 : "the type is zstd, the feature bit is not set");
  }
}

// Names that are no file names, or of a kind that an image has no good reason to name.
bool IsUnsafeName(absl::string_view name) {
  // QEMU opens what stands before the zero byte.
  if (name.find('\0') != absl::string_view::npos) return true;
  if (absl::StartsWith(name, "/dev/") || absl::StartsWith(name, "/proc/") ||
      absl::StartsWith(name, "/sys/")) {
    return true;
  }
  // QEMU takes what stands before a colon as a protocol unless a slash comes first.
  const size_t colon = name.find(':');
  if (colon != absl::string_view::npos &&
      name.substr(0, colon).find('/') == absl::string_view::npos) {
    return true;
  }
  for (absl::string_view part : absl::StrSplit(name, '/')) {
    if (part == "..") return true;
  }
  return false;
}

// Where the header ends and the extensions start; a guess where header_length is impossible.
uint64_t HeaderEnd(const Header& header) {
  if (header.version < 3) return kHeaderBytesV2;
  const bool possible =
      header.header_length >= kHeaderBytesV3 && header.header_length <= header.cluster_size();
  return possible ? header.header_length : kHeaderBytesV3;
}

void CheckBackingName(CheckState& state) {
  const Header& header = state.header;
  if (header.backing_file_offset == 0) return;
  const uint64_t header_end = HeaderEnd(header);
  const uint64_t end = SaturatingAdd(header.backing_file_offset, header.backing_file_size);
  if (header.backing_file_size > kMaxBackingNameBytes || end > header.cluster_size() ||
      end > state.file.size_bytes()) {
    AddField(
        state, FindingCode::kBackingNameInvalid, "backing_file_offset", header.backing_file_offset,
        absl::StrFormat("%d bytes at 0x%x", header.backing_file_size, header.backing_file_offset));
    state.Skip("the backing file name", "it is not inside the first cluster");
    return;
  }
  if (header.backing_file_offset < header_end) {
    AddField(state, FindingCode::kBackingNameOverlap, "backing_file_offset",
             header.backing_file_offset, "");
  }
  if (end > state.first_cluster.size()) return;
  state.backing_name.assign(
      reinterpret_cast<const char*>(state.first_cluster.data()) + header.backing_file_offset,
      header.backing_file_size);
  if (IsUnsafeName(state.backing_name)) {
    AddField(state, FindingCode::kBackingNameUnsafe, "backing_file_offset",
             header.backing_file_offset, Quoted(state.backing_name));
  } else if (absl::StartsWith(state.backing_name, "/")) {
    AddField(state, FindingCode::kFileNameAbsolute, "backing_file_offset",
             header.backing_file_offset, Quoted(state.backing_name));
  }
  if (state.backing_format.empty() && !state.backing_name.empty()) {
    AddField(state, FindingCode::kBackingFormatMissing, "backing_file_offset",
             header.backing_file_offset, Quoted(state.backing_name));
  }
}

void CheckFeatureNames(CheckState& state, const HeaderExtension& extension) {
  bool ok = extension.length_bytes % kFeatureNameEntryBytes == 0;
  absl::flat_hash_set<int> seen;
  for (const FeatureNameEntry& row : DecodeFeatureNames(extension.data)) {
    ok = ok && row.type <= 2 && row.bit < 64 && seen.insert(row.type * 64 + row.bit).second;
  }
  if (!ok) {
    AddExtension(state, FindingCode::kFeatureTableMalformed, extension,
                 absl::StrCat(extension.length_bytes, " bytes"));
  }
}

void CheckExtension(CheckState& state, const HeaderExtension& extension) {
  const std::string text(extension.data.begin(), extension.data.end());
  switch (extension.type) {
    case kExtensionBackingFormat:
      state.backing_format = text;
      if (extension.length_bytes >= 16) {
        AddExtension(state, FindingCode::kExtensionMalformed, extension,
                     "QEMU accepts backing format names of at most 15 bytes");
      } else if (!std::all_of(text.begin(), text.end(), absl::ascii_isgraph)) {
        AddExtension(state, FindingCode::kExtensionMalformed, extension,
                     absl::StrCat("no format has the name ", Quoted(text)));
      }
      break;
    case kExtensionDataFile:
      state.data_file_name = text;
      if (!state.header.Has(kExternalDataFile)) {
        AddExtension(state, FindingCode::kDataFileFlagsInvalid, extension,
                     "an external data file is named, but the feature bit is not set");
      }
      if (IsUnsafeName(text)) {
        AddExtension(state, FindingCode::kDataFileNameUnsafe, extension, Quoted(text));
      } else if (absl::StartsWith(text, "/")) {
        AddExtension(state, FindingCode::kFileNameAbsolute, extension, Quoted(text));
      }
      break;
    case kExtensionFeatureNames:
      CheckFeatureNames(state, extension);
      break;
    case kExtensionCrypto:
      if (!DecodeCryptoExtension(extension.data)) {
        AddExtension(state, FindingCode::kExtensionMalformed, extension,
                     absl::StrCat("the encryption header pointer has ", extension.length_bytes,
                                  " bytes, not ", kCryptoExtensionBytes));
      }
      break;
    case kExtensionBitmaps:
      break;  // the bitmap pass judges it
    case kExtensionRepairNote:
      if (const std::optional<RepairNote> note = DecodeRepairNote(extension.data)) {
        state.kept_by_repair = note->orphans != OrphanNote::kVoid;
        state.was_cut_off = note->orphans == OrphanNote::kCutOff;
        state.orphans_explained = state.was_cut_off || note->orphans == OrphanNote::kGivenUp;
        if (state.kept_by_repair) AddExtension(state, FindingCode::kKeptByRepair, extension, "");
        break;
      }
      [[fallthrough]];
    default:
      AddExtension(
          state, FindingCode::kExtensionUnknown, extension,
          absl::StrFormat("type 0x%08x, %d bytes", extension.type, extension.length_bytes));
  }
}

// The part of the first cluster behind the extensions, and the padding between the fields.
void CheckHeaderArea(CheckState& state) {
  const Header& header = state.header;
  // What is left of the cluster must be zero, but for the backing file name.
  const uint64_t name_end = SaturatingAdd(header.backing_file_offset, header.backing_file_size);
  const auto is_name = [&](uint64_t at) {
    return header.backing_file_offset != 0 && at >= header.backing_file_offset && at < name_end;
  };
  const uint64_t stop = std::min<uint64_t>(header.cluster_size(), state.first_cluster.size());
  uint64_t first = 0, last = 0;
  for (uint64_t at = state.extensions.end_bytes; at < stop; ++at) {
    if (state.first_cluster[at] == 0 || is_name(at)) continue;
    if (first == 0) first = at;
    last = at;
  }
  if (first != 0) {
    state.findings.Add({.code = FindingCode::kHeaderAreaBytes,
                        .structure = Structure::kHeader,
                        .host_offset = HostOffset{first},
                        .length_bytes = last - first + 1,
                        .detail = absl::StrFormat("between 0x%x and 0x%x", first, last)});
  }
  // So must the padding behind the last header field; fields behind it that we do not know may
  // hold anything, and so may the padding of strings.
  const uint64_t padding_end = std::min<uint64_t>({HeaderEnd(header), kHeaderBytesKnown, stop});
  for (uint64_t at = kHeaderBytesV3 + 1; at < padding_end; ++at) {
    if (state.first_cluster[at] == 0 || is_name(at)) continue;
    state.findings.Add({.code = FindingCode::kHeaderAreaBytes,
                        .structure = Structure::kHeader,
                        .host_offset = HostOffset{at},
                        .length_bytes = 1,
                        .detail = "in the padding of the header"});
  }
  for (const HeaderExtension& extension : state.extensions.extensions) {
    const bool is_string =
        extension.type == kExtensionBackingFormat || extension.type == kExtensionDataFile;
    if (!extension.padding_is_zero && !is_string) {
      AddExtension(state, FindingCode::kHeaderAreaBytes, extension,
                   "in the padding of an extension");
    }
  }
}

void CheckExtensions(CheckState& state) {
  const Header& header = state.header;
  const uint64_t begin = HeaderEnd(header);
  const bool name_inside =
      header.backing_file_offset >= begin && header.backing_file_offset < header.cluster_size();
  const uint64_t end = name_inside ? header.backing_file_offset : header.cluster_size();
  state.extensions = ParseHeaderExtensions(state.first_cluster, begin, end);
  absl::flat_hash_set<uint32_t> seen;
  for (const HeaderExtension& extension : state.extensions.extensions) {
    if (!seen.insert(extension.type).second) {
      AddExtension(state, FindingCode::kExtensionDuplicate, extension,
                   absl::StrFormat("type 0x%08x", extension.type));
    }
    CheckExtension(state, extension);
  }
  if (state.extensions.overflow) {
    AddExtension(state, FindingCode::kExtensionOverflow, *state.extensions.overflow,
                 absl::StrFormat("type 0x%08x claims %d bytes", state.extensions.overflow->type,
                                 state.extensions.overflow->length_bytes));
    state.Skip("header extensions behind the one that is too large", "their places are unknown");
    return;
  }
  CheckHeaderArea(state);
}

void CheckDataFileFlags(CheckState& state) {
  const Header& header = state.header;
  const bool data_file = header.Has(kExternalDataFile);
  if (header.Has(kRawExternalData) && !data_file) {
    AddField(state, FindingCode::kDataFileFlagsInvalid, "autoclear_features",
             header.autoclear_features, "raw external data, but no external data file");
  }
  if (header.Has(kRawExternalData) && header.backing_file_offset != 0) {
    AddField(state, FindingCode::kDataFileFlagsInvalid, "backing_file_offset",
             header.backing_file_offset, "raw external data with a backing file");
  }
  if (data_file && header.nb_snapshots != 0) {
    AddField(state, FindingCode::kDataFileSnapshots, "nb_snapshots", header.nb_snapshots,
             absl::StrCat(header.nb_snapshots, " snapshots"));
  }
}

}  // namespace

void CheckHeader(CheckState& state) {
  const uint64_t size = state.file.size_bytes();
  std::vector<uint8_t> start(std::min<uint64_t>(size, kHeaderBytesKnown));
  if (!state.Read(HostOffset{0}, absl::MakeSpan(start), Structure::kHeader)) {
    state.Skip("everything behind the header", "the header cannot be read");
    return;
  }
  state.header = DecodeHeader(start);
  // A file that lost its header still is a qcow2 image: there is something to rescue.
  if (state.header.magic != kMagic && ReportLostHeader(state)) return;
  // Version 1 is another format (qcow) with the same magic.
  if (state.header.magic != kMagic || (start.size() >= 8 && state.header.version == 1)) {
    state.findings.Add({.code = FindingCode::kNotQcow2,
                        .structure = Structure::kHeader,
                        .host_offset = HostOffset{0},
                        .length_bytes = 4,
                        .stored = state.header.magic,
                        .expected = kMagic,
                        .detail = state.header.magic == kMagic ? "it is version 1 (qcow)" : ""});
    return;
  }
  const uint64_t needed = state.header.version < 3 ? kHeaderBytesV2 : kHeaderBytesV3;
  if (size < needed) {
    state.findings.Add({.code = FindingCode::kHeaderTruncated,
                        .structure = Structure::kHeader,
                        .host_offset = HostOffset{0},
                        .length_bytes = size,
                        .detail = absl::StrCat("the file has ", size, " bytes")});
    state.Skip("everything", "the file ends inside the header");
    return;
  }
  CheckSizes(state);
  std::optional<Geometry> geometry = GeometryOf(state.header);
  if (!geometry && state.header.refcount_order > kMaxRefcountOrder) {
    // The mapping tables can be walked all the same.
    Header readable = state.header;
    readable.refcount_order = 4;
    geometry = GeometryOf(readable);
    state.refcounts_readable = false;
    state.Skip("all refcounts", "their width is unknown");
  }
  if (geometry) {
    state.first_cluster.resize(std::min({geometry->cluster_size(), kMaxPieceBytes, size}));
    state.Read(HostOffset{0}, absl::MakeSpan(state.first_cluster), Structure::kHeader);
    CheckExtensions(state);
    CheckBackingName(state);
  }
  CheckFeatures(state);
  CheckDataFileFlags(state);
  if (!geometry) {
    state.Skip("everything behind the header", "the cluster size is impossible");
    return;
  }
  state.file_clusters = DivideRoundingUp(size, geometry->cluster_size());
  if (state.file_clusters > kMaxFileClusters) {
    state.findings.Add(
        {.code = FindingCode::kLimitReached,
         .structure = Structure::kImage,
         .detail = absl::StrCat("the file has more than ", kMaxFileClusters, " clusters")});
    state.Skip("everything behind the header", "the file has too many clusters");
    return;
  }
  state.geometry = geometry;
}

}  // namespace qcow2check

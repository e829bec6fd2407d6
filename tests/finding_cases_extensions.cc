// Cases for header extensions, names, encryption and the flags of an external data file.
#include <string>
#include <utility>

#include "common/header_extension.h"
#include "tests/damage.h"
#include "tests/finding_cases.h"
#include "tests/image_metadata.h"

namespace qcow2check::testing {
namespace {

BuiltImage WithExtensions(std::vector<ExtensionOptions> extensions) {
  ImageOptions options = SmallOptions();
  options.extensions = std::move(extensions);
  return BuildImage(options);
}

BuiltImage WithBacking(std::string file, std::string format = "qcow2") {
  ImageOptions options = SmallOptions();
  options.backing = BackingOptions{std::move(file), std::move(format)};
  return BuildImage(options);
}

BuiltImage WithDataFile(std::string name) {
  ImageOptions options = SmallOptions();
  options.data_file = DataFileOptions{std::move(name), false};
  return BuildImage(options);
}

Fired FiresAtDataFileName(std::string name) {
  const BuiltImage image = WithDataFile(std::move(name));
  return FiresAt(image, image.Extension(kExtensionDataFile).offset);
}

// An extension that fills what a header of 112 bytes leaves of the cluster.
BuiltImage WithExtensionOfStatedLength(uint32_t length) {
  BuiltImage image = WithExtensions({{0x12345678, std::vector<uint8_t>(3968)}});
  Poke32(image.bytes, image.extensions[0].offset + 4, length);
  return image;
}

BuiltImage WithEndMarkerOfLength(uint32_t length) {
  BuiltImage image = SmallImage();
  Poke32(image.bytes, image.extensions_end - 4, length);
  return image;
}

// A feature name table of one row, cut to `length` bytes.
BuiltImage WithFeatureRow(uint8_t type, uint8_t bit, uint64_t length = kFeatureNameEntryBytes) {
  std::vector<uint8_t> row(length, 'x');
  row[0] = type;
  row[1] = bit;
  return WithExtensions({{kExtensionFeatureNames, row}});
}

Fired FiresAtExtension(const BuiltImage& image, uint32_t type) {
  return FiresAt(image, image.Extension(type).offset);
}

// Key slots of 4 KiB, so that the header is small.
BuiltImage WithLuks() {
  ImageOptions options = SmallOptions();
  options.luks = LuksOptions{.stripes = 8};
  return BuildImage(options);
}

// The pointer to the LUKS header, changed.
BuiltImage WithLuksRegion(uint64_t offset, uint64_t length) {
  BuiltImage image = WithLuks();
  const uint64_t data = image.Extension(kExtensionCrypto).offset + 8;
  Poke64(image.bytes, data, offset);
  Poke64(image.bytes, data + 8, length);
  return image;
}

// Words of the LUKS header. Slot i has its material, one sector, in cluster 1 + i; the payload
// starts at sector 72.
constexpr uint64_t kLuksKeyBytes = 108;
constexpr uint64_t kLuksDigestIterations = 164;
constexpr uint64_t kLuksSlot0 = 208;
constexpr uint64_t kLuksSlot1 = kLuksSlot0 + 48;
constexpr uint64_t kLuksSlot2Material = kLuksSlot1 + 48 + 40;

BuiltImage WithLuksWord(uint64_t place, uint32_t value) {
  BuiltImage image = WithLuks();
  Poke32(image.bytes, image.luks_header.offset + place, value);
  return image;
}

uint64_t LuksHeaderOffset() { return WithLuks().luks_header.offset; }

BuiltImage WithMethod(const BuiltImage& from, uint32_t method) {
  BuiltImage image = from;
  PokeField(image, "crypt_method", method);
  return image;
}

BuiltImage WithRawFlag(BuiltImage image) {
  PokeField(image, "autoclear_features", kRawExternalData);
  return image;
}

BuiltImage WithDataFileAndBacking() {
  ImageOptions options = SmallOptions();
  options.data_file = DataFileOptions{};
  options.backing = BackingOptions{};
  return BuildImage(options);
}

// One snapshot table entry for the L1 table itself, in a cluster behind all others.
BuiltImage WithForgedSnapshot(BuiltImage image) {
  SnapshotEntry entry;
  entry.l1_table_offset = image.l1.offset;
  entry.l1_size = static_cast<uint32_t>(image.l1.entries);
  entry.extra_data_bytes = 24;
  entry.disk_size = image.geometry.virtual_size_bytes;
  entry.id = "1";
  const std::vector<uint8_t> bytes = EncodeSnapshotEntry(entry);
  const uint64_t table = image.bytes.size();
  image.bytes.insert(image.bytes.end(), bytes.begin(), bytes.end());
  Extend(image.bytes, table + image.cluster_size());
  PokeField(image, "snapshots_offset", table);
  PokeField(image, "nb_snapshots", 1);
  return image;
}

constexpr FindingCase kCases[] = {
    {FindingCode::kBackingNameUnsafe, "../base / ..base",
     [] { return FiresAtField(WithBacking("../base.qcow2"), "backing_file_offset"); },
     [] { return Check(WithBacking("..base.qcow2")); }, Verdict::kClean},
    {FindingCode::kBackingNameUnsafe, "a protocol / a colon behind a slash",
     [] { return FiresAtField(WithBacking("nbd:unix:x"), "backing_file_offset"); },
     [] { return Check(WithBacking("nbd/unix:x")); }, Verdict::kClean},
    {FindingCode::kBackingNameUnsafe, "a device / a file",
     [] { return FiresAtField(WithBacking("/dev/sda"), "backing_file_offset"); },
     [] { return Check(WithBacking("/devices/sda")); }, Verdict::kClean},
    {FindingCode::kBackingNameUnsafe, "a zero byte in the name / behind it",
     [] { return FiresAtField(WithBacking(std::string("b\0c", 3)), "backing_file_offset"); },
     [] { return Check(WithBacking("b")); }, Verdict::kClean},
    {FindingCode::kFileNameAbsolute, "a backing file from the root / from here",
     [] { return FiresAtField(WithBacking("/base.qcow2"), "backing_file_offset"); },
     [] { return Check(WithBacking("base.qcow2/")); }, Verdict::kClean},
    {FindingCode::kFileNameAbsolute, "a data file from the root / from here",
     [] { return FiresAtDataFileName("/data.raw"); },
     [] { return Check(WithDataFile("data.raw")); }, Verdict::kClean},
    {FindingCode::kBackingFormatMissing, "no format / a format",
     [] { return FiresAtField(WithBacking("base.qcow2", ""), "backing_file_offset"); },
     [] { return Check(WithBacking("base.qcow2", "raw")); }, Verdict::kClean},
    {FindingCode::kBackingFormatMissing, "no format / an empty name, which is no backing file",
     [] { return FiresAtField(WithBacking("b", ""), "backing_file_offset"); },
     [] {
       BuiltImage image = WithBacking("b", "");
       PokeField(image, "backing_file_size", 0);
       return Check(image);
     },
     Verdict::kClean},
    {FindingCode::kExtensionOverflow, "a byte more than there is / just what there is",
     [] { return FiresAt(WithExtensionOfStatedLength(3977), 112); },
     [] { return Check(WithExtensionOfStatedLength(3976)); }},
    {FindingCode::kExtensionOverflow, "an end marker longer than what there is / just as long",
     [] { return FiresAt(WithEndMarkerOfLength(3977), 112); },
     [] { return Check(WithEndMarkerOfLength(3976)); }},
    {FindingCode::kExtensionDuplicate, "twice one type / two types",
     [] {
       const BuiltImage image = WithExtensions({{0x11111111, {1}}, {0x11111111, {1}}});
       return FiresAt(image, image.extensions[1].offset);
     },
     [] {
       return Check(WithExtensions({{0x11111111, {1}}, {0x11111112, {1}}}));
     },
     Verdict::kClean},
    {FindingCode::kKeptByRepair, "a note / a note that was withdrawn",
     [] {
       return FiresAtExtension(
           WithExtensions(
               {{kExtensionRepairNote, EncodeRepairNote({.orphans = OrphanNote::kGivenUp})}}),
           kExtensionRepairNote);
     },
     [] {
       return Check(WithExtensions(
           {{kExtensionRepairNote, EncodeRepairNote({.orphans = OrphanNote::kVoid})}}));
     },
     Verdict::kClean},
    {FindingCode::kExtensionUnknown, "a note of another version / of this one",
     [] {
       return FiresAtExtension(WithExtensions({{kExtensionRepairNote, {0, 0, 0, 9, 0, 0, 0, 1}}}),
                               kExtensionRepairNote);
     },
     [] {
       return Check(WithExtensions(
           {{kExtensionRepairNote, EncodeRepairNote({.orphans = OrphanNote::kVoid})}}));
     },
     Verdict::kClean},
    {FindingCode::kExtensionUnknown, "an unknown type / a known one",
     [] {
       return FiresAtExtension(WithExtensions({{0x6803f858, {}}}), 0x6803f858);
     },
     [] {
       return Check(WithExtensions({{kExtensionFeatureNames, {}}}));
     },
     Verdict::kClean},
    {FindingCode::kExtensionMalformed, "a format name of 16 bytes / of 15",
     [] {
       return FiresAtExtension(WithBacking("b", std::string(16, 'x')), kExtensionBackingFormat);
     },
     [] { return Check(WithBacking("b", std::string(15, 'x'))); }},
    {FindingCode::kExtensionMalformed, "a format name with a zero byte / with a letter there",
     [] {
       return FiresAtExtension(WithBacking("b", std::string("r\0w", 3)), kExtensionBackingFormat);
     },
     [] { return Check(WithBacking("b", "raw")); }},
    {FindingCode::kExtensionMalformed, "a LUKS header pointer of 15 bytes / of 16",
     [] {
       BuiltImage image = WithLuks();
       Poke32(image.bytes, image.Extension(kExtensionCrypto).offset + 4, 15);
       return FiresAtExtension(image, kExtensionCrypto);
     },
     [] { return Check(WithLuks()); }},
    {FindingCode::kHeaderAreaBytes, "a byte behind the extensions / that byte a backing file name",
     [] {
       BuiltImage image = SmallImage();
       Poke(image.bytes, image.extensions_end, "62");
       return FiresAt(image, image.extensions_end);
     },
     [] { return Check(WithBacking("b")); }, Verdict::kClean},
    {FindingCode::kHeaderAreaBytes,
     "the padding of the header / of a string, which may be anything",
     [] {
       BuiltImage image = SmallImage();
       Poke(image.bytes, 111, "01");
       return FiresAt(image, 111);
     },
     [] {
       BuiltImage image = WithBacking("base", "raw");
       Poke(image.bytes, image.Extension(kExtensionBackingFormat).offset + 8 + 3, "01");
       return Check(image);
     },
     Verdict::kClean},
    {FindingCode::kFeatureTableMalformed, "type 3 / type 2",
     [] { return FiresAtExtension(WithFeatureRow(3, 0), kExtensionFeatureNames); },
     [] { return Check(WithFeatureRow(2, 0)); }, Verdict::kClean},
    {FindingCode::kFeatureTableMalformed, "bit 64 / bit 63",
     [] { return FiresAtExtension(WithFeatureRow(0, 64), kExtensionFeatureNames); },
     [] { return Check(WithFeatureRow(0, 63)); }, Verdict::kClean},
    {FindingCode::kFeatureTableMalformed, "a row of 47 bytes / of 48",
     [] { return FiresAtExtension(WithFeatureRow(0, 0, 47), kExtensionFeatureNames); },
     [] { return Check(WithFeatureRow(0, 0, 48)); }, Verdict::kClean},
    {FindingCode::kEncryptionInvalid, "method 3 / method 1, which has no header",
     [] { return FiresAtField(WithMethod(SmallImage(), 3), "crypt_method"); },
     [] { return Check(WithMethod(SmallImage(), kCryptAes)); }},
    {FindingCode::kEncryptionInvalid, "LUKS without a header / with one",
     [] { return FiresAtField(WithMethod(SmallImage(), kCryptLuks), "crypt_method"); },
     [] { return Check(WithLuks()); }},
    {FindingCode::kEncryptionInvalid, "a LUKS header for AES / for LUKS",
     [] { return FiresAtExtension(WithMethod(WithLuks(), kCryptAes), kExtensionCrypto); },
     [] { return Check(WithLuks()); }},
    {FindingCode::kLuksHeaderInvalid, "a bit of its magic / of a passphrase's salt",
     [] {
       BuiltImage image = WithLuks();
       FlipBit(image.bytes, image.luks_header.offset + 5, 0);
       return FiresAt(image, image.luks_header.offset);
     },
     [] {
       BuiltImage image = WithLuks();
       FlipBit(image.bytes, image.luks_header.offset + 216, 0);
       return Check(image);
     }},
    {FindingCode::kLuksHeaderInvalid, "a sector too little for its payload offset / enough",
     [] {
       const uint64_t length = WithLuks().luks_header.length;
       return FiresAt(WithLuksRegion(LuksHeaderOffset(), length - 512), LuksHeaderOffset());
     },
     [] { return Check(WithLuksRegion(LuksHeaderOffset(), WithLuks().luks_header.length)); }},
    {FindingCode::kLuksHeaderInvalid, "a key slot on the sector of the one before / behind it",
     [] { return FiresAt(WithLuksWord(kLuksSlot2Material, 16), LuksHeaderOffset()); },
     [] { return Check(WithLuksWord(kLuksSlot2Material, 17)); }},
    {FindingCode::kLuksHeaderInvalid, "a key slot on the header's last sector / behind it",
     [] { return FiresAt(WithLuksWord(kLuksSlot2Material, 1), LuksHeaderOffset()); },
     [] { return Check(WithLuksWord(kLuksSlot2Material, 2)); }},
    {FindingCode::kLuksHeaderInvalid,
     "a key slot that ends a sector behind the payload's start / at it",
     [] { return FiresAt(WithLuksWord(kLuksSlot2Material, 72), LuksHeaderOffset()); },
     [] { return Check(WithLuksWord(kLuksSlot2Material, 71)); }},
    {FindingCode::kLuksHeaderInvalid, "no iterations in a slot that is on / in one that is off",
     [] { return FiresAt(WithLuksWord(kLuksSlot0 + 4, 0), LuksHeaderOffset()); },
     [] { return Check(WithLuksWord(kLuksSlot1 + 4, 0)); }},
    {FindingCode::kLuksHeaderInvalid, "no stripes / one",
     [] { return FiresAt(WithLuksWord(kLuksSlot1 + 44, 0), LuksHeaderOffset()); },
     [] { return Check(WithLuksWord(kLuksSlot1 + 44, 1)); }},
    {FindingCode::kLuksHeaderInvalid, "a key of no bytes / of one",
     [] { return FiresAt(WithLuksWord(kLuksKeyBytes, 0), LuksHeaderOffset()); },
     [] { return Check(WithLuksWord(kLuksKeyBytes, 1)); }},
    {FindingCode::kLuksHeaderInvalid, "no iterations of the digest / one",
     [] { return FiresAt(WithLuksWord(kLuksDigestIterations, 0), LuksHeaderOffset()); },
     [] { return Check(WithLuksWord(kLuksDigestIterations, 1)); }},
    {FindingCode::kLuksHeaderInvalid, "misaligned / aligned",
     [] {
       const uint64_t offset = LuksHeaderOffset() + 512;
       return FiresAt(WithLuksRegion(offset, WithLuks().luks_header.length), offset);
     },
     [] { return Check(WithLuks()); }},
    {FindingCode::kLuksHeaderInvalid, "a byte over the end of the file / up to it",
     [] {
       const uint64_t to_end = WithLuks().bytes.size() - LuksHeaderOffset();
       return FiresAt(WithLuksRegion(LuksHeaderOffset(), to_end + 1), LuksHeaderOffset());
     },
     [] {
       const uint64_t to_end = WithLuks().bytes.size() - LuksHeaderOffset();
       return Check(WithLuksRegion(LuksHeaderOffset(), to_end));
     }},
    {FindingCode::kDataFileNameUnsafe, "../data / ..data",
     [] { return FiresAtDataFileName("../data.raw"); },
     [] { return Check(WithDataFile("..data.raw")); }, Verdict::kClean},
    {FindingCode::kDataFileNameUnsafe, "a zero byte in the name / behind it",
     [] { return FiresAtDataFileName(std::string("b\0c", 3)); },
     [] { return Check(WithDataFile("b")); }, Verdict::kClean},
    {FindingCode::kDataFileNameUnsafe, "json: / a file called json",
     [] { return FiresAtDataFileName("json:{}"); }, [] { return Check(WithDataFile("json")); },
     Verdict::kClean},
    {FindingCode::kDataFileFlagsInvalid, "raw without a data file / with one",
     [] { return FiresAtField(WithRawFlag(SmallImage()), "autoclear_features"); },
     [] { return Check(WithRawFlag(WithDataFile("data.raw"))); }},
    {FindingCode::kDataFileFlagsInvalid, "a backing file and raw data / and data that is not raw",
     [] { return FiresAtField(WithRawFlag(WithDataFileAndBacking()), "backing_file_offset"); },
     [] { return Check(WithDataFileAndBacking()); }},
    {FindingCode::kDataFileFlagsInvalid, "a name without the feature bit / the bit without a name",
     [] {
       return FiresAtExtension(WithExtensions({{kExtensionDataFile, BytesOf("data.raw")}}),
                               kExtensionDataFile);
     },
     [] { return Check(WithDataFile("")); }},
    {FindingCode::kDataFileSnapshots, "in an image with a data file / without one",
     [] { return FiresAtField(WithForgedSnapshot(WithDataFile("data.raw")), "nb_snapshots"); },
     [] { return Check(WithForgedSnapshot(SmallImage())); }},
};

}  // namespace

absl::Span<const FindingCase> ExtensionCases() { return kCases; }

}  // namespace qcow2check::testing

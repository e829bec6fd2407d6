// Cases for single L2 entries.
#include "common/table_entry.h"
#include "tests/damage.h"
#include "tests/finding_cases.h"

namespace qcow2check::testing {
namespace {

constexpr uint64_t kGuest = 0x3000;  // in the small image: data at 0x8000

BuiltImage WithEntryBits(uint64_t bits, int version = 3) {
  ImageOptions options = SmallOptions();
  options.version = version;
  BuiltImage image = BuildImage(options);
  SetL2Entry(image, kGuest, GetL2Entry(image, kGuest) ^ bits);
  return image;
}

Fired FiresAtEntry(const BuiltImage& image, uint64_t guest_offset = kGuest) {
  return FiresAt(image, image.L2EntryOffset(guest_offset));
}

// The entry points behind the end of the file; or, with a byte more in the file, to its last byte.
BuiltImage WithEntryAtEnd(uint64_t flags, uint64_t extra_bytes) {
  BuiltImage image = SmallImage();
  SetL2Entry(image, kGuest, image.bytes.size() | flags);
  Extend(image.bytes, image.bytes.size() + extra_bytes);
  return image;
}

BuiltImage WithCompressedAtEnd(uint64_t extra_bytes) {
  BuiltImage image = SmallImage();
  SetL2Entry(image, kGuest, EncodeCompressed({image.bytes.size(), 512}, 12));
  Extend(image.bytes, image.bytes.size() + extra_bytes);
  return image;
}

ImageOptions WithDataFile() {
  ImageOptions options = SmallOptions();
  options.data_file = DataFileOptions{};
  return options;
}

// Clusters 0 to 3 with data in all 32 subclusters, 4 compressed.
BuiltImage Extended() {
  return BuildImage({.cluster_bits = 14,
                     .extended_l2 = true,
                     .steps = {WriteClusters{.count = 4}, WriteCompressed{.first = 4}}});
}
constexpr uint64_t kExtendedCompressed = uint64_t{4} << 14;
constexpr uint64_t kExtendedUnallocated = uint64_t{5} << 14;

BuiltImage WithBitmap(uint64_t guest_offset, uint64_t bitmap) {
  BuiltImage image = Extended();
  SetL2Bitmap(image, guest_offset, bitmap);
  return image;
}

BuiltImage WithVirtualSize(uint64_t size) {
  BuiltImage image = SmallImage();
  PokeField(image, "size", size);
  return image;
}

BuiltImage Compressed() {
  ImageOptions options = SmallOptions();
  options.steps = {WriteCompressed{.count = 4}};
  return BuildImage(options);
}

BuiltImage WithSnapshot() {
  ImageOptions options = SmallOptions();
  options.steps = {WriteClusters{.count = 8}, TakeSnapshot{}};
  return BuildImage(options);
}

constexpr FindingCase kCases[] = {
    {FindingCode::kL2EntryReservedBits, "bit 1 / bit 0, the zero flag",
     [] { return FiresAtEntry(WithEntryBits(2)); }, [] { return Check(WithEntryBits(1)); }},
    {FindingCode::kL2EntryReservedBits, "bit 61 / bit 62, compressed",
     [] { return FiresAtEntry(WithEntryBits(uint64_t{1} << 61)); },
     [] { return Check(WithEntryBits(uint64_t{1} << 62)); }},
    {FindingCode::kDataMisaligned, "data / reads as zeros",
     [] { return FiresAtEntry(WithEntryBits(0x200)); }, [] { return Check(WithEntryBits(0x201)); }},
    {FindingCode::kZeroClusterMisaligned, "reads as zeros / data",
     [] { return FiresAtEntry(WithEntryBits(0x201)); }, [] { return Check(WithEntryBits(0x200)); }},
    {FindingCode::kDataPastEnd, "at the end of the file / one byte before it",
     [] { return FiresAtEntry(WithEntryAtEnd(kCopiedBit, 0)); },
     [] { return Check(WithEntryAtEnd(kCopiedBit, 1)); }},
    {FindingCode::kDataPastEnd, "data / reads as zeros",
     [] { return FiresAtEntry(WithEntryAtEnd(kCopiedBit, 0)); },
     [] { return Check(WithEntryAtEnd(kCopiedBit | kZeroBit, 0)); }},
    {FindingCode::kZeroClusterPastEnd, "at the end of the file / one byte before it",
     [] { return FiresAtEntry(WithEntryAtEnd(kCopiedBit | kZeroBit, 0)); },
     [] { return Check(WithEntryAtEnd(kCopiedBit | kZeroBit, 1)); }},
    // Row M2: qemu-img counts what lies in the first cluster behind the end as there.
    {FindingCode::kCompressedPastEnd, "at the end of the file / one byte before it",
     [] { return FiresAtEntry(WithCompressedAtEnd(0)); },
     [] { return Check(WithCompressedAtEnd(1)); }},
    {FindingCode::kCompressedCopied, "on a compressed cluster / on all others",
     [] {
       BuiltImage image = Compressed();
       SetL2Entry(image, 0, GetL2Entry(image, 0) | kCopiedBit);
       return FiresAtEntry(image, 0);
     },
     [] { return Check(SmallImage()); }},
    {FindingCode::kCompressedInDataFile, "with a data file / without one",
     [] {
       BuiltImage image = BuildImage(WithDataFile());
       SetL2Entry(image, kGuest, EncodeCompressed({0x1000, 512}, 12));
       return FiresAtEntry(image);
     },
     [] { return Check(Compressed()); }},
    {FindingCode::kCompressedSubclusters, "a bitmap / none",
     [] {
       return FiresAtEntry(WithBitmap(kExtendedCompressed, uint64_t{1} << 63), kExtendedCompressed);
     },
     [] { return Check(WithBitmap(kExtendedCompressed, 0)); }},
    {FindingCode::kSubclusterConflict, "subcluster 3 twice / 3 and 4",
     [] { return FiresAtEntry(WithBitmap(0, uint64_t{8} << 32 | 8), 0); },
     [] { return Check(WithBitmap(0, uint64_t{16} << 32 | 8)); }},
    {FindingCode::kSubclusterWithoutCluster, "allocated / reads as zeros",
     [] { return FiresAtEntry(WithBitmap(kExtendedUnallocated, 1), kExtendedUnallocated); },
     [] { return Check(WithBitmap(kExtendedUnallocated, uint64_t{1} << 32)); }},
    // Row M10.
    {FindingCode::kZeroFlagNotAllowed, "version 2 / version 3",
     [] { return FiresAtEntry(WithEntryBits(kZeroBit, 2)); },
     [] { return Check(WithEntryBits(kZeroBit, 3)); }},
    // Row M9.
    {FindingCode::kStrayL2Flag, "COPIED alone / in a data file, where it is offset 0",
     [] {
       BuiltImage image = SmallImage();
       SetL2Entry(image, 0x10000, kCopiedBit);
       return FiresAtEntry(image, 0x10000);
     },
     [] {
       const BuiltImage image = BuildImage(WithDataFile());
       return GetL2Entry(image, 0) == kCopiedBit ? Check(image) : Report{};
     },
     Verdict::kClean},
    {FindingCode::kStrayL2Flag, "COPIED zeros without an offset / in a data file, at offset 0",
     [] {
       BuiltImage image = SmallImage();
       SetL2Entry(image, 0x10000, kCopiedBit | kZeroBit);
       return FiresAtEntry(image, 0x10000);
     },
     [] {
       BuiltImage image = BuildImage(WithDataFile());
       SetL2Entry(image, 0, kCopiedBit | kZeroBit);
       return Check(image);
     },
     Verdict::kClean},
    // Row M10.
    {FindingCode::kStrayL2Flag, "bit 0 of an extended entry / of a standard entry",
     [] {
       BuiltImage image = Extended();
       SetL2Entry(image, 0, GetL2Entry(image, 0) | kZeroBit);
       return FiresAtEntry(image, 0);
     },
     [] { return Check(WithEntryBits(kZeroBit)); }, Verdict::kClean},
    {FindingCode::kCopiedWrong, "missing / there",
     [] { return FiresAtEntry(WithEntryBits(kCopiedBit)); }, [] { return Check(SmallImage()); }},
    {FindingCode::kCopiedWrong,
     "set in the active L1 table / in a snapshot's, where it says nothing",
     [] {
       BuiltImage image = WithSnapshot();
       FlipBit64(image.bytes, image.l1.EntryOffset(0), 63);
       return FiresAt(image, image.l1.EntryOffset(0));
     },
     [] {
       BuiltImage image = WithSnapshot();
       FlipBit64(image.bytes, image.snapshots[0].l1.EntryOffset(0), 63);
       return Check(image);
     }},
    {FindingCode::kCopiedWrong, "missing for data in a data file / there",
     [] {
       BuiltImage image = BuildImage(WithDataFile());
       FlipBit64(image.bytes, image.L2EntryOffset(kGuest), 63);
       return FiresAtEntry(image);
     },
     [] { return Check(BuildImage(WithDataFile())); }},
    // Row M12.
    {FindingCode::kDataPastVirtualEnd, "starts at the end of the disk / a sector before it",
     [] { return FiresAtEntry(WithVirtualSize(0x7000), 0x7000); },
     [] { return Check(WithVirtualSize(0x7200)); }, Verdict::kClean},
};

}  // namespace

absl::Span<const FindingCase> L2EntryCases() { return kCases; }

}  // namespace qcow2check::testing

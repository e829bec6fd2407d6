// Cases for header fields and feature bits.
#include "common/limits.h"
#include "tests/damage.h"
#include "tests/finding_cases.h"

namespace qcow2check::testing {
namespace {

// The small image with one header field changed.
BuiltImage WithField(absl::string_view field, uint64_t value) {
  BuiltImage image = SmallImage();
  PokeField(image, field, value);
  return image;
}

BuiltImage WithHeaderLength(uint32_t built, uint64_t stated) {
  ImageOptions options = SmallOptions();
  options.header_length = built;
  BuiltImage image = BuildImage(options);
  PokeField(image, "header_length", stated);
  return image;
}

BuiltImage CutTo(int version, uint64_t size) {
  ImageOptions options = SmallOptions();
  options.version = version;
  BuiltImage image = BuildImage(options);
  Truncate(image.bytes, size);
  return image;
}

BuiltImage OfClusterBits(int cluster_bits, bool extended_l2) {
  return BuildImage({.cluster_bits = cluster_bits,
                     .extended_l2 = extended_l2,
                     .steps = {WriteClusters{.count = 4}}});
}

// A file whose first cluster was zeroed; QEMU's layout behind it.
BuiltImage WithoutHeader() {
  BuiltImage image = SmallImage();
  ZeroCluster(image, 0);
  return image;
}

BuiltImage WithBackingNameAt(uint64_t offset, uint64_t length) {
  ImageOptions options = SmallOptions();
  options.backing = BackingOptions{};
  BuiltImage image = BuildImage(options);
  PokeField(image, "backing_file_offset", offset);
  PokeField(image, "backing_file_size", length);
  return image;
}

constexpr FindingCase kCases[] = {
    {FindingCode::kNotQcow2, "one bit of the magic, and no tables behind it / none",
     [] {
       BuiltImage image = SmallImage();
       FlipBit(image.bytes, 3, 0);
       ZeroCluster(image, image.refcount_table.offset);
       return FiresAt(image, 0);
     },
     [] { return Check(SmallImage()); }, Verdict::kNotQcow2},
    {FindingCode::kNotQcow2, "version 1 / version 2",
     [] { return FiresAt(WithField("version", 1), 0); },
     [] { return Check(WithField("version", 2)); }, Verdict::kNotQcow2},
    {FindingCode::kHeaderLost, "the refcount table behind it makes sense / is misaligned",
     [] { return FiresAt(WithoutHeader(), 0); },
     [] {
       BuiltImage image = WithoutHeader();
       FlipBit64(image.bytes, image.refcount_table.offset, 9);
       return Check(image);
     }},
    {FindingCode::kHeaderTruncated, "103 bytes / 104 bytes of version 3",
     [] { return FiresAt(CutTo(3, 103), 0); }, [] { return Check(CutTo(3, 104)); }},
    {FindingCode::kHeaderTruncated, "71 bytes / 72 bytes of version 2",
     [] { return FiresAt(CutTo(2, 71), 0); }, [] { return Check(CutTo(2, 72)); }},
    {FindingCode::kUnsupportedVersion, "version 4 / version 3",
     [] { return FiresAtField(WithField("version", 4), "version"); },
     [] { return Check(SmallImage()); }, Verdict::kUnsupported},
    {FindingCode::kClusterBitsInvalid, "8 / 9",
     [] {
       BuiltImage image = OfClusterBits(9, false);
       PokeField(image, "cluster_bits", 8);
       return FiresAtField(image, "cluster_bits");
     },
     [] { return Check(OfClusterBits(9, false)); }},
    {FindingCode::kClusterBitsInvalid, "31 / 30",
     [] { return FiresAtField(WithField("cluster_bits", kMaxClusterBits + 1), "cluster_bits"); },
     [] { return Check(WithField("cluster_bits", kMaxClusterBits)); }},
    {FindingCode::kClusterBitsLarge, "22 / 21",
     [] {
       return FiresAtField(WithField("cluster_bits", kQemuMaxClusterBits + 1), "cluster_bits");
     },
     [] { return Check(WithField("cluster_bits", kQemuMaxClusterBits)); }},
    // Row M19 of what qemu-img misses: it takes this for three leaks.
    {FindingCode::kClusterBitsSuspect, "15 instead of 16 / 16, a refcount and the file's end wrong",
     [] {
       BuiltImage image = OfClusterBits(16, false);
       PokeField(image, "cluster_bits", 15);
       return FiresAtField(image, "cluster_bits");
     },
     [] {
       BuiltImage image = OfClusterBits(16, false);
       SetRefcount(image, image.ClusterOf(image.At(0).host_offset), 2);
       Extend(image.bytes, image.bytes.size() + image.cluster_size());
       return Check(image);
     }},
    {FindingCode::kRefcountOrderInvalid, "7 / 6",
     [] { return FiresAtField(WithField("refcount_order", 7), "refcount_order"); },
     [] {
       ImageOptions options = SmallOptions();
       options.refcount_order = 6;
       return Check(BuildImage(options));
     }},
    {FindingCode::kHeaderLengthInvalid, "103 / 104",
     [] { return FiresAtField(WithHeaderLength(104, 103), "header_length"); },
     [] { return Check(WithHeaderLength(104, 104)); }},
    {FindingCode::kHeaderLengthInvalid, "a cluster and 8 bytes / a cluster",
     [] { return FiresAtField(WithHeaderLength(104, 4104), "header_length"); },
     [] { return Check(WithHeaderLength(104, 4096)); }},
    {FindingCode::kHeaderLengthUnaligned, "108 / 112",
     [] { return FiresAtField(WithHeaderLength(112, 108), "header_length"); },
     [] { return Check(WithHeaderLength(112, 112)); }, Verdict::kClean},
    {FindingCode::kUnknownIncompatibleFeature, "bit 5 / bit 4",
     [] {
       BuiltImage image = OfClusterBits(14, true);
       PokeField(image, "incompatible_features", kExtendedL2 | uint64_t{1} << 5);
       return FiresAtField(image, "incompatible_features");
     },
     [] { return Check(OfClusterBits(14, true)); }, Verdict::kUnsupported},
    {FindingCode::kUnknownFeature, "compatible bit 1 / bit 0",
     [] { return FiresAtField(WithField("compatible_features", 2), "compatible_features"); },
     [] { return Check(WithField("compatible_features", 1)); }, Verdict::kClean},
    {FindingCode::kUnknownFeature, "autoclear bit 2 / bit 1",
     [] { return FiresAtField(WithField("autoclear_features", 4), "autoclear_features"); },
     [] { return Check(WithField("autoclear_features", 2)); }, Verdict::kClean},
    // Row M11: qemu-img says nothing about either bit on an image that is otherwise right.
    {FindingCode::kDirtyBit, "dirty / lazy refcounts, but not dirty",
     [] {
       return FiresAtField(WithField("incompatible_features", kDirty), "incompatible_features");
     },
     [] { return Check(WithField("compatible_features", kLazyRefcounts)); }, Verdict::kClean},
    {FindingCode::kCorruptBit, "corrupt / dirty",
     [] {
       return FiresAtField(WithField("incompatible_features", kCorrupt), "incompatible_features");
     },
     [] { return Check(WithField("incompatible_features", kDirty)); }},
    {FindingCode::kVirtualSizeUnaligned, "a byte less than whole sectors / a sector less",
     [] { return FiresAtField(WithField("size", (4u << 20) - 1), "size"); },
     [] { return Check(WithField("size", (4u << 20) - 512)); }, Verdict::kClean},
    {FindingCode::kBackingNameInvalid, "1024 bytes / 1023 bytes",
     [] { return FiresAtField(WithBackingNameAt(0x200, 1024), "backing_file_offset"); },
     [] { return Check(WithBackingNameAt(0x200, 1023)); }},
    {FindingCode::kBackingNameInvalid, "a byte over the end of the cluster / up to it",
     [] { return FiresAtField(WithBackingNameAt(4096 - 99, 100), "backing_file_offset"); },
     [] { return Check(WithBackingNameAt(4096 - 100, 100)); }},
    {FindingCode::kBackingNameOverlap, "in the last byte of the header / behind it",
     [] {
       return FiresAtField(WithBackingNameAt(kHeaderBytesKnown - 1, 4), "backing_file_offset");
     },
     [] { return Check(WithBackingNameAt(kHeaderBytesKnown, 4)); }},
    {FindingCode::kBackingNameOverlap, "in the last byte of the version 2 header / behind it",
     [] {
       BuiltImage image = WithBackingNameAt(kHeaderBytesV2 - 1, 4);
       PokeField(image, "version", 2);
       return FiresAtField(image, "backing_file_offset");
     },
     [] {
       BuiltImage image = WithBackingNameAt(kHeaderBytesV2, 4);
       PokeField(image, "version", 2);
       return Check(image);
     }},
    {FindingCode::kRefcountOrderInvalid, "255 / version 2, which has no such field",
     [] { return FiresAtField(WithField("refcount_order", 255), "refcount_order"); },
     [] {
       BuiltImage image = WithField("refcount_order", 255);
       PokeField(image, "version", 2);
       return Check(image);
     }},
    {FindingCode::kCompressionTypeInvalid, "type 2 / type 1",
     [] {
       ImageOptions options = SmallOptions();
       options.compression_type = kZstd;
       BuiltImage image = BuildImage(options);
       PokeField(image, "compression_type", 2);
       return FiresAtField(image, "compression_type");
     },
     [] {
       ImageOptions options = SmallOptions();
       options.compression_type = kZstd;
       return Check(BuildImage(options));
     }},
    {FindingCode::kCompressionTypeInvalid, "deflate and its bit / deflate",
     [] {
       return FiresAtField(WithField("incompatible_features", kCompressionType),
                           "compression_type");
     },
     [] { return Check(SmallImage()); }},
    {FindingCode::kCompressionTypeInvalid, "zstd without its bit / a header too short to say it",
     [] { return FiresAtField(WithField("compression_type", kZstd), "compression_type"); },
     [] {
       BuiltImage image = WithHeaderLength(104, 104);
       PokeField(image, "compression_type", kZstd);
       return Check(image);
     }},
    {FindingCode::kExtendedL2SmallClusters, "8 KiB / 16 KiB",
     [] {
       BuiltImage image = OfClusterBits(13, false);
       PokeField(image, "incompatible_features", kExtendedL2);
       return FiresAtField(image, "cluster_bits");
     },
     [] { return Check(OfClusterBits(14, true)); }},
};

}  // namespace

absl::Span<const FindingCase> HeaderCases() { return kCases; }

}  // namespace qcow2check::testing

// Cases for what lies outside the tables: compressed data, data files, backing chains, and what
// keeps a check from seeing everything.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "checker/chain.h"
#include "checker/second_look.h"
#include "common/check.h"
#include "common/limits.h"
#include "common/open_image.h"
#include "common/posix_file.h"
#include "common/table_entry.h"
#include "tests/damage.h"
#include "tests/fault_file.h"
#include "tests/finding_cases.h"
#include "tests/program.h"

namespace qcow2check::testing {
namespace {

// --- Data ---

const CheckOptions kVerifyData = {.verify_data = true};

// The file ends with the stream of a compressed cluster.
BuiltImage EndingWithCompressed(CompressionType type) {
  ImageOptions options = SmallOptions();
  options.compression_type = type;
  options.steps = {WriteCompressed{.random_bytes = 2000}};
  options.end_at_last_byte = true;
  return BuildImage(options);
}

// The first bytes of the stream are no stream: those behind them say what the data is, not how
// long it is, and a deflate stream has no checksum.
BuiltImage WithBrokenStream(CompressionType type) {
  BuiltImage image = EndingWithCompressed(type);
  Fill(image.bytes, image.At(0).host_offset, 4, 0xff);
  return image;
}

// All of the stream is there, with something else behind it.
BuiltImage WithBytesBehindStream(CompressionType type) {
  BuiltImage image = EndingWithCompressed(type);
  Extend(image.bytes, image.bytes.size() + 64, 0xff);
  return image;
}

BuiltImage WithTwoCompressed() {
  ImageOptions options = SmallOptions();
  options.steps = {WriteCompressed{.count = 2, .random_bytes = 700}};
  return BuildImage(options);
}

BuiltImage WithDataFile(bool extended_l2 = false) {
  return BuildImage({.cluster_bits = 14,
                     .virtual_size = 4u << 20,
                     .extended_l2 = extended_l2,
                     .data_file = DataFileOptions{},
                     .steps = {WriteClusters{.count = 8}}});
}
constexpr uint64_t kDataFileCluster = 1 << 14;

CheckOptions WithDataFileOf(uint64_t size) {
  return {.verify_data = true, .data_file_opened = true, .data_file_size_bytes = size};
}

// A compressed cluster at the start of its host cluster that claims this many bytes.
BuiltImage WithCompressedClaim(uint64_t bytes) {
  ImageOptions options = SmallOptions();
  options.steps = {WriteCompressed{.first = 0}, WriteClusters{.first = 1, .count = 2}};
  BuiltImage image = BuildImage(options);
  SetL2Entry(image, 0, EncodeCompressed({image.At(0).host_offset, bytes}, 12));
  return image;
}

constexpr FindingCase kDataCases[] = {
    {FindingCode::kCompressedBroken, "bytes of a deflate stream / bytes behind it",
     [] {
       const BuiltImage image = WithBrokenStream(kDeflate);
       return FiresAt(image, image.At(0).host_offset, kVerifyData);
     },
     [] { return Check(WithBytesBehindStream(kDeflate), kVerifyData); }},
    {FindingCode::kCompressedBroken, "bytes of a zstd frame / bytes behind it",
     [] {
       const BuiltImage image = WithBrokenStream(kZstd);
       return FiresAt(image, image.At(0).host_offset, kVerifyData);
     },
     [] { return Check(WithBytesBehindStream(kZstd), kVerifyData); }},
    // Row M6: a stream cut by the size in its entry.
    {FindingCode::kCompressedBroken, "a sector less in the entry / all of them",
     [] {
       BuiltImage image = EndingWithCompressed(kDeflate);
       const BuiltCluster& cluster = image.At(0);
       SetL2Entry(image, 0, EncodeCompressed({cluster.host_offset, cluster.length - 512}, 12));
       return FiresAt(image, cluster.host_offset, kVerifyData);
     },
     [] { return Check(EndingWithCompressed(kDeflate), kVerifyData); }},
    // Row M7.
    {FindingCode::kCompressedTooLong, "sectors of the next cluster / all sectors of its own",
     [] {
       const BuiltImage image = WithCompressedClaim(4096 + 512);
       return FiresAt(image, image.At(0).host_offset, kVerifyData);
     },
     [] { return Check(WithCompressedClaim(4096), kVerifyData); }},
    {FindingCode::kCompressedOverlap, "the same bytes / the next bytes of the same sector",
     [] {
       BuiltImage image = WithTwoCompressed();
       SetL2Entry(image, 0x1000, GetL2Entry(image, 0));
       return FiresAt(image, image.At(0).host_offset, kVerifyData);
     },
     [] { return Check(WithTwoCompressed(), kVerifyData); }},
    {FindingCode::kDataFileMissing, "it cannot be opened / it can",
     [] {
       CheckOptions options = {.verify_data = true, .data_file_error = "no such file"};
       return Fired{Check(WithDataFile(), options), std::nullopt};
     },
     [] { return Check(WithDataFile(), WithDataFileOf(8 * kDataFileCluster)); },
     Verdict::kIncomplete},
    // Row M8.
    {FindingCode::kDataFileTooShort, "it ends before a cluster / in its first byte",
     [] {
       const BuiltImage image = WithDataFile();
       return FiresAt(image, image.L2EntryOffset(7 * kDataFileCluster),
                      WithDataFileOf(7 * kDataFileCluster));
     },
     [] { return Check(WithDataFile(), WithDataFileOf(7 * kDataFileCluster + 1)); }},
    {FindingCode::kDataFileOffsetMismatch, "a cluster off / at its own offset",
     [] {
       BuiltImage image = WithDataFile();
       SetL2Entry(image, 0, kDataFileCluster | kCopiedBit);
       return FiresAt(image, image.L2EntryOffset(0), kVerifyData);
     },
     [] { return Check(WithDataFile(), kVerifyData); }},
    // QEMU refuses to read such a cluster although it needs no data.
    {FindingCode::kDataFileOffsetMismatch, "preallocated zeros a cluster off / zeros without place",
     [] {
       BuiltImage image = WithDataFile();
       SetL2Entry(image, 0, kDataFileCluster | kCopiedBit | kZeroBit);
       return FiresAt(image, image.L2EntryOffset(0), kVerifyData);
     },
     [] {
       BuiltImage image = WithDataFile();
       SetL2Entry(image, 0, kZeroBit);
       return Check(image, kVerifyData);
     }},
};

// --- The backing chain ---

BuiltImage Overlay(std::string backing_file, std::string backing_format = "qcow2") {
  ImageOptions options = SmallOptions();
  options.backing = BackingOptions{std::move(backing_file), std::move(backing_format)};
  return BuildImage(options);
}

// The report on `top` with the chain that its name leads to; `base` lies beside it.
Report CheckWithChain(const BuiltImage& top, absl::Span<const uint8_t> base) {
  const TempDir directory;
  const std::string path = directory.Write("top.qcow2", top.bytes);
  directory.Write("base.qcow2", base);
  const absl::StatusOr<OpenedImage> image = OpenToRead(path);
  QCOW2CHECK_CHECK(image.ok());
  Report report = CheckImage(*image->file, {});
  CheckChain(path, image->id, {}, report);
  return report;
}

Fired FiresInChain(const BuiltImage& top, absl::Span<const uint8_t> base) {
  return {CheckWithChain(top, base), std::nullopt};
}

std::vector<uint8_t> RawBase() { return std::vector<uint8_t>(4u << 20); }

BuiltImage BaseOfSize(uint64_t size) {
  ImageOptions options = SmallOptions();
  options.virtual_size = size;
  return BuildImage(options);
}

BuiltImage BaseWithRefcount(uint64_t value) {
  BuiltImage image = SmallImage();
  SetL2Entry(image, 0, image.At(0).host_offset | (value == 1 ? kCopiedBit : 0));
  SetRefcount(image, image.ClusterOf(image.At(0).host_offset), value);
  return image;
}

constexpr FindingCase kChainCases[] = {
    {FindingCode::kChainMissing, "no such file / it is there",
     [] { return FiresInChain(Overlay("bare.qcow2"), SmallImage().bytes); },
     [] { return CheckWithChain(Overlay("base.qcow2"), SmallImage().bytes); },
     Verdict::kIncomplete},
    {FindingCode::kChainCycle, "it backs itself / a copy of itself without a backing file",
     [] { return FiresInChain(Overlay("top.qcow2"), SmallImage().bytes); },
     [] { return CheckWithChain(Overlay("base.qcow2"), SmallImage().bytes); }},
    {FindingCode::kChainCycle, "the file below leads back up / ends the chain",
     [] { return FiresInChain(Overlay("base.qcow2"), Overlay("top.qcow2").bytes); },
     [] { return CheckWithChain(Overlay("base.qcow2"), SmallImage().bytes); }},
    {FindingCode::kChainWrongFormat, "raw recorded as qcow2 / as raw",
     [] { return FiresInChain(Overlay("base.qcow2", "qcow2"), RawBase()); },
     [] { return CheckWithChain(Overlay("base.qcow2", "raw"), RawBase()); }},
    {FindingCode::kChainWrongFormat, "a format that does not exist / raw",
     [] { return FiresInChain(Overlay("base.qcow2", "foo!!"), RawBase()); },
     [] { return CheckWithChain(Overlay("base.qcow2", "raw"), RawBase()); }},
    {FindingCode::kChainSmaller, "a sector smaller / as large",
     [] { return FiresInChain(Overlay("base.qcow2"), BaseOfSize((4u << 20) - 512).bytes); },
     [] { return CheckWithChain(Overlay("base.qcow2"), BaseOfSize(4u << 20).bytes); },
     Verdict::kClean},
    // Row M15.
    {FindingCode::kChainLayerBad, "a refcount too low / too high",
     [] { return FiresInChain(Overlay("base.qcow2"), BaseWithRefcount(0).bytes); },
     [] { return CheckWithChain(Overlay("base.qcow2"), BaseWithRefcount(2).bytes); }},
};

// --- What cannot be seen ---

Report CheckWithBadSector(uint64_t offset) {
  FaultFile file(SmallImage().bytes);
  file.Break(offset, 512);
  return CheckImage(file, {});
}

Report CheckClaiming(uint64_t clusters) {
  FaultFile file(BuildImage({.cluster_bits = 9, .steps = {WriteClusters{}}}).bytes);
  file.ClaimSize(clusters * 512);
  return CheckImage(file, {});
}

Report CheckToldToStop(bool stop) {
  Progress progress;
  progress.stop = stop;
  return Check(SmallImage(), {.progress = &progress});
}

// Many bitmaps whose tables are one and the same stretch of 2^20 bytes behind everything else.
Report CheckOverlappingTables(uint64_t bitmaps) {
  constexpr uint64_t kTableBytes = 1 << 20;
  ImageOptions options = SmallOptions();
  for (uint64_t i = 0; i < bitmaps; ++i) {
    options.bitmaps.push_back({.name = std::to_string(i), .in_use = true});
  }
  BuiltImage image = BuildImage(options);
  const uint64_t table = image.bytes.size();
  Extend(image.bytes, table + kTableBytes);
  for (const BuiltBitmap& bitmap : image.bitmaps) {
    Poke64(image.bytes, bitmap.entry_offset, table);
    Poke32(image.bytes, bitmap.entry_offset + 8, kTableBytes / 8);
  }
  return Check(image);
}

// What CheckOverlappingTables may spend, in tables: 2^22 entries, and one for each two bytes of a
// file between 1 and 2 MiB.
constexpr uint64_t kAffordableTables = 36;

// The check of an image in which, before each look, `damage` is done to a fresh copy.
Report CheckWhileChanging(void (*damage)(BuiltImage& image, int look)) {
  const TempDir directory;
  int look = 0;
  const OpenImage open = [&] {
    BuiltImage image = SmallImage();
    damage(image, look++);
    return PosixFile::Open(directory.Write("image.qcow2", image.bytes));
  };
  return CheckChangingImage(open, {});
}

constexpr FindingCase kCoverageCases[] = {
    {FindingCode::kUnreadable, "a sector of the L2 table / of a data cluster",
     [] {
       return Fired{CheckWithBadSector(SmallImage().L2At(0).host_offset + 512),
                    SmallImage().L2At(0).host_offset + 512};
     },
     [] { return CheckWithBadSector(SmallImage().At(0).host_offset); }, Verdict::kIncomplete},
    // Not "no qcow2 image": what it is cannot be told.
    {FindingCode::kUnreadable, "the header / a data cluster",
     [] {
       return Fired{CheckWithBadSector(0), 0};
     },
     [] { return CheckWithBadSector(SmallImage().bytes.size() - 512); }, Verdict::kIncomplete},
    {FindingCode::kLimitReached, "a cluster more than we handle / just as many",
     [] {
       return Fired{CheckClaiming(kMaxFileClusters + 1), std::nullopt};
     },
     [] { return CheckClaiming(kMaxFileClusters); }, Verdict::kLimitExceeded},
    {FindingCode::kLimitReached, "more overlapping tables than we walk / as many",
     [] {
       return Fired{CheckOverlappingTables(kAffordableTables + 1), std::nullopt};
     },
     [] { return CheckOverlappingTables(kAffordableTables); }, Verdict::kLimitExceeded},
    {FindingCode::kInterrupted, "told to stop before it began / not told",
     [] {
       return Fired{CheckToldToStop(true), std::nullopt};
     },
     [] { return CheckToldToStop(false); }, Verdict::kIncomplete},
    {FindingCode::kImageChanging, "other damage at every look / the same damage",
     [] {
       return Fired{CheckWhileChanging([](BuiltImage& image, int look) {
                      SetRefcount(image, 5 + static_cast<uint64_t>(look % 2), 0);
                    }),
                    std::nullopt};
     },
     [] { return CheckWhileChanging([](BuiltImage& image, int) { SetRefcount(image, 5, 0); }); },
     Verdict::kIncomplete},
    {FindingCode::kImageChanging, "other damage at every look / damage that was half a write",
     [] {
       return Fired{CheckWhileChanging([](BuiltImage& image, int look) {
                      SetRefcount(image, 5, static_cast<uint64_t>(look) + 2);
                    }),
                    std::nullopt};
     },
     [] {
       return CheckWhileChanging([](BuiltImage& image, int look) {
         if (look == 0) SetRefcount(image, 5, 0);
       });
     },
     Verdict::kIncomplete},
};

}  // namespace

absl::Span<const FindingCase> DataCases() { return kDataCases; }
absl::Span<const FindingCase> ChainCases() { return kChainCases; }
absl::Span<const FindingCase> CoverageCases() { return kCoverageCases; }

}  // namespace qcow2check::testing

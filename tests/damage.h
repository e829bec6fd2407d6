// Ways to damage an image that BuildImage made: single bytes, fields and entries by name, and whole
// accidents as they were seen in the field.
//
// Places come from the BuiltImage as it was built, so damage adds up in any order. What is not
// there (an L2 table, an offset past the end) ends the test program.
#ifndef QCOW2CHECK_TESTS_DAMAGE_H_
#define QCOW2CHECK_TESTS_DAMAGE_H_

#include <cstdint>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "tests/image_builder.h"

namespace qcow2check::testing {

// --- Bytes ---

// "80 00 0000ff", spaced as reads best.
void Poke(std::vector<uint8_t>& bytes, uint64_t offset, absl::string_view hex);
void PokeText(std::vector<uint8_t>& bytes, uint64_t offset, absl::string_view text);
// Big endian, as all of qcow2.
void Poke16(std::vector<uint8_t>& bytes, uint64_t offset, uint16_t value);
void Poke32(std::vector<uint8_t>& bytes, uint64_t offset, uint32_t value);
void Poke64(std::vector<uint8_t>& bytes, uint64_t offset, uint64_t value);
uint64_t Peek64(const std::vector<uint8_t>& bytes, uint64_t offset);
// Bit 0 is the lowest of the byte at `offset`; of the 64-bit word there, for FlipBit64.
void FlipBit(std::vector<uint8_t>& bytes, uint64_t offset, int bit);
void FlipBit64(std::vector<uint8_t>& bytes, uint64_t offset, int bit);
void Fill(std::vector<uint8_t>& bytes, uint64_t offset, uint64_t length, uint8_t byte);
// Lines of a log, such as guests write.
void FillWithText(std::vector<uint8_t>& bytes, uint64_t offset, uint64_t length);
void FillWithGarbage(std::vector<uint8_t>& bytes, uint64_t offset, uint64_t length);
// To a new size, smaller or larger.
void Truncate(std::vector<uint8_t>& bytes, uint64_t size);
void Extend(std::vector<uint8_t>& bytes, uint64_t size, uint8_t byte = 0);

// --- Fields and entries ---

// Header fields by their names in kHeaderFields ("l1_size").
void PokeField(BuiltImage& image, absl::string_view name, uint64_t value);
uint64_t GetField(const BuiltImage& image, absl::string_view name);
// Active L1 entries, and L2 entries by guest offset. The bitmap is an extended L2 entry's second
// word.
void SetL1Entry(BuiltImage& image, uint64_t l1_index, uint64_t value);
uint64_t GetL1Entry(const BuiltImage& image, uint64_t l1_index);
void SetL2Entry(BuiltImage& image, uint64_t guest_offset, uint64_t value);
uint64_t GetL2Entry(const BuiltImage& image, uint64_t guest_offset);
void SetL2Bitmap(BuiltImage& image, uint64_t guest_offset, uint64_t value);
uint64_t GetL2Bitmap(const BuiltImage& image, uint64_t guest_offset);
// By cluster number (BuiltImage::ClusterOf); the refcount block must exist.
void SetRefcount(BuiltImage& image, uint64_t cluster, uint64_t value);
uint64_t GetRefcount(const BuiltImage& image, uint64_t cluster);
// Whole clusters, by the offset of their first byte.
void ZeroCluster(BuiltImage& image, uint64_t host_offset);
void CopyCluster(BuiltImage& image, uint64_t from_offset, uint64_t to_offset);

// --- Accidents from the field ---
// Each needs an active L2 table with data; "the" table or cluster is the first.

// 2 GiB of 64 KiB clusters with 512 data clusters, spread over the L2 tables 0 and 2.
ImageOptions FieldImageOptions();

void L1Zeroed(BuiltImage& image);
void L2Zeroed(BuiltImage& image);
void L2HasRefcountBlock(BuiltImage& image);
void L2HasText(BuiltImage& image);
void HeaderText(BuiltImage& image);
void HeaderZeroed4k(BuiltImage& image);
// The second data cluster's entry points to the first's cluster.
void TwoGuestOneHost(BuiltImage& image);
// The first data cluster's entry points to the last L2 table.
void DataEntryIsLiveL2(BuiltImage& image);
void DataEntryIsRefcountBlock(BuiltImage& image);
void RefcountBlockZeroed(BuiltImage& image);
void RefcountTableZeroed(BuiltImage& image);
void LiveL2RefcountZero(BuiltImage& image);
// The file loses its last 64 clusters, or all behind the first quarter.
void TruncatedTail(BuiltImage& image);
void EntryOnePastEnd(BuiltImage& image);
void EntryMisaligned(BuiltImage& image);
void DataClusterZeroed(BuiltImage& image);
void CopiedFlagsClearedInL1(BuiltImage& image);
// The L1 entry behind the first L2 table's points to that table, too.
void TwoL1SameL2(BuiltImage& image);
void TornL2SecondHalfZero(BuiltImage& image);
void GarbageRefcountBlock(BuiltImage& image);
void RefcountTableToData(BuiltImage& image);
// An image without snapshots gets two, in a new cluster at the end.
void SnapshotTableGarbage(BuiltImage& image);
// The header takes the first L2 table for the L1 table.
void L1OffsetWrong(BuiltImage& image);
void VirtualSizeGrown(BuiltImage& image);
// Not closed with lazy refcounts: no refcount of an L2 table or a data cluster was written.
void LazyRefcountsStale(BuiltImage& image);

struct FieldDamage {
  absl::string_view name;  // "l1-zeroed"
  void (*apply)(BuiltImage& image);
};
// All of them, for tests that go through the list.
absl::Span<const FieldDamage> AllFieldDamages();

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_DAMAGE_H_

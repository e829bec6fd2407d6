// The reader that the repair is judged by: it reads what the builder's guest wrote, and what
// qemu-img convert writes. And the images that the repair is tried on are sound.
#include "tests/guest_view.h"

#include <algorithm>
#include <string>
#include <vector>

#include "checker/check.h"
#include "common/memory_file.h"
#include "gtest/gtest.h"
#include "tests/damage.h"
#include "tests/image_builder.h"
#include "tests/qemu.h"
#include "tests/repair_corpus.h"

namespace qcow2check::testing {
namespace {

Report Check(const std::vector<uint8_t>& bytes) { return CheckImage(MemoryFile(bytes), {}); }

// What the guest of the builder wrote, as a view.
GuestView ViewOf(const GuestClusters& guest, const BuiltImage& image, uint64_t unit_bytes) {
  GuestView view = {.opens = true, .unit_bytes = unit_bytes, .units = {}};
  for (const auto& [cluster, content] : guest) {
    for (uint64_t at = 0; at < image.cluster_size(); at += unit_bytes) {
      const uint64_t offset = cluster * image.cluster_size() + at;
      if (offset >= image.geometry.virtual_size_bytes) break;
      const uint64_t length = std::min(unit_bytes, image.geometry.virtual_size_bytes - offset);
      const GuestUnit unit = UnitOf(absl::MakeSpan(*content).subspan(at, length), false);
      if (unit.read != GuestRead::kNothing) view.units[offset] = unit;
    }
  }
  return view;
}

TEST(GuestView, ReadsWhatTheGuestWrote) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    Dice dice(seed);
    const ImageOptions options = RandomImageOptions(dice);
    if (options.backing.has_value()) continue;
    const BuiltImage image = BuildImage(options);
    const ImageBytes bytes = {image.bytes, image.data_file_bytes};
    const GuestView disk = ReadDisk(bytes, options.virtual_size);
    EXPECT_EQ(disk.units, ViewOf(image.guest, image, disk.unit_bytes).units);
    const std::vector<GuestView> snapshots = ReadSnapshots(bytes);
    ASSERT_EQ(snapshots.size(), image.snapshots.size());
    for (size_t i = 0; i < snapshots.size(); ++i) {
      // A view of a snapshot goes on with the VM state behind the disk.
      for (const auto& [offset, unit] :
           ViewOf(image.snapshots[i].guest, image, disk.unit_bytes).units) {
        EXPECT_EQ(snapshots[i].At(offset), unit);
      }
    }
  }
}

TEST(GuestView, ReadsWhatQemuReads) {
  QCOW2CHECK_SKIP_WITHOUT_QEMU();
  std::vector<CorpusImage> images = MakeQemuImages();
  for (uint64_t seed = 0; seed < 100; ++seed) {
    CorpusImage image = MakeCorpusImage(seed);
    if (!image.encrypted) images.push_back(std::move(image));
  }
  for (const CorpusImage& image : images) {
    SCOPED_TRACE(image.name);
    EXPECT_EQ(DifferenceFromQemu(image), "");
  }
}

TEST(GuestView, CorpusImagesAreSound) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    const CorpusImage image = MakeCorpusImage(seed);
    EXPECT_EQ(Check(image.bytes).verdict, Verdict::kClean) << image.name;
  }
  if (!HaveQemu()) return;
  for (const CorpusImage& image : MakeQemuImages()) {
    EXPECT_EQ(Check(image.bytes).verdict, Verdict::kClean) << image.name;
  }
}

// What a view says of pointers that lead nowhere, as QEMU reads them.
TEST(GuestView, DamagedEntries) {
  BuiltImage image = BuildImage({.cluster_bits = 12, .steps = {WriteClusters{.count = 8}}});
  const uint64_t size = image.cluster_size();
  const GuestView before = ReadDisk({image.bytes, {}}, 64 << 20);
  SetL2Entry(image, 0, 0);
  SetL2Entry(image, size, GetL2Entry(image, size) | 0x200);
  SetL2Entry(image, 2 * size, GetL2Entry(image, 2 * size) | uint64_t{1} << 40);
  SetL2Entry(image, 3 * size, GetL2Entry(image, 4 * size));
  const GuestView view = ReadDisk({image.bytes, {}}, 64 << 20);
  EXPECT_EQ(view.At(0).read, GuestRead::kNothing);
  EXPECT_EQ(view.At(size).read, GuestRead::kError);
  EXPECT_EQ(view.At(2 * size).read, GuestRead::kNothing) << "zeros behind the end of the file";
  EXPECT_EQ(view.At(3 * size), before.At(4 * size));
  EXPECT_EQ(view.At(5 * size), before.At(5 * size));
  EXPECT_NE(view.At(5 * size), view.At(4 * size));
}

// A repair may give back and may list as lost; it may not change what was right.
class CompareOneUnit : public ::testing::Test {
 protected:
  static constexpr GuestUnit kOne = {GuestRead::kData, 1, 0x1000, 0x8000};
  static constexpr GuestUnit kTwo = {GuestRead::kData, 2, 0x2000, 0x8000};
  static constexpr GuestUnit kMetadata = {GuestRead::kData, 3, 0x3000, 0x8000};
  static constexpr GuestUnit kByChance = {GuestRead::kData, 1, 0x1000, 0x4000};
  static constexpr GuestUnit kError = {GuestRead::kError, 0, {}, 0};
  static constexpr GuestUnit kNothing = {GuestRead::kNothing, 0, {}, 0};

  static GuestView ViewOfOne(GuestUnit unit) {
    GuestView view = {.opens = true, .unit_bytes = 512, .mapped_bytes = 4096, .units = {}};
    if (unit.read != GuestRead::kNothing) view.units[512] = unit;
    return view;
  }
  static ViewsOfRepair Views(GuestUnit was, GuestUnit before, GuestUnit with_true_l1,
                             GuestUnit now) {
    return {ViewOfOne(was),    ViewOfOne(before), ViewOfOne(with_true_l1),
            ViewOfOne(before), ViewOfOne(now),    {0x1000, 0x2000},
            {0x8000}};
  }
  static ViewChanges Compare(GuestUnit was, GuestUnit before, GuestUnit now,
                             const std::vector<GuestRange>& lost = {}) {
    return CompareViews(Views(was, before, before, now), lost);
  }
};

TEST_F(CompareOneUnit, Allowed) {
  EXPECT_EQ(Compare(kOne, kOne, kOne).violations, "");
  EXPECT_EQ(Compare(kOne, kError, kOne).violations, "");
  EXPECT_EQ(Compare(kOne, kError, kOne).regained, 1);
  EXPECT_EQ(Compare(kOne, kError, kError).violations, "");
  EXPECT_EQ(Compare(kOne, kError, kNothing, {{0, 1024}}).violations, "");
  EXPECT_EQ(Compare(kOne, kError, kNothing, {{0, 1024}}).lost, 1);
  EXPECT_EQ(Compare(kOne, kTwo, kTwo).violations, "");
  EXPECT_EQ(Compare(kOne, kMetadata, kTwo).violations, "");
  EXPECT_EQ(Compare(kOne, kByChance, kNothing, {{0, 1024}}).violations, "");
}

TEST_F(CompareOneUnit, NotAllowed) {
  EXPECT_EQ(Compare(kOne, kError, kNothing, {{0, 512}}).violations,
            "1 units read data undamaged, an error before the repair and nothing after it, the "
            "first at guest 0x200\n");
  EXPECT_NE(Compare(kOne, kError, kTwo, {{0, 1024}}).violations, "");
  EXPECT_NE(Compare(kOne, kOne, kNothing, {{0, 1024}}).violations, "");
  EXPECT_NE(Compare(kOne, kOne, kError).violations, "");
  EXPECT_NE(Compare(kNothing, kNothing, kTwo, {{0, 1024}}).violations, "");
}

TEST_F(CompareOneUnit, DamageBehindDamage) {
  // The L1 entry was wrong, and so is the L2 entry that it should lead to.
  EXPECT_EQ(CompareViews(Views(kOne, kError, kTwo, kTwo), {}).violations, "");
}

}  // namespace
}  // namespace qcow2check::testing

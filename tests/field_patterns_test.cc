// Damage as it was seen in the field, by name, on one base image: 2 GiB, 64 KiB clusters, 512
// different data clusters, one half at guest 0 and one at 1 GiB. Each test says what qemu-img
// counts, what ours counts, what is lost and what must be kept. Then: what the signs of each
// damage are.
#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/checked_program.h"
#include "tests/disk_image.h"
#include "tests/qemu.h"

namespace qcow2check::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsSupersetOf;

using Ranges = std::vector<GuestRange>;

constexpr uint64_t kCluster = 65536;
constexpr uint64_t kKibibyte = 1024;
constexpr uint64_t kMebibyte = 1024 * kKibibyte;
constexpr uint64_t kGibibyte = 1024 * kMebibyte;
constexpr uint64_t kCopied = uint64_t{1} << 63;

// Where qemu-img convert puts everything; the base image is made once and the places are checked.
constexpr uint64_t kRefcountTable = 0x10000;
constexpr uint64_t kRefcountBlock = 0x20000;
constexpr uint64_t kL1 = 0x30000;
constexpr uint64_t kL2First = 0x40000;     // guest 0
constexpr uint64_t kDataFirst = 0x50000;   // 256 clusters
constexpr uint64_t kL2Second = 0x1050000;  // guest 1 GiB
constexpr uint64_t kDataSecond = 0x1060000;
constexpr uint64_t kHalf = 256;
constexpr uint64_t kFileClusters = 518;

// The base image's file; lives as long as the test program.
const std::string& BaseImage() {
  static const DiskImage* const base = [] {
    auto* image = new DiskImage;
    const std::string raw = image->Beside("base.raw");
    WriteFile(raw, {});
    std::filesystem::resize_file(raw, 2 * kGibibyte);
    std::FILE* file = std::fopen(raw.c_str(), "r+b");
    for (const uint64_t start : {uint64_t{0}, kGibibyte}) {
      for (uint64_t i = 0; i < kHalf; ++i) {
        const uint64_t place = start + i * kCluster;
        std::string content;
        while (content.size() < kCluster) absl::StrAppendFormat(&content, "guest %020d\n", place);
        std::fseek(file, static_cast<long>(place), SEEK_SET);
        std::fwrite(content.data(), 1, kCluster, file);
      }
    }
    std::fclose(file);
    QemuImg({"convert", "-O", "qcow2", "-t", "unsafe", raw, image->path()});
    std::filesystem::remove(raw);
    EXPECT_EQ(image->Peek64(kRefcountTable), kRefcountBlock);
    EXPECT_EQ(image->Peek64(kL1), kL2First | kCopied);
    EXPECT_EQ(image->Peek64(kL1 + 16), kL2Second | kCopied);
    EXPECT_EQ(image->Peek64(kL2First), kDataFirst | kCopied);
    EXPECT_EQ(image->Peek64(kL2Second), kDataSecond | kCopied);
    EXPECT_EQ(image->size_bytes(), kFileClusters * kCluster);
    return image;
  }();
  return base->path();
}

class FieldPattern : public ::testing::Test {
 protected:
  void SetUp() override {
    QCOW2CHECK_SKIP_WITHOUT_QEMU();
    std::filesystem::copy_file(BaseImage(), image_.path());
  }
  CheckedTwice Check() const { return CheckWithBoth(image_.path()); }
  void CopyCluster(uint64_t from, uint64_t to) const {
    image_.PokeBytes(to, image_.Bytes(from, kCluster));
  }
  static std::string Text() {
    std::string text;
    for (int line = 0; text.size() < kCluster; ++line) {
      absl::StrAppendFormat(&text, "Jan 01 00:00:%02d host kernel: [%8d] eth0 up\n", line % 60,
                            line);
    }
    return text.substr(0, kCluster);
  }

  DiskImage image_;
};

TEST_F(FieldPattern, BaseIsClean) {
  const CheckedTwice both = Check();
  EXPECT_TRUE(AllNumbersAgree(both));
  EXPECT_EQ(both.ours.codes(), std::set<std::string>());
}

// M18: qemu-img calls this a waste of disk space. It is the whole disk.
TEST_F(FieldPattern, p01_l1_zeroed) {
  image_.Zero(kL1, 32);
  const CheckedTwice both = Check();
  EXPECT_TRUE(QemuCounts(both, 0, 514));
  EXPECT_TRUE(OursCounts(both, 1, 514));
  EXPECT_EQ(both.ours.exit_code, 2);
  EXPECT_THAT(both.ours.codes(), ElementsAre("l1-lost", "leak-suspicious", "orphan-l2-table"));
  EXPECT_EQ(both.ours.Findings("orphan-l2-table").size(), 2);
  EXPECT_EQ(both.ours.data_state(), "lost");
  EXPECT_EQ(both.ours.lost_guest_ranges(), (Ranges{{0, 2 * kGibibyte}}));
  EXPECT_EQ(both.ours.held_back_clusters(), 514);
}

// M18
TEST_F(FieldPattern, p02_l2_zeroed) {
  image_.Zero(kL2First, kCluster);
  const CheckedTwice both = Check();
  EXPECT_TRUE(QemuCounts(both, 0, 256));
  EXPECT_TRUE(OursCounts(both, 1, 256));
  EXPECT_THAT(both.ours.codes(), ElementsAre("leak-suspicious", "lost-l2-table"));
  EXPECT_EQ(both.ours.TheOnly("lost-l2-table")["host-offset"], kL2First);
  EXPECT_EQ(both.ours.lost_guest_ranges(), (Ranges{{0, 512 * kMebibyte}}));
  EXPECT_EQ(both.ours.held_back_clusters(), 256);
}

// A table that is plainly something else is one finding, not one for each of its words.
TEST_F(FieldPattern, p03_l2_has_refcount_block) {
  CopyCluster(kRefcountBlock, kL2First);
  const CheckedTwice both = Check();
  EXPECT_TRUE(QemuCounts(both, 130, 256));
  EXPECT_TRUE(OursCounts(both, 1, 256));
  EXPECT_THAT(both.ours.TheOnly("lost-l2-table")["message"].get<std::string>(),
              HasSubstr("refcounts"));
  EXPECT_EQ(both.ours.lost_guest_ranges(), (Ranges{{0, 512 * kMebibyte}}));
  EXPECT_EQ(both.ours.held_back_clusters(), 256);
}

TEST_F(FieldPattern, p04_l2_has_guest_data) {
  CopyCluster(kDataFirst, kL2First);
  const CheckedTwice both = Check();
  EXPECT_GT(both.qemu.corruptions, 8192);
  EXPECT_EQ(both.qemu.leaks, 256);
  EXPECT_TRUE(OursCounts(both, 1, 256));
  EXPECT_THAT(both.ours.TheOnly("lost-l2-table")["message"].get<std::string>(), HasSubstr("text"));
  EXPECT_EQ(both.ours.lost_guest_ranges(), (Ranges{{0, 512 * kMebibyte}}));
  EXPECT_EQ(both.ours.held_back_clusters(), 256);
}

TEST_F(FieldPattern, p05_header_guest_data) {
  image_.PokeBytes(0, Text());
  const CheckedTwice both = Check();
  EXPECT_EQ(both.qemu.exit_code, 63);
  EXPECT_EQ(both.ours.exit_code, 2) << "a damaged qcow2 image, not some other file";
  EXPECT_THAT(both.ours.codes(), ElementsAre("header-lost"));
  EXPECT_EQ(both.ours.data_state(), "lost");
}

TEST_F(FieldPattern, p06_header_zeroed_4k) {
  image_.Zero(0, 4096);
  const CheckedTwice both = Check();
  EXPECT_EQ(both.qemu.exit_code, 63);
  EXPECT_EQ(both.ours.exit_code, 2) << "a damaged qcow2 image, not some other file";
  EXPECT_THAT(both.ours.codes(), ElementsAre("header-lost"));
}

TEST_F(FieldPattern, p07_two_guest_one_host) {
  image_.Poke64(kL2First + 8, kDataFirst | kCopied);
  const CheckedTwice both = Check();
  EXPECT_TRUE(BothCount(both, 1, 1));
  const nlohmann::json link = both.ours.TheOnly("cross-linked-data");
  EXPECT_EQ(link["host-offset"], kDataFirst);
  EXPECT_EQ(link["expected"], kDataFirst + kCluster) << "the orphan that was the victim";
  ASSERT_EQ(link["owners"].size(), 2);
  EXPECT_EQ(link["owners"][0]["guest-offset"], 0);
  EXPECT_EQ(link["owners"][1]["guest-offset"], kCluster);
  EXPECT_EQ(both.ours.data_state(), "ambiguous");
  EXPECT_EQ(both.ours.held_back_clusters(), 1);
}

TEST_F(FieldPattern, p08_data_entry_is_live_l2) {
  image_.Poke64(kL2First, kL2Second | kCopied);
  const CheckedTwice both = Check();
  EXPECT_TRUE(BothCount(both, 1, 1));
  const nlohmann::json overlap = both.ours.TheOnly("data-on-metadata");
  EXPECT_EQ(overlap["host-offset"], kL2Second);
  EXPECT_EQ(overlap["owners"].size(), 2);
  EXPECT_EQ(overlap["expected"], kDataFirst);
  EXPECT_EQ(both.ours.held_back_clusters(), 1);
}

TEST_F(FieldPattern, p09_data_entry_is_refblock) {
  image_.Poke64(kL2First, kRefcountBlock | kCopied);
  const CheckedTwice both = Check();
  EXPECT_TRUE(BothCount(both, 2, 1));
  EXPECT_THAT(both.ours.codes(),
              IsSupersetOf({"data-on-metadata", "refcount-block-shared", "leak-suspicious"}));
  EXPECT_EQ(both.ours.held_back_clusters(), 1);
}

TEST_F(FieldPattern, p10_refblock_zeroed) {
  image_.Zero(kRefcountBlock, kCluster);
  const CheckedTwice both = Check();
  // 518 clusters without a refcount; two L1 and 512 L2 entries have COPIED.
  EXPECT_TRUE(BothCount(both, 1032, 0));
  EXPECT_EQ(both.ours.CountOf("refcount-zero-in-use"), 518);
  EXPECT_EQ(both.ours.lost_guest_bytes(), 0);
}

TEST_F(FieldPattern, p11_reftable_zeroed) {
  image_.Zero(kRefcountTable, kCluster);
  const CheckedTwice both = Check();
  EXPECT_EQ(both.ours.corruptions(), both.qemu.corruptions);
  EXPECT_EQ(both.ours.leaks(), 0);
  // The block is referenced by nothing now, and counted by nothing.
  EXPECT_EQ(both.ours.CountOf("refcount-zero-in-use"), 517);
  EXPECT_EQ(both.ours.data_state(), "at-risk");
}

TEST_F(FieldPattern, p12_live_l2_refcount0) {
  image_.Poke16(kRefcountBlock + 2 * (kL2First / kCluster), 0);
  const CheckedTwice both = Check();
  EXPECT_TRUE(BothCount(both, 2, 0));
  const nlohmann::json urgent = both.ours.TheOnly("refcount-zero-in-use");
  EXPECT_EQ(urgent["host-offset"], kL2First);
  EXPECT_EQ(urgent["structure"], "l2-table");
  EXPECT_EQ(both.ours.data_state(), "at-risk");
}

TEST_F(FieldPattern, p13_truncated_tail) {
  image_.Truncate((kFileClusters - 64) * kCluster);
  const CheckedTwice both = Check();
  EXPECT_TRUE(BothCount(both, 64, 0));
  EXPECT_THAT(both.ours.codes(), ElementsAre("data-past-end", "file-truncated"));
  EXPECT_EQ(both.ours.lost_guest_ranges(), (Ranges{{kGibibyte + 192 * kCluster, 64 * kCluster}}));
}

TEST_F(FieldPattern, p14_entry_one_past_eof) {
  image_.Poke64(kL2First, (kFileClusters * kCluster) | kCopied);
  const CheckedTwice both = Check();
  EXPECT_TRUE(BothCount(both, 2, 1));
  const nlohmann::json entry = both.ours.TheOnly("data-past-end");
  EXPECT_EQ(entry["expected"], kDataFirst) << "the only orphan";
  EXPECT_EQ(both.ours.lost_guest_ranges(), (Ranges{{0, kCluster}}));
  EXPECT_EQ(both.ours.held_back_clusters(), 1);
}

TEST_F(FieldPattern, p15_entry_misaligned) {
  image_.Poke64(kL2First, (kDataFirst + 0x200) | kCopied);
  const CheckedTwice both = Check();
  // The entry, and the next cluster, into which it reaches.
  EXPECT_TRUE(BothCount(both, 2, 0));
  EXPECT_EQ(both.ours.TheOnly("data-misaligned")["expected"], kDataFirst | kCopied);
  EXPECT_EQ(both.ours.data_state(), "at-risk");
}

// Nothing in the metadata tells it from a cluster that the guest zeroed.
TEST_F(FieldPattern, p16_data_cluster_zeroed) {
  image_.Zero(kDataFirst, kCluster);
  EXPECT_TRUE(AllNumbersAgree(Check()));
}

TEST_F(FieldPattern, p17_copied_flags_cleared_L1) {
  image_.Poke64(kL1, kL2First);
  image_.Poke64(kL1 + 16, kL2Second);
  const CheckedTwice both = Check();
  EXPECT_TRUE(BothCount(both, 2, 0));
  EXPECT_THAT(both.ours.codes(), ElementsAre("copied-flag-wrong"));
  EXPECT_EQ(both.ours.data_state(), "intact") << "a writer's bug, no damage";
}

TEST_F(FieldPattern, p18_two_l1_same_l2) {
  image_.Poke64(kL1 + 8, kL2First | kCopied);
  const CheckedTwice both = Check();
  EXPECT_TRUE(BothCount(both, 257, 0));
  const nlohmann::json link = both.ours.TheOnly("cross-linked-l2-table");
  EXPECT_EQ(link["owners"][0]["l1-index"], 0);
  EXPECT_EQ(link["owners"][1]["l1-index"], 1);
  EXPECT_EQ(both.ours.data_state(), "ambiguous");
}

// M18: silent loss for qemu-img.
TEST_F(FieldPattern, p19_torn_l2_second_half_zero) {
  image_.Zero(kL2First + 128 * 8, kCluster - 128 * 8);
  const CheckedTwice both = Check();
  EXPECT_TRUE(QemuCounts(both, 0, 128));
  EXPECT_TRUE(OursCounts(both, 1, 128));
  EXPECT_THAT(both.ours.codes(), ElementsAre("leak-suspicious", "torn-l2-table"));
  // How much of the rest of the table was in use nobody knows.
  EXPECT_EQ(both.ours.lost_guest_ranges(), (Ranges{{128 * kCluster, (8192 - 128) * kCluster}}));
  EXPECT_EQ(both.ours.held_back_clusters(), 128);
}

TEST_F(FieldPattern, p20_garbage_refcount_block) {
  CopyCluster(kDataFirst, kRefcountBlock);
  const CheckedTwice both = Check();
  EXPECT_EQ(both.ours.corruptions(), both.qemu.corruptions);
  EXPECT_TRUE(both.ours.Has("refcount-block-garbage"));
  EXPECT_EQ(both.ours.lost_guest_bytes(), 0);
  // M3: the block also counts the 32,250 clusters behind the end of the file.
  EXPECT_EQ(both.ours.leaks() - both.ours.CountOf("refcount-past-end"), both.qemu.leaks);
}

TEST_F(FieldPattern, p21_reftable_to_data) {
  image_.Poke64(kRefcountTable, kDataFirst);
  const CheckedTwice both = Check();
  EXPECT_EQ(both.ours.corruptions(), both.qemu.corruptions);
  EXPECT_THAT(both.ours.codes(), IsSupersetOf({"refcount-block-shared", "data-on-metadata"}));
  EXPECT_EQ(both.ours.leaks() - both.ours.CountOf("refcount-past-end"), both.qemu.leaks);
}

TEST_F(FieldPattern, p22_snapshot_table_garbage) {
  image_.Poke32(60, 2);
  image_.Poke64(64, kDataFirst);
  const CheckedTwice both = Check();
  EXPECT_TRUE(QemuGivesUp(both));
  EXPECT_EQ(both.ours.exit_code, 2);
  EXPECT_TRUE(both.ours.Has("snapshot-table-invalid"));
  // The disk itself was examined all the same.
  EXPECT_EQ(both.ours.Number("allocated-clusters"), 512);
}

// The header takes the first L2 table for the L1 table.
TEST_F(FieldPattern, p23_l1_offset_wrong) {
  image_.Poke64(40, kL2First);
  const CheckedTwice both = Check();
  EXPECT_GT(both.qemu.corruptions, 510);
  EXPECT_EQ(both.qemu.leaks, 510);
  EXPECT_EQ(both.ours.leaks(), 510);
  EXPECT_THAT(both.ours.codes(), IsSupersetOf({"l1-lost", "orphan-l2-table", "leak-suspicious"}));
  EXPECT_LT(both.ours.corruptions(), 20) << "one finding for each table that is none";
  EXPECT_EQ(both.ours.lost_guest_ranges(), (Ranges{{0, 2 * kGibibyte}}));
  EXPECT_EQ(both.ours.held_back_clusters(), 510);
}

TEST_F(FieldPattern, p24_virtual_size_grown) {
  image_.Poke64(24, 20 * kGibibyte);
  const CheckedTwice both = Check();
  EXPECT_TRUE(QemuGivesUp(both));
  EXPECT_TRUE(OursCounts(both, 1, 0));
  EXPECT_THAT(both.ours.codes(), ElementsAre("l1-too-small"));
  EXPECT_EQ(both.ours.Number("allocated-clusters"), 512);
}

TEST_F(FieldPattern, DirtyLazyRefcounts) {
  const DiskImage image("2G", "lazy_refcounts=on");
  QemuIoKilled(image.path(), {"write 0 20M", "flush"});
  const CheckedTwice both = CheckWithBoth(image.path());
  EXPECT_TRUE(AllNumbersAgree(both));
  EXPECT_GT(both.ours.corruptions(), 600);
  EXPECT_THAT(both.ours.codes(), ElementsAre("dirty-bit", "refcount-lazy"));
  EXPECT_EQ(both.ours.data_state(), "intact") << "an expected state, no damage";
}

TEST_F(FieldPattern, L2OverlapSeenLive) {
  image_.Poke64(kL2First, kL2Second | kCopied);
  image_.Poke64(72, 2);
  const CheckedTwice both = Check();
  EXPECT_TRUE(QemuCounts(both, 1, 1));
  EXPECT_TRUE(OursCounts(both, 2, 1));  // M11: the bit
  EXPECT_THAT(both.ours.codes(), IsSupersetOf({"corrupt-bit", "data-on-metadata"}));
}

// Only the guest can tell.
TEST_F(FieldPattern, StaleCopyOfABackingCluster) {
  CopyCluster(kDataFirst, kDataFirst + kCluster);
  EXPECT_TRUE(AllNumbersAgree(Check()));
}

TEST_F(FieldPattern, BitmapInUseAfterACrash) {
  QemuImg({"bitmap", "--add", image_.path(), "map"});
  const uint64_t directory = image_.Peek64(image_.ExtensionData(0x23852875) + 16);
  image_.Poke32(directory + 12, 3);  // in use, automatic
  const CheckedTwice both = Check();
  EXPECT_TRUE(AllNumbersAgree(both));
  EXPECT_THAT(both.ours.codes(), ElementsAre("bitmap-in-use"));
}

// The L2 table is from an older copy of the image: what was written since is unreferenced.
TEST_F(FieldPattern, ReflinkCopyOfALiveImage) {
  const std::string old_table = image_.Bytes(kL2First, kCluster);
  image_.Io({"write 32M 1M"});
  image_.PokeBytes(kL2First, old_table);
  const CheckedTwice both = Check();
  EXPECT_EQ(both.ours.leaks(), 16);
  EXPECT_EQ(both.qemu.leaks, 16);
  EXPECT_EQ(both.qemu.corruptions, 0);
}

// --- The signs by which damage is recognised ---

class Signature : public FieldPattern {};

// (a) Leaks that fit one L2 table, and one slot of the L1 table is 0.
TEST_F(Signature, a_LostL2TableBehindAnEmptySlot) {
  image_.Poke64(kL1, 0);
  const CheckedTwice both = Check();
  EXPECT_TRUE(QemuCounts(both, 0, 257));
  EXPECT_EQ(both.ours.leaks(), 257);
  EXPECT_EQ(both.ours.TheOnly("orphan-l2-table")["host-offset"], kL2First);
  EXPECT_EQ(both.ours.held_back_clusters(), 257);
  EXPECT_NE(both.ours.data_state(), "intact");
}

// (b) is p03. (c) An L2 table that holds what guests write.
TEST_F(Signature, c_GuestDataInAnL2Table) {
  struct Content {
    const char* name;
    uint64_t offset;
    std::string magic;
  };
  const std::vector<Content> contents = {{"ELF", 0,
                                          std::string("\x7f"
                                                      "ELF\x02\x01\x01",
                                                      7)},
                                         {"ext", 0x438, "\x53\xef"},
                                         {"NTFS", 3, "NTFS    "},
                                         {"XFS", 0, "XFSB"}};
  for (const Content& content : contents) {
    // A file system is no run of equal words: numbers that grow, as inode tables have them.
    for (uint64_t at = 0; at < kCluster; at += 8)
      image_.Poke64(kL2First + at, 0x0123456789abcd01 + at * at);
    image_.PokeBytes(kL2First + content.offset, content.magic);
    const CheckedTwice both = Check();
    EXPECT_THAT(both.ours.TheOnly("lost-l2-table")["message"].get<std::string>(),
                HasSubstr(content.name));
    EXPECT_TRUE(OursCounts(both, 1, 256)) << content.name;
  }
  image_.PokeBytes(kL2First, Text());
  EXPECT_THAT(Check().ours.TheOnly("lost-l2-table")["message"].get<std::string>(),
              HasSubstr("text"));
}

// (d) As many orphans as cross-links: each is the victim of one.
TEST_F(Signature, d_OrphansPairedWithCrossLinks) {
  // Every victim's own cluster is the one behind its neighbour's.
  for (const uint64_t victim : {1, 11, 21}) {
    image_.Poke64(kL2First + victim * 8, (kDataFirst + (victim - 1) * kCluster) | kCopied);
  }
  const CheckedTwice both = Check();
  EXPECT_TRUE(BothCount(both, 3, 3));
  const std::vector<nlohmann::json> links = both.ours.Findings("cross-linked-data");
  ASSERT_EQ(links.size(), 3);
  for (const nlohmann::json& link : links) {
    EXPECT_EQ(link.value("expected", uint64_t{0}), link["host-offset"].get<uint64_t>() + kCluster);
  }
}

// (e) is p17, (f) DirtyLazyRefcounts, (g) p13. (h) Leaks only at the end of the file.
TEST_F(Signature, h_CrashWhileAllocating) {
  image_.Truncate((kFileClusters + 3) * kCluster);
  for (uint64_t i = 0; i < 3; ++i) image_.Poke16(kRefcountBlock + 2 * (kFileClusters + i), 1);
  const CheckedTwice both = Check();
  EXPECT_TRUE(BothCount(both, 0, 3));
  EXPECT_EQ(both.ours.exit_code, 3);
  EXPECT_THAT(both.ours.TheOnly("leaked-cluster")["message"].get<std::string>(),
              HasSubstr("at the end of the file"));
  EXPECT_EQ(both.ours.held_back_clusters(), 0);
  EXPECT_EQ(both.ours.data_state(), "intact");
}

}  // namespace
}  // namespace qcow2check::testing

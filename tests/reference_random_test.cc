// Thousands of small random images, sound and damaged: the real checker and the reference checker
// must agree on each.
//
// Every image comes from a seed, which a failure prints with the damage done, so that one image can
// be made again (SeedsToTest). The undamaged ones must be clean in both checkers' eyes.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "checker/check.h"
#include "common/posix_file.h"
#include "common/refcount_block.h"
#include "gtest/gtest.h"
#include "tests/damage.h"
#include "tests/image_builder.h"
#include "tests/program.h"
#include "tests/reference_checker.h"
#include "tests/reference_compare.h"

namespace qcow2check::testing {
namespace {

constexpr uint64_t kSeeds = 1500;
constexpr uint64_t kDamagedPerSeed = 8;
constexpr int kMostFailuresShown = 5;

// Random numbers that are the same everywhere for the same seed.
class Dice {
 public:
  explicit Dice(uint64_t seed) : generator_(seed) {}

  uint64_t Below(uint64_t limit) { return generator_() % limit; }
  uint64_t Between(uint64_t low, uint64_t high) { return low + Below(high - low + 1); }
  bool Percent(uint64_t percent) { return Below(100) < percent; }
  template <typename T>
  const T& OneOf(const std::vector<T>& values) {
    return values[Below(values.size())];
  }

 private:
  std::mt19937_64 generator_;
};

struct Seeds {
  uint64_t first = 0;
  uint64_t end = kSeeds;
};

// For one image again, or for many more than a test run has time for: QCOW2CHECK_SEEDS=FIRST:COUNT.
Seeds SeedsToTest() {
  const char* wanted = std::getenv("QCOW2CHECK_SEEDS");
  unsigned long long first = 0, count = 0;
  if (wanted == nullptr || std::sscanf(wanted, "%llu:%llu", &first, &count) != 2) return {};
  return {first, first + count};
}

// --- Images ---

class RandomOptions {
 public:
  explicit RandomOptions(Dice& dice) : dice_(dice) {}

  ImageOptions Make() {
    const uint64_t kind = dice_.Below(100);
    options_.version = kind < 20 ? 2 : 3;
    options_.extended_l2 = kind >= 20 && kind < 26;
    const bool data_file = kind >= 26 && kind < 34;
    options_.cluster_bits =
        options_.extended_l2 ? 14 : dice_.OneOf<int>({9, 9, 9, 9, 10, 10, 11, 12});
    if (options_.version == 3) options_.refcount_order = static_cast<int>(dice_.Below(7));
    clusters_ = dice_.Between(1, options_.extended_l2 ? 30 : 150);
    const uint64_t cluster_size = uint64_t{1} << options_.cluster_bits;
    options_.virtual_size = clusters_ * cluster_size;
    if (dice_.Percent(10) && cluster_size > 512) options_.virtual_size -= 512;
    options_.extra_l1_entries = dice_.Percent(20) ? dice_.Below(5) : 0;
    if (data_file) {
      options_.data_file.emplace();
      options_.data_file->raw = dice_.Percent(50);
    } else if (dice_.Percent(10)) {
      options_.backing.emplace();
    }
    if (dice_.Percent(2)) options_.luks = LuksOptions{.key_bytes = 16, .stripes = 4};
    if (options_.version == 3) MakeVersion3Options();
    options_.end_at_last_byte = dice_.Percent(20);
    if (dice_.Percent(5)) options_.trailing_bytes = dice_.Between(1, 3000);
    for (uint64_t steps = dice_.Between(1, 7); steps > 0; --steps) AddStep();
    return std::move(options_);
  }

 private:
  void MakeVersion3Options() {
    options_.header_length = dice_.Percent(50) ? 104 : 112;
    options_.lazy_refcounts = dice_.Percent(10);
    options_.dirty = options_.lazy_refcounts && dice_.Percent(50);
    if (options_.header_length > 104 && dice_.Percent(20)) options_.compression_type = kZstd;
    if (!dice_.Percent(15)) return;
    for (uint64_t i = dice_.Between(1, 2); i > 0; --i) {
      BitmapOptions bitmap;
      bitmap.name = absl::StrCat("bitmap", i);
      bitmap.granularity_bits = static_cast<int>(dice_.Between(9, 12));
      bitmap.in_use = dice_.Percent(20);
      bitmap.dirty = {{0, dice_.Below(options_.virtual_size)}};
      options_.bitmaps.push_back(bitmap);
    }
  }

  uint64_t Guest() { return dice_.Below(clusters_); }
  // Clusters from `first` on, a few.
  uint64_t CountFrom(uint64_t first) {
    return dice_.Between(1, std::min<uint64_t>(clusters_ - first, 12));
  }
  bool SnapshotsAllowed() const { return !options_.data_file && options_.refcount_order >= 3; }

  void AddStep() {
    const uint64_t first = Guest();
    const uint64_t count = CountFrom(first);
    const uint64_t cluster_size = uint64_t{1} << options_.cluster_bits;
    switch (dice_.Below(10)) {
      case 0: {
        const uint64_t offset = dice_.Below(options_.virtual_size);
        const uint64_t left = options_.virtual_size - offset;
        options_.steps.push_back(Write{offset, dice_.Between(1, left)});
        return;
      }
      case 1:
      case 2:
        if (options_.data_file || compressed_ + count > 24) break;
        compressed_ += count;
        options_.steps.push_back(
            WriteCompressed{first, count, dice_.Percent(50) ? dice_.Below(cluster_size / 3) : 0});
        return;
      case 3:
      case 4:
        if (options_.version < 3) break;
        options_.steps.push_back(WriteZeros{first, count, dice_.Percent(50), Subclusters()});
        return;
      case 5:
        options_.steps.push_back(Discard{first, count});
        return;
      case 6:
      case 7:
        if (!SnapshotsAllowed() || snapshots_ >= 3) break;
        ++snapshots_;
        options_.steps.push_back(
            TakeSnapshot{.vm_state_bytes = dice_.Percent(30) ? dice_.Between(1, 3000) : 0});
        return;
      case 8:
        if (snapshots_ == 0 || deleted_) break;
        deleted_ = true;
        options_.steps.push_back(DeleteSnapshot{"1"});
        return;
      default:
        break;
    }
    options_.steps.push_back(WriteClusters{first, count});
  }

  // Parts of compressed clusters cannot be made zero.
  uint32_t Subclusters() {
    if (!options_.extended_l2 || compressed_ != 0) return 0xffffffff;
    return static_cast<uint32_t>(dice_.Below(uint64_t{1} << 32)) | 1;
  }

  Dice& dice_;
  ImageOptions options_;
  uint64_t clusters_ = 0;
  uint64_t compressed_ = 0;
  uint64_t snapshots_ = 0;
  bool deleted_ = false;
};

// --- Damage ---

// Changes one thing in an image, and says what.
class RandomDamage {
 public:
  RandomDamage(Dice& dice, const BuiltImage& image) : dice_(dice), image_(image) { CollectWords(); }

  std::string Apply(std::vector<uint8_t>& bytes) {
    switch (dice_.Below(13)) {
      case 0:
      case 1:
      case 2:
        return FlipWordBit(bytes);
      case 3:
      case 4:
      case 5:
        return PutInteresting(bytes);
      case 6:
        return Swap(bytes);
      case 7:
        return Copy(bytes);
      case 8:
      case 9:
        return ChangeRefcount(bytes);
      case 10:
        return ChangeSize(bytes);
      case 11:
        return CopyCluster(bytes);
      default:
        return ChangeHeader(bytes);
    }
  }

 private:
  // Offsets of the words of all tables, used ones more than once.
  void AddTable(const std::vector<uint8_t>& bytes, uint64_t offset, uint64_t words) {
    for (uint64_t i = 0; i < words && offset + i * 8 + 8 <= bytes.size(); ++i) {
      const uint64_t place = offset + i * 8;
      const uint64_t copies = Peek64(bytes, place) != 0 ? 8 : i < 8 ? 1 : 0;
      words_.insert(words_.end(), copies, place);
    }
  }

  void CollectWords() {
    const std::vector<uint8_t>& bytes = image_.bytes;
    const uint64_t cluster_words = image_.cluster_size() / 8;
    std::vector<const BuiltL1Table*> l1_tables = {&image_.l1};
    for (const BuiltSnapshot& snapshot : image_.snapshots) l1_tables.push_back(&snapshot.l1);
    for (const BuiltL1Table* l1 : l1_tables) {
      // An L1 entry carries more than an L2 entry does.
      for (int i = 0; i < 4; ++i) AddTable(bytes, l1->offset, l1->entries);
      for (const BuiltL2Table& l2 : l1->l2_tables) AddTable(bytes, l2.host_offset, cluster_words);
    }
    AddTable(bytes, image_.refcount_table.offset, image_.refcount_table.length / 8);
    AddTable(bytes, image_.snapshot_table.offset, image_.snapshot_table.length / 8);
    AddTable(bytes, image_.bitmap_directory.offset, image_.bitmap_directory.length / 8);
    for (const BuiltBitmap& bitmap : image_.bitmaps) {
      AddTable(bytes, bitmap.table_offset, bitmap.table_entries);
    }
  }

  // Places stay those of the image as it was built; the file may be shorter by now.
  uint64_t Place(const std::vector<uint8_t>& bytes) {
    for (int i = 0; i < 20; ++i) {
      const uint64_t place = dice_.OneOf(words_);
      if (place + 8 <= bytes.size()) return place;
    }
    return 24;  // the header's size field
  }

  std::string FlipWordBit(std::vector<uint8_t>& bytes) {
    const uint64_t place = Place(bytes);
    const int bit = static_cast<int>(dice_.Below(64));
    FlipBit64(bytes, place, bit);
    return absl::StrFormat("bit %d of the word at 0x%x flipped", bit, place);
  }

  uint64_t Interesting(const std::vector<uint8_t>& bytes) {
    const uint64_t size = image_.cluster_size();
    const uint64_t cluster = dice_.Below(bytes.size() / size + 3) * size;
    const uint64_t copied = dice_.Percent(50) ? kCopiedBit : 0;
    switch (dice_.Below(9)) {
      case 0:
        return dice_.OneOf<uint64_t>({0, kZeroBit, kCopiedBit, ~uint64_t{0}, kCompressedBit});
      case 1:
        return (cluster + 512) | copied;
      case 2:
        return EncodeCompressed({cluster + dice_.Below(size), dice_.Between(1, size)},
                                image_.geometry.cluster_bits);
      case 3:
        return cluster | copied | kZeroBit;
      case 4:
        return uint64_t{1} << dice_.Between(20, 62) | copied;
      case 5:
        return dice_.Below(~uint64_t{0});
      default:
        return cluster | copied;
    }
  }

  std::string PutInteresting(std::vector<uint8_t>& bytes) {
    const uint64_t place = Place(bytes);
    const uint64_t value = Interesting(bytes);
    Poke64(bytes, place, value);
    return absl::StrFormat("the word at 0x%x set to 0x%016x", place, value);
  }

  std::string Swap(std::vector<uint8_t>& bytes) {
    const uint64_t one = Place(bytes), other = Place(bytes);
    const uint64_t word = Peek64(bytes, one);
    Poke64(bytes, one, Peek64(bytes, other));
    Poke64(bytes, other, word);
    return absl::StrFormat("the words at 0x%x and 0x%x swapped", one, other);
  }

  std::string Copy(std::vector<uint8_t>& bytes) {
    const uint64_t from = Place(bytes), to = Place(bytes);
    Poke64(bytes, to, Peek64(bytes, from));
    return absl::StrFormat("the word at 0x%x copied to 0x%x", from, to);
  }

  std::string CopyCluster(std::vector<uint8_t>& bytes) {
    const uint64_t size = image_.cluster_size();
    const uint64_t clusters = bytes.size() / size;
    if (clusters < 2) return "nothing";
    const uint64_t from = dice_.Below(clusters) * size;
    const uint64_t to = dice_.Between(1, clusters - 1) * size;
    std::copy_n(bytes.begin() + static_cast<int64_t>(from), size,
                bytes.begin() + static_cast<int64_t>(to));
    return absl::StrFormat("the cluster at 0x%x copied to 0x%x", from, to);
  }

  std::string ChangeRefcount(std::vector<uint8_t>& bytes) {
    const Geometry& geometry = image_.geometry;
    const uint64_t cluster = dice_.Below(bytes.size() / image_.cluster_size() + 4);
    const uint64_t index = cluster / geometry.refcount_block_entries();
    const uint64_t block =
        index < image_.refcount_blocks.size() ? image_.refcount_blocks[index] : 0;
    if (block == 0 || block + image_.cluster_size() > bytes.size()) return "nothing";
    const uint64_t count = dice_.OneOf<uint64_t>({0, 0, 1, 2, 3, geometry.refcount_max()});
    StoreRefcount(&bytes[block], cluster % geometry.refcount_block_entries(),
                  geometry.refcount_order, std::min(count, geometry.refcount_max()));
    return absl::StrFormat("refcount of cluster %d set to %d", cluster, count);
  }

  std::string ChangeSize(std::vector<uint8_t>& bytes) {
    const uint64_t size = image_.cluster_size();
    const uint64_t most = bytes.size() + 2 * size;
    uint64_t to = dice_.Percent(50) ? bytes.size() - dice_.Below(std::min(bytes.size(), 5 * size))
                                    : dice_.Between(bytes.size() / 2, most);
    if (dice_.Percent(30)) to = RoundUp(to, size);
    to = std::max<uint64_t>(to, 600);
    bytes.resize(to);
    return absl::StrFormat("file size set to %d", to);
  }

  std::string ChangeHeader(std::vector<uint8_t>& bytes) {
    const HeaderField& field = kHeaderFields[dice_.Between(4, kHeaderFields.size() - 1)];
    if (field.since > static_cast<uint32_t>(image_.geometry.version)) return "nothing";
    if (dice_.Percent(40)) {
      const uint64_t byte = field.offset + dice_.Below(field.width);
      const int bit = static_cast<int>(dice_.Below(8));
      FlipBit(bytes, byte, bit);
      return absl::StrFormat("bit %d of byte %d of %s flipped", bit, byte - field.offset,
                             field.name);
    }
    const uint64_t value = field.width == 8 ? Interesting(bytes) & ~kCopiedBit
                                            : dice_.Below(field.width == 1 ? 3 : 90);
    if (field.width == 8) Poke64(bytes, field.offset, value);
    if (field.width == 4) Poke32(bytes, field.offset, static_cast<uint32_t>(value));
    if (field.width == 1) bytes[field.offset] = static_cast<uint8_t>(value);
    return absl::StrFormat("%s set to 0x%x", field.name, value);
  }

  Dice& dice_;
  const BuiltImage& image_;
  std::vector<uint64_t> words_;
};

// --- Running ---

std::string Describe(const ImageOptions& options) {
  return absl::StrFormat(
      "version %d, cluster bits %d, refcount order %d, %d bytes, %d steps, %d bitmaps%s%s%s",
      options.version, options.cluster_bits, options.refcount_order, options.virtual_size,
      options.steps.size(), options.bitmaps.size(), options.extended_l2 ? ", extended L2" : "",
      options.data_file ? ", data file" : "", options.luks ? ", LUKS" : "");
}

struct DamagedImage {
  std::vector<uint8_t> bytes;
  std::string damage;
};

// The image of a seed, as it was built and damaged in several ways.
struct Case {
  uint64_t seed = 0;
  ImageOptions options;
  BuiltImage built;
  std::vector<DamagedImage> damaged;
};

Case MakeCase(uint64_t seed, uint64_t damaged) {
  Dice dice(seed);
  Case result;
  result.seed = seed;
  result.options = RandomOptions(dice).Make();
  result.built = BuildImage(result.options);
  RandomDamage damage(dice, result.built);
  for (uint64_t i = 0; i < damaged; ++i) {
    DamagedImage image = {result.built.bytes, ""};
    for (uint64_t times = dice.Between(1, 3); times > 0; --times) {
      absl::StrAppend(&image.damage, image.damage.empty() ? "" : "; ", damage.Apply(image.bytes));
    }
    result.damaged.push_back(std::move(image));
  }
  return result;
}

TEST(ReferenceRandom, UndamagedImagesAreClean) {
  int failures = 0;
  const Seeds seeds = SeedsToTest();
  for (uint64_t seed = seeds.first; seed < seeds.end && failures < kMostFailuresShown; ++seed) {
    const Case one = MakeCase(seed, 0);
    const Report report = CheckBytes(one.built.bytes);
    const ReferenceReport reference = ReferenceCheck(one.built.bytes);
    const bool clean =
        report.verdict == Verdict::kClean && reference.corruptions == 0 && reference.leaks == 0;
    const std::string differences = Differences(report, reference);
    if (clean && differences.empty()) continue;
    ++failures;
    ADD_FAILURE() << "seed " << seed << ": " << Describe(one.options) << "\n"
                  << differences << Digest(report, true);
  }
}

TEST(ReferenceRandom, DamagedImagesGetTheSameFindings) {
  int failures = 0;
  uint64_t images = 0;
  std::map<std::string, uint64_t> skipped;
  std::map<FindingCode, uint64_t> seen;
  uint64_t skips = 0;
  const Seeds seeds = SeedsToTest();
  for (uint64_t seed = seeds.first; seed < seeds.end && failures < kMostFailuresShown; ++seed) {
    const Case one = MakeCase(seed, kDamagedPerSeed);
    for (const DamagedImage& image : one.damaged) {
      ++images;
      const Report report = CheckBytes(image.bytes);
      for (const CodeTotal& total : report.code_totals) ++seen[total.code];
      const std::string why_not = WhyNotComparable(report);
      if (!why_not.empty()) {
        ++skips;
        ++skipped[why_not];
        continue;
      }
      const std::string differences = Differences(report, ReferenceCheck(image.bytes));
      if (differences.empty()) continue;
      ++failures;
      ADD_FAILURE() << "seed " << seed << ": " << Describe(one.options) << "\n"
                    << image.damage << "\n"
                    << differences;
      if (failures >= kMostFailuresShown) break;
    }
  }
  for (const auto& [why, count] : skipped) {
    std::printf("%s: %d images not compared\n", why.c_str(), static_cast<int>(count));
  }
  if (failures != 0 || seeds.end - seeds.first < kSeeds) return;
  EXPECT_GE(images, 5000u);
  EXPECT_LT(skips * 5, images) << "too few images could be compared";
  // The damage reaches all that the reference computes but a few that need more of an accident.
  uint64_t computed = 0;
  for (const FindingCode code : ReferenceCodes()) {
    computed += seen.count(code) != 0 ? 1 : 0;
    if (seen.count(code) == 0) std::printf("never: %s\n", std::string(InfoOf(code).name).c_str());
  }
  EXPECT_GE(computed * 10, ReferenceCodes().size() * 8);
}

TEST(ReferenceRandom, ListingFewerFindingsChangesNoTotals) {
  const Seeds seeds = SeedsToTest();
  for (uint64_t seed = seeds.first; seed < seeds.end; seed += 4) {
    for (const DamagedImage& image : MakeCase(seed, 3).damaged) {
      ASSERT_EQ(Digest(CheckBytes(image.bytes, 1), false), Digest(CheckBytes(image.bytes), false))
          << "seed " << seed << ": " << image.damage;
    }
  }
}

// A file as programs write it, or with holes where clusters are zero.
void StoreImage(const std::string& path, const std::vector<uint8_t>& bytes, bool holes) {
  if (!holes) return WriteFile(path, bytes);
  constexpr size_t kBlock = 4096;
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  for (size_t at = 0; at < bytes.size(); at += kBlock) {
    const size_t end = std::min(bytes.size(), at + kBlock);
    const bool zero = std::all_of(bytes.begin() + static_cast<int64_t>(at),
                                  bytes.begin() + static_cast<int64_t>(end),
                                  [](uint8_t byte) { return byte == 0; });
    if (zero && end != bytes.size()) continue;
    file.seekp(static_cast<std::streamoff>(at));
    file.write(reinterpret_cast<const char*>(&bytes[at]), static_cast<std::streamsize>(end - at));
  }
}

Report CheckFile(const std::string& path) {
  const auto file = PosixFile::Open(path);
  if (!file.ok()) return {};
  return CheckImage(**file, {.max_findings = 1'000'000});
}

TEST(ReferenceRandom, FilesAndMemoryGiveTheSameReport) {
  const TempDir dir;
  const std::string path = dir.Path("image.qcow2");
  const Seeds seeds = SeedsToTest();
  for (uint64_t seed = seeds.first; seed < seeds.end; seed += 8) {
    for (const DamagedImage& image : MakeCase(seed, 2).damaged) {
      const std::string in_memory = Digest(CheckBytes(image.bytes), true);
      StoreImage(path, image.bytes, false);
      ASSERT_EQ(Digest(CheckFile(path), true), in_memory) << "seed " << seed;
      StoreImage(path, image.bytes, true);
      const Report sparse = CheckFile(path);
      // A hole where an L2 table should be is evidence that memory does not have.
      if (WhyNotComparable(sparse) == "lost-l2-table") continue;
      ASSERT_EQ(Digest(sparse, true), in_memory) << "seed " << seed << ", with holes";
    }
  }
}

}  // namespace
}  // namespace qcow2check::testing

// make_seeds DIRECTORY: writes the inputs that the fuzzers begin with, DIRECTORY/TARGET/NAME: an
// image for every feature of the format, made by the image builder, sound and with each accident of
// tests/damage.h; text of images too large to be bytes; undo files of their repairs; first
// clusters.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "fuzz/input.h"
#include "tests/damage.h"
#include "tests/dice.h"
#include "tests/image_builder.h"
#include "tests/image_text.h"
#include "tests/plain_promises.h"
#include "tests/repair_corpus.h"

namespace qcow2check::testing {
namespace {

// Longer inputs are slow to change; their text is short.
constexpr uint64_t kMostImageBytes = 16 << 10;
constexpr uint64_t kMostTextBytes = 32 << 10;

struct Feature {
  std::string name;
  ImageOptions options;
};

// Data whose text is short, for large clusters.
Step WriteFill(uint64_t cluster, int cluster_bits) {
  return Write{.guest_offset = cluster << cluster_bits,
               .length = uint64_t{1} << cluster_bits,
               .fill = static_cast<uint8_t>(0x40 + cluster)};
}

// A disk with some data on it.
ImageOptions Full(ImageOptions options) {
  options.virtual_size = uint64_t{24} << options.cluster_bits;
  for (const uint64_t cluster : {0, 1, 2, 9, 12}) {
    options.steps.push_back(WriteFill(cluster, options.cluster_bits));
  }
  return options;
}

std::vector<Feature> Features() {
  std::vector<Feature> features = {
      {"empty", {.cluster_bits = 9, .virtual_size = 1 << 20}},
      {"version-2", Full({.version = 2, .cluster_bits = 9})},
      {"version-3", Full({.cluster_bits = 9})},
      {"long-header", Full({.cluster_bits = 9, .header_length = 152})},
      {"lazy-refcounts", Full({.cluster_bits = 9, .lazy_refcounts = true, .dirty = true})},
      {"corrupt-bit", Full({.cluster_bits = 9, .corrupt = true})},
      {"larger-l1", Full({.cluster_bits = 9, .extra_l1_entries = 5})},
      {"backing", Full({.cluster_bits = 9, .backing = BackingOptions{}})},
      {"data-file", Full({.cluster_bits = 9, .data_file = DataFileOptions{}})},
      {"raw-data-file", Full({.cluster_bits = 9, .data_file = DataFileOptions{.raw = true}})},
      {"luks", Full({.cluster_bits = 9, .luks = LuksOptions{.key_bytes = 16, .stripes = 4}})},
      {"unknown-extension",
       Full({.cluster_bits = 9, .extensions = {{0x12345678, {1, 2, 3, 4, 5}}}})},
      {"feature-names", Full({.cluster_bits = 10, .feature_names = true})},
      {"end-at-last-byte", Full({.cluster_bits = 9, .end_at_last_byte = true})},
      {"trailing-bytes", Full({.cluster_bits = 9, .trailing_bytes = 700})},
      {"extended-l2", Full({.cluster_bits = 14, .extended_l2 = true})},
      {"clusters-4k", Full({.cluster_bits = 12})},
      {"clusters-64k", Full({.cluster_bits = 16})},
      // As full as the others it would be too large, even as text.
      {"clusters-2m",
       {.cluster_bits = 21,
        .steps = {Write{.guest_offset = 5 << 21, .length = 512, .fill = 0x41}}}},
  };
  for (int order = 0; order <= 6; ++order) {
    features.push_back({absl::StrCat("refcount-order-", order),
                        Full({.cluster_bits = 9, .refcount_order = order})});
  }
  for (Feature& feature : features) {
    if (feature.name != "extended-l2") continue;
    feature.options.steps.push_back(WriteZeros{.first = 1, .subclusters = 0xff});
  }

  ImageOptions zeros = Full({.cluster_bits = 9});
  zeros.steps.push_back(WriteZeros{.first = 1});
  zeros.steps.push_back(WriteZeros{.first = 12, .count = 2, .preallocated = true});
  zeros.steps.push_back(Discard{.first = 0});
  features.push_back({"zero-clusters", zeros});

  for (const CompressionType type : {kDeflate, kZstd}) {
    ImageOptions compressed =
        Full({.cluster_bits = 9, .compression_type = type, .header_length = 112});
    compressed.steps.push_back(WriteCompressed{.first = 4, .count = 4, .random_bytes = 120});
    features.push_back({type == kZstd ? "zstd" : "deflate", compressed});
  }

  ImageOptions snapshots = Full({.cluster_bits = 9});
  snapshots.steps.push_back(TakeSnapshot{.name = "one"});
  snapshots.steps.push_back(WriteClusters{.first = 1, .count = 2});
  snapshots.steps.push_back(TakeSnapshot{.name = "two", .vm_state_bytes = 700});
  snapshots.steps.push_back(WriteCompressed{.first = 2});
  features.push_back({"snapshots", snapshots});
  snapshots.steps.push_back(Resize{.virtual_size = 64 << 10});
  snapshots.snapshot_extra_bytes = 16;
  features.push_back({"resized-after-snapshots", snapshots});
  snapshots.version = 2;
  snapshots.snapshot_extra_bytes = 0;
  features.push_back({"version-2-snapshots", snapshots});

  ImageOptions bitmaps = Full({.cluster_bits = 9});
  bitmaps.bitmaps = {
      {.name = "one", .granularity_bits = 9, .dirty = {{0, 2000}}},
      {.name = "two", .granularity_bits = 10, .in_use = true, .auto_flag = true},
      {.name = "three", .granularity_bits = 9, .use_all_ones = true, .dirty = {{0, 12 << 10}}}};
  features.push_back({"bitmaps", bitmaps});
  return features;
}

class SeedWriter {
 public:
  explicit SeedWriter(std::filesystem::path directory) : directory_(std::move(directory)) {}

  void Write(const std::string& target, const std::string& name, absl::string_view bytes) const {
    std::filesystem::create_directories(directory_ / target);
    std::ofstream file(directory_ / target / name, std::ios::binary);
    file << bytes;
    QCOW2CHECK_CHECK(file.flush().good());
  }
  void Write(const std::string& target, const std::string& name,
             const std::vector<uint8_t>& bytes) const {
    Write(target, name, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  }

  // False if the image, even as text, is too large for the targets that take a whole one.
  bool WriteImage(const std::string& name, const std::vector<uint8_t>& bytes) const {
    const SparseFile image(absl::MakeConstSpan(bytes));
    const std::string text = FormatImageText(image);
    Write("header", name, image.Bytes(0, std::min<uint64_t>(bytes.size(), 2048)));
    const bool as_bytes = bytes.size() <= kMostImageBytes;
    if (!as_bytes && text.size() > kMostTextBytes) return false;
    for (const char* target : {"check", "repair"}) {
      if (as_bytes) {
        Write(target, name, bytes);
      } else {
        Write(target, name, text);
      }
    }
    WriteUndo(name, image);
    return true;
  }

 private:
  // Of a repair that finished, and of one that was cut off before it wrote anything.
  void WriteUndo(const std::string& name, const SparseFile& image) const {
    if (image.size_bytes() > kMostImageBytes) return;
    const RepairRun run = RunRepair(image);
    std::vector<uint8_t> log = run.undo_log.Bytes();
    if (log.size() < 512) return;
    Write("undo", name, Encode({run.after, log}));
    std::fill(log.end() - 512, log.end(), uint8_t{0});
    Write("undo", name + "-cut-off", Encode({run.before, log}));
  }

  std::filesystem::path directory_;
};

// What the accidents need: L2 tables, and data in more than one.
ImageOptions DamagedOptions(int cluster_bits) {
  ImageOptions options = {.cluster_bits = cluster_bits,
                          .virtual_size = uint64_t{150} << cluster_bits << (cluster_bits - 9)};
  const uint64_t table_clusters = uint64_t{1} << (cluster_bits - 3);
  for (uint64_t i = 0; i < 18; ++i) {
    options.steps.push_back(WriteFill(i % 3 + i % 2 * table_clusters + i, cluster_bits));
  }
  return options;
}

void MakeSeeds(const SeedWriter& writer) {
  for (const Feature& feature : Features()) {
    QCOW2CHECK_CHECK(writer.WriteImage(feature.name, BuildImage(feature.options).bytes));
  }
  for (const int cluster_bits : {9, 16}) {
    for (const FieldDamage& damage : AllFieldDamages()) {
      // Nothing is misaligned where clusters are sectors.
      if (damage.name == "entry-misaligned" && cluster_bits == 9) continue;
      BuiltImage image = BuildImage(DamagedOptions(cluster_bits));
      damage.apply(image);
      writer.WriteImage(absl::StrCat(damage.name, "-", cluster_bits), image.bytes);
    }
  }
  constexpr uint64_t kRandomImages = 120;
  for (uint64_t seed = 0; seed < kRandomImages; ++seed) {
    Dice dice(seed);
    const CorpusImage image = MakeCorpusImage(seed);
    if (image.bytes.size() > 2 * kMostImageBytes) continue;
    writer.WriteImage(absl::StrCat("random-", seed), DamageImage(image, dice).bytes);
  }
}

// Images may be text; the other targets want bytes.
void AddRegressions(const SeedWriter& writer) {
  const std::filesystem::path all = QCOW2CHECK_SOURCE_DIR "/corpora/regressions";
  if (!std::filesystem::exists(all)) return;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(all)) {
    if (!entry.is_regular_file()) continue;
    const std::string target = entry.path().parent_path().filename();
    std::ifstream file(entry.path(), std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    if (target == "check" || target == "repair") {
      writer.Write(target, entry.path().filename(), text);
    } else if (const absl::StatusOr<SparseFile> bytes = ParseSparseImage(text); bytes.ok()) {
      writer.Write(target, entry.path().filename(), bytes->Bytes());
    }
  }
}

}  // namespace
}  // namespace qcow2check::testing

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fputs("usage: make_seeds DIRECTORY\n", stderr);
    return 2;
  }
  const qcow2check::testing::SeedWriter writer(argv[1]);
  qcow2check::testing::MakeSeeds(writer);
  qcow2check::testing::AddRegressions(writer);
  return 0;
}

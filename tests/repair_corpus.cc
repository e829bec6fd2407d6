#include "tests/repair_corpus.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/byte_order.h"
#include "common/header.h"
#include "tests/disk_image.h"
#include "tests/program.h"
#include "tests/random_damage.h"

namespace qcow2check::testing {
namespace {

class RandomImage {
 public:
  explicit RandomImage(Dice& dice) : dice_(dice) {}

  ImageOptions Make() {
    ChooseKind();
    cluster_size_ = uint64_t{1} << options_.cluster_bits;
    ChooseDisk();
    if (options_.version == 3) ChooseVersion3Options();
    if (dice_.Percent(20)) options_.extra_l1_entries = dice_.Between(1, 5);
    options_.end_at_last_byte = dice_.Percent(15);
    for (uint64_t steps = dice_.Between(2, 7); steps > 0; --steps) AddStep();
    // Something to lose, whatever the steps were.
    if (!dice_.Percent(10)) options_.steps.push_back(WriteClusters{0, std::min(clusters_, 8ul)});
    return std::move(options_);
  }

 private:
  void ChooseKind() {
    options_.version = dice_.Percent(20) ? 2 : 3;
    options_.extended_l2 = options_.version == 3 && dice_.Percent(10);
    options_.cluster_bits = dice_.OneOf<int>({9, 9, 9, 10, 10, 11, 12, 12, 12, 13, 14, 15, 16, 16});
    if (options_.extended_l2) options_.cluster_bits = dice_.OneOf<int>({14, 14, 15, 16});
    if (dice_.Percent(2) && !options_.extended_l2) {
      options_.cluster_bits = dice_.OneOf<int>({18, 20, 21});
    }
    if (options_.version == 3) options_.refcount_order = static_cast<int>(dice_.Below(7));
    if (options_.version == 3 && dice_.Percent(7)) {
      options_.data_file = DataFileOptions{.name = kCorpusDataFileName, .raw = dice_.Percent(50)};
    } else if (dice_.Percent(15)) {
      options_.backing = BackingOptions{.file = kCorpusBackingName, .format = "raw"};
    }
    if (dice_.Percent(3)) options_.luks = LuksOptions{.key_bytes = 16, .active_slots = 1};
  }

  // A disk of one to three L2 tables; the last one need not be full.
  void ChooseDisk() {
    const uint64_t entry_bytes = options_.extended_l2 ? 16 : 8;
    table_clusters_ = cluster_size_ / entry_bytes;
    most_clusters_ = options_.cluster_bits >= 18 ? 3 : options_.cluster_bits >= 14 ? 12 : 40;
    clusters_ = dice_.Between(1, 3 * table_clusters_);
    if (options_.data_file || options_.cluster_bits >= 18) {
      clusters_ = std::min<uint64_t>(clusters_, 80);
    }
    options_.virtual_size = clusters_ * cluster_size_;
    if (dice_.Percent(10) && cluster_size_ > 512) options_.virtual_size -= 512;
  }

  void ChooseVersion3Options() {
    options_.header_length = dice_.Percent(50) ? 104 : 112;
    options_.lazy_refcounts = dice_.Percent(15);
    if (options_.header_length > 104 && dice_.Percent(20)) options_.compression_type = kZstd;
    if (!dice_.Percent(20)) return;
    for (uint64_t i = dice_.Between(1, 3); i > 0; --i) {
      BitmapOptions bitmap;
      bitmap.name = absl::StrCat("bitmap", i);
      bitmap.granularity_bits = static_cast<int>(dice_.Between(9, 13));
      bitmap.in_use = dice_.Percent(20);
      bitmap.dirty = {{0, dice_.Below(options_.virtual_size)}};
      options_.bitmaps.push_back(bitmap);
    }
  }

  // The first guest cluster of a step: near the start of one of the L2 tables.
  uint64_t First() {
    const uint64_t tables = (clusters_ + table_clusters_ - 1) / table_clusters_;
    const uint64_t first = dice_.Below(tables) * table_clusters_ + dice_.Below(20);
    return std::min(first, clusters_ - 1);
  }
  uint64_t CountFrom(uint64_t first) {
    return dice_.Between(1, std::min<uint64_t>(clusters_ - first, most_clusters_));
  }
  bool SnapshotsAllowed() const { return !options_.data_file && options_.refcount_order >= 3; }

  void AddStep() {
    const uint64_t first = First();
    const uint64_t count = CountFrom(first);
    switch (dice_.Below(10)) {
      case 0:
        options_.steps.push_back(Write{first * cluster_size_ + dice_.Below(cluster_size_) / 2,
                                       dice_.Between(1, cluster_size_ / 2)});
        return;
      case 1:
      case 2:
        if (options_.data_file || compressed_ + count > 30) break;
        compressed_ += count;
        options_.steps.push_back(
            WriteCompressed{first, count, dice_.Percent(50) ? dice_.Below(cluster_size_ / 3) : 0});
        return;
      case 3:
        if (options_.version < 3) break;
        options_.steps.push_back(WriteZeros{first, count, dice_.Percent(50), Subclusters()});
        return;
      case 4:
        options_.steps.push_back(Discard{first, count});
        return;
      case 5:
      case 6:
        if (!SnapshotsAllowed() || snapshots_ >= 3) break;
        ++snapshots_;
        options_.steps.push_back(
            TakeSnapshot{.vm_state_bytes = dice_.Percent(30) ? dice_.Between(1, 3000) : 0});
        return;
      case 7:
        if (snapshots_ < 2 || deleted_) break;
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
  uint64_t cluster_size_ = 0;
  uint64_t table_clusters_ = 0;  // that one L2 table maps
  uint64_t clusters_ = 0;        // of the disk
  uint64_t most_clusters_ = 0;   // of a step
  uint64_t compressed_ = 0;
  uint64_t snapshots_ = 0;
  bool deleted_ = false;
};

std::string Describe(const ImageOptions& options) {
  return absl::StrCat(
      "version ", options.version, ", ", 1 << options.cluster_bits, "-byte clusters, ",
      1 << options.refcount_order, "-bit refcounts", options.extended_l2 ? ", extended L2" : "",
      options.backing ? ", backing file" : "", options.data_file ? ", data file" : "",
      options.luks ? ", LUKS" : "", options.bitmaps.empty() ? "" : ", bitmaps");
}

// One of QEMU's images: how it is made, and what happens to it then.
struct QemuRecipe {
  std::string name;
  std::string options;
  std::string size;
  std::vector<std::string> before_snapshot;
  bool snapshot = false;
  std::vector<std::string> afterwards;
};

std::vector<QemuRecipe> QemuRecipes() {
  const std::vector<std::string> writes = {"write -P 17 0 256k", "write -P 18 1M 320k",
                                           "write -P 19 3M 64k", "write -P 20 7M 192k"};
  const std::vector<std::string> more = {"write -P 33 64k 128k", "write -P 34 2M 128k",
                                         "write -z 3M 64k", "discard 1M 64k"};
  return {
      {"plain", "", "64M", writes, false, more},
      {"snapshot", "", "64M", writes, true, more},
      {"version 2", "compat=0.10", "64M", writes, true, {"write -P 33 64k 128k"}},
      {"small clusters", "cluster_size=512", "8M", writes, true, more},
      {"4 KiB clusters", "cluster_size=4k", "64M", writes, true, more},
      {"2 MiB clusters",
       "cluster_size=2M",
       "64M",
       {"write -P 1 0 1M", "write -P 2 8M 2M"},
       false,
       {}},
      {"1-bit refcounts", "refcount_bits=1", "64M", writes, false, more},
      {"64-bit refcounts", "refcount_bits=64,cluster_size=1k", "64M", writes, true, more},
      {"extended L2", "extended_l2=on", "64M", writes, true, more},
      {"preallocated", "preallocation=metadata,cluster_size=8k", "8M", writes, false, more},
      {"lazy refcounts", "lazy_refcounts=on", "64M", writes, false, more},
      {"zlib",
       "cluster_size=16k",
       "8M",
       writes,
       false,
       {"write -c -P 5 4M 64k", "write -c -P 6 5M 16k"}},
      {"zstd",
       "compression_type=zstd",
       "64M",
       {"write -c -P 5 0 256k", "write -c -P 6 5M 64k"},
       true,
       more},
  };
}

CorpusImage Load(const std::string& name, const std::string& path) {
  CorpusImage image;
  image.name = absl::StrCat("qemu, ", name);
  image.bytes = ReadFile(path);
  image.has_backing = DecodeHeader(absl::MakeSpan(image.bytes).first(112)).backing_file_offset != 0;
  image.places = PlacesOf(image.bytes);
  // qemu-io writes the same byte everywhere; now each cluster is one of its kind.
  for (const uint64_t cluster : image.places.data_clusters) {
    if (image.places.compressed_clusters.contains(cluster)) continue;
    if (cluster + 16 > image.bytes.size()) continue;
    Store64(&image.bytes[cluster], uint64_t{0x3d} << 56 | cluster);
  }
  return image;
}

CorpusImage MakeQemuImageWithBitmaps() {
  const DiskImage image("8M", "cluster_size=4k");
  for (const char* name : {"one", "two"}) {
    QemuImg({"bitmap", "--add", "-g", "4k", image.path(), name});
    image.Io({"write -P 7 0 128k", "write -P 8 3M 64k"});
  }
  return Load("bitmaps", image.path());
}

CorpusImage MakeQemuImageWithBacking() {
  const DiskImage image;
  const std::string backing = image.Beside(kCorpusBackingName);
  WriteFile(backing, std::vector<uint8_t>(kCorpusBackingBytes, kCorpusBackingByte));
  QemuImg({"create", "-q", "-f", "qcow2", "-F", "raw", "-b", kCorpusBackingName, "-o",
           "cluster_size=4k", image.path(), "4M"});
  image.Io({"write -P 7 0 128k", "write -P 8 3M 64k", "write -z 1M 64k"});
  return Load("backing file", image.path());
}

CorpusImage MakeQemuImageWithDataFile() {
  const DiskImage image;
  QemuImg({"create", "-q", "-f", "qcow2", "-o",
           absl::StrCat("cluster_size=4k,data_file=", image.Beside(kCorpusDataFileName)),
           image.path(), "1M"});
  image.Io({"write -P 7 0 128k", "write -P 8 512k 64k", "write -z 768k 64k"});
  CorpusImage made = Load("data file", image.path());
  made.data_file = ReadFile(image.Beside(kCorpusDataFileName));
  return made;
}

}  // namespace

ImageOptions RandomImageOptions(Dice& dice) { return RandomImage(dice).Make(); }

CorpusImage CorpusImageOf(std::string name, const ImageOptions& options, const BuiltImage& built) {
  CorpusImage image;
  image.name = std::move(name);
  image.bytes = built.bytes;
  image.data_file = built.data_file_bytes;
  image.has_backing = options.backing.has_value();
  image.encrypted = options.luks.has_value();
  image.places = PlacesOf(image.bytes);
  return image;
}

CorpusImage MakeCorpusImage(uint64_t seed) {
  Dice dice(seed);
  const ImageOptions options = RandomImageOptions(dice);
  return CorpusImageOf(absl::StrCat("seed ", seed, ": ", Describe(options)), options,
                       BuildImage(options));
}

std::vector<CorpusImage> MakeQemuImages() {
  std::vector<CorpusImage> images;
  for (const QemuRecipe& recipe : QemuRecipes()) {
    const DiskImage image(recipe.size, recipe.options);
    image.Io(recipe.before_snapshot);
    if (recipe.snapshot) image.TakeSnapshot("before");
    if (!recipe.afterwards.empty()) image.Io(recipe.afterwards);
    images.push_back(Load(recipe.name, image.path()));
  }
  images.push_back(MakeQemuImageWithBitmaps());
  images.push_back(MakeQemuImageWithBacking());
  images.push_back(MakeQemuImageWithDataFile());
  return images;
}

DamagedImage DamageImage(const CorpusImage& image, Dice& dice) {
  DamagedImage damaged = {"", image.bytes};
  for (uint64_t times = dice.Between(1, 3); times > 0; --times) {
    absl::StrAppend(&damaged.damage, damaged.damage.empty() ? "" : "; ",
                    DamageAtRandom(dice, image.places, damaged.bytes));
  }
  return damaged;
}

std::string DifferenceFromQemu(const CorpusImage& image) {
  const TempDir dir;
  std::string source = absl::StrCat("driver=qcow2,file.driver=file,file.filename=",
                                    dir.Write("image.qcow2", image.bytes));
  if (image.places.geometry.data_file) {
    absl::StrAppend(&source, ",data-file.driver=file,data-file.filename=",
                    dir.Write(kCorpusDataFileName, image.data_file));
  }
  if (image.has_backing) {
    dir.Write(kCorpusBackingName, std::vector<uint8_t>(kCorpusBackingBytes, kCorpusBackingByte));
  }
  const uint64_t end_bytes = DecodeHeader(absl::MakeSpan(image.bytes).first(112)).size;
  const GuestView ours = ReadDisk(image.View(), end_bytes);
  const std::string converted_path = dir.Path("converted.qcow2");
  const CommandResult convert =
      RunCommand({"qemu-img", "convert", "--salvage", "-t", "unsafe", "--image-opts", "-O", "qcow2",
                  "-o", absl::StrCat("cluster_size=", ours.unit_bytes), source, converted_path});
  if (convert.exit_code != 0) return convert.err;
  const std::vector<uint8_t> converted = ReadFile(converted_path);
  const GuestView qemus = ReadDisk({converted, {}}, end_bytes);
  const GuestUnit backing =
      UnitOf(std::vector<uint8_t>(ours.unit_bytes, kCorpusBackingByte), false);
  std::set<uint64_t> offsets;
  for (const auto& [offset, unit] : ours.units) offsets.insert(offset);
  for (const auto& [offset, unit] : qemus.units) offsets.insert(offset);
  for (const uint64_t offset : offsets) {
    GuestUnit unit = ours.At(offset);
    const bool from_backing =
        unit.read == GuestRead::kNothing && image.has_backing && offset < kCorpusBackingBytes;
    if (from_backing) unit = backing;
    if (unit.read != GuestRead::kData) unit = {};
    if (unit != qemus.At(offset)) return absl::StrFormat("guest 0x%x reads otherwise", offset);
  }
  return "";
}

}  // namespace qcow2check::testing

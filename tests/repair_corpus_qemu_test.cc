// The repair beside `qemu-img check -r all`, on copies of the same damaged images: images of the
// builder (those of repair_corpus_test.cc) and images that QEMU's own tools made.
//
// qemu-img must agree that our result is as good as our report says, and read from it what the
// guest view reads. On no image may ours be worse than qemu-img's. Both rates are printed.
//
// A run takes a part of the images; QCOW2CHECK_ALL_IMAGES=1 takes all. A failure prints the seed;
// QCOW2CHECK_SEEDS=FIRST:COUNT tries those alone.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/header.h"
#include "gtest/gtest.h"
#include "tests/program.h"
#include "tests/qemu.h"
#include "tests/repair_corpus.h"
#include "tests/repair_promises.h"

namespace qcow2check::testing {
namespace {

constexpr uint64_t kShards = 8;
constexpr uint64_t kSeedsPerShard = 30;
constexpr uint64_t kDamagedPerSeed = 10;
constexpr uint64_t kDamagedPerQemuImage = 25;
constexpr uint64_t kOneIn = 8;  // images that are tried, if not all are
constexpr int kMostFailuresShown = 5;

// An image after a repair by one of the two programs.
struct Result {
  int exit_code = -1;     // of qemu-img check afterwards
  uint64_t readable = 0;  // units of the disk and the snapshots that read as undamaged
  KeptData data;

  bool clean() const { return exit_code == 0; }
  // The lower, the better. Corruption that qemu-img cannot count (exit code 1) is no worse.
  int rank() const { return exit_code == 0 ? 0 : exit_code == 3 ? 1 : 2; }
};

std::string Words(const Result& result) {
  return absl::StrFormat("exit code %d, %d units readable, %d of %d data clusters kept",
                         result.exit_code, result.readable, result.data.after, result.data.before);
}

// All that is wrong is in the snapshot table, or in what only snapshots lead to; or the file was
// cut off before the L1 table.
bool OnlySnapshotsOrNothingIsLeft(const Report& report) {
  return std::all_of(report.findings.begin(), report.findings.end(), [](const Finding& finding) {
    return InfoOf(finding.code).tally != Tally::kCorruptions ||
           finding.structure == Structure::kSnapshotTable || finding.snapshot.has_value() ||
           finding.code == FindingCode::kOrphanL2Table ||
           finding.code == FindingCode::kL1OffsetInvalid ||
           finding.code == FindingCode::kFileTruncated || finding.code == FindingCode::kCorruptBit;
  });
}

// Fewer units to read, or fewer clusters kept for as many, or a worse state for as much data. Leaks
// that are held back are no worse state: that nothing of value is in them is luck. Nor is a
// snapshot table that cannot be read: qemu-img makes one up from what is left, which is clean, and
// has lost the names or the snapshots. Nor is an L1 table behind the end of the file: to qemu-img
// the disk is then empty, and clean.
bool IsWorse(const Result& ours, const Result& qemus, const Report& after) {
  if (ours.readable < qemus.readable) {
    // What is read by chance, through what is no table, is worth less than the data itself.
    const uint64_t more_readable = qemus.readable - ours.readable;
    return ours.data.after < qemus.data.after + more_readable;
  }
  if (ours.readable != qemus.readable) return false;
  if (ours.data.after != qemus.data.after) return ours.data.after < qemus.data.after;
  return ours.rank() > qemus.rank() && ours.exit_code != 3 && !OnlySnapshotsOrNothingIsLeft(after);
}
// qemu-img freed what ours holds back, and nothing of it was missed.
bool HeldBackForNothing(const Result& ours, const Result& qemus) {
  return ours.exit_code == 3 && qemus.exit_code == 0 && ours.readable == qemus.readable &&
         ours.data.after == qemus.data.after;
}

class Comparison {
 public:
  Comparison(const CorpusImage& sound, const std::vector<uint8_t>& damaged)
      : sound_(sound), damaged_(damaged) {
    if (sound.has_backing) {
      dir_.Write(kCorpusBackingName, std::vector<uint8_t>(kCorpusBackingBytes, kCorpusBackingByte));
    }
    if (sound.places.geometry.data_file) dir_.Write(kCorpusDataFileName, sound.data_file);
    const ImageBytes view = sound.View();
    const uint64_t end = DecodeHeader(absl::MakeSpan(sound.bytes).first(kHeaderBytesKnown)).size;
    end_bytes_ = end;
    disk_ = ReadDisk(view, end);
    snapshots_ = ReadSnapshots(view);
  }

  Result ByQemu() {
    const std::string path = dir_.Write("qemu.qcow2", damaged_);
    Qemu(path, {"-r", "all"});
    return ResultOf(path);
  }
  Result Ours(const std::vector<uint8_t>& repaired) {
    return ResultOf(dir_.Write("ours.qcow2", repaired));
  }

 private:
  // The data file is named without a directory, which QEMU takes for the current one.
  int Qemu(const std::string& path, const std::vector<std::string>& options) {
    // It may print gigabytes.
    std::vector<std::string> argv = {"sh",       "-c",    "exec \"$0\" \"$@\" >/dev/null 2>&1",
                                     "qemu-img", "check", "-q"};
    argv.insert(argv.end(), options.begin(), options.end());
    if (sound_.places.geometry.data_file) {
      argv.insert(argv.end(), {"--image-opts",
                               absl::StrCat("driver=qcow2,file.driver=file,file.filename=", path,
                                            ",data-file.driver=file,data-file.filename=",
                                            dir_.Path(kCorpusDataFileName))});
    } else {
      argv.insert(argv.end(), {"-f", "qcow2", path});
    }
    return RunCommand(argv).exit_code;
  }

  Result ResultOf(const std::string& path) {
    Result result;
    result.exit_code = Qemu(path, {});
    // qemu-img may have made it as long as a damaged pointer says.
    const uint64_t longest = 2 * damaged_.size() + (64 << 20);
    if (std::filesystem::file_size(path) > longest) std::filesystem::resize_file(path, longest);
    const std::vector<uint8_t> bytes = ReadFile(path);
    const ImageBytes view = {bytes, sound_.data_file};
    result.readable = CountEqual(disk_, ReadDisk(view, end_bytes_));
    std::vector<GuestView> snapshots = ReadSnapshots(view, MappedBytes(snapshots_));
    snapshots.resize(std::max(snapshots.size(), snapshots_.size()));
    for (size_t i = 0; i < snapshots_.size(); ++i) {
      result.readable += CountEqual(snapshots_[i], snapshots[i]);
    }
    result.data = DataKept(sound_, damaged_, bytes);
    return result;
  }

  const CorpusImage& sound_;
  const std::vector<uint8_t>& damaged_;
  TempDir dir_;
  uint64_t end_bytes_ = 0;
  GuestView disk_;
  std::vector<GuestView> snapshots_;
};

// What both programs did to many images.
class Rates {
 public:
  void Add(const Result& ours, const Result& qemus, uint64_t sound_units) {
    ++images_;
    if (HeldBackForNothing(ours, qemus)) ++held_back_for_nothing_;
    Add(ours, sound_units, ours_);
    Add(qemus, sound_units, qemus_);
  }
  void Print(const std::string& what) const {
    std::printf("%s: %d images\n", what.c_str(), static_cast<int>(images_));
    Print("qcow2check --repair", ours_);
    Print("qemu-img check -r all", qemus_);
    std::printf("  %d where qemu-img's result is clean without loss and ours holds clusters back\n",
                static_cast<int>(held_back_for_nothing_));
  }

 private:
  struct Sums {
    uint64_t clean = 0, only_leaks = 0, intact = 0, all_data_kept = 0, data = 0, data_kept = 0;
  };
  static void Add(const Result& result, uint64_t sound_units, Sums& sums) {
    if (result.exit_code == 0) ++sums.clean;
    if (result.exit_code == 3) ++sums.only_leaks;
    if (result.readable == sound_units) ++sums.intact;
    if (result.data.after == result.data.before) ++sums.all_data_kept;
    sums.data += result.data.before;
    sums.data_kept += result.data.after;
  }
  static void Print(const char* who, const Sums& sums) {
    std::printf(
        "  %-22s clean %d, leaks kept %d; all guest data as before the damage %d; no data "
        "cluster gone %d (%d of %d kept)\n",
        who, static_cast<int>(sums.clean), static_cast<int>(sums.only_leaks),
        static_cast<int>(sums.intact), static_cast<int>(sums.all_data_kept),
        static_cast<int>(sums.data_kept), static_cast<int>(sums.data));
  }

  uint64_t images_ = 0;
  uint64_t held_back_for_nothing_ = 0;
  Sums ours_;
  Sums qemus_;
};

struct Seeds {
  uint64_t first = 0;
  uint64_t end = 0;
};
// Of `count` in each shard.
Seeds SeedsOfShard(uint64_t shard, uint64_t count) {
  const char* wanted = std::getenv("QCOW2CHECK_SEEDS");
  unsigned long long first = 0, number = 0;
  if (wanted != nullptr && std::sscanf(wanted, "%llu:%llu", &first, &number) == 2) {
    return shard == 0 ? Seeds{first, first + number} : Seeds{};
  }
  return {shard * count, (shard + 1) * count};
}
bool IsWanted(uint64_t seed, uint64_t index) {
  if (std::getenv("QCOW2CHECK_ALL_IMAGES") != nullptr) return true;
  if (std::getenv("QCOW2CHECK_SEEDS") != nullptr) return true;
  return (seed + index) % kOneIn == 0;
}

// What is wrong with the result; empty if nothing is.
std::string TryBoth(const CorpusImage& image, const std::vector<uint8_t>& damaged, Rates& rates) {
  Comparison comparison(image, damaged);
  const RepairedImage repaired = Repair(damaged);
  const Result ours = comparison.Ours(repaired.bytes);
  const Result qemus = comparison.ByQemu();
  const Result undamaged = comparison.Ours(image.bytes);
  rates.Add(ours, qemus, undamaged.readable);
  std::string wrong;
  const Report& after = repaired.result.after;
  // Without the key, QEMU opens no encrypted image.
  if (after.verdict == Verdict::kClean && !ours.clean() && !image.encrypted) {
    absl::StrAppend(&wrong, "qemu-img does not agree that our result is clean\n");
  }
  if (after.verdict == Verdict::kLeaks && ours.rank() > 1 && !image.encrypted) {
    absl::StrAppend(&wrong, "qemu-img does not agree that there are only leaks\n");
  }
  if (!image.encrypted && IsWorse(ours, qemus, after))
    absl::StrAppend(&wrong, "qemu-img's result is better\n");
  if (ours.clean() && !image.encrypted) {
    CorpusImage result = image;
    result.bytes = repaired.bytes;
    const std::string difference = DifferenceFromQemu(result);
    if (!difference.empty()) absl::StrAppend(&wrong, "qemu-img convert: ", difference, "\n");
  }
  if (!wrong.empty()) {
    absl::StrAppend(&wrong, "ours:   ", Words(ours), "\nqemu's: ", Words(qemus), "\n");
  }
  return wrong;
}

class RepairBesideQemu : public ::testing::TestWithParam<uint64_t> {
 protected:
  void SetUp() override { QCOW2CHECK_SKIP_WITHOUT_QEMU(); }
  bool EnoughFailures() const { return failures_ >= kMostFailuresShown; }

  void Try(const CorpusImage& image, const DamagedImage& damaged, uint64_t index) {
    const std::string wrong = TryBoth(image, damaged.bytes, rates_);
    if (wrong.empty()) return;
    ++failures_;
    ADD_FAILURE() << image.name << ", image " << index << "\n" << damaged.damage << "\n" << wrong;
  }

  Rates rates_;
  int failures_ = 0;
};

TEST_P(RepairBesideQemu, BuiltImages) {
  const Seeds seeds = SeedsOfShard(GetParam(), kSeedsPerShard);
  for (uint64_t seed = seeds.first; seed < seeds.end && !EnoughFailures(); ++seed) {
    const CorpusImage image = MakeCorpusImage(seed);
    Dice dice(seed);
    for (uint64_t i = 0; i < kDamagedPerSeed && !EnoughFailures(); ++i) {
      const DamagedImage damaged = DamageImage(image, dice);
      if (IsWanted(seed, i)) Try(image, damaged, i);
    }
  }
  rates_.Print("images of the builder");
}

INSTANTIATE_TEST_SUITE_P(Shards, RepairBesideQemu, ::testing::Range(uint64_t{0}, kShards));

// Images that QEMU made, one kind a shard: the promises of every repair, and the comparison.
const std::vector<CorpusImage>& QemuImages() {
  static const auto* const images = new std::vector<CorpusImage>(MakeQemuImages());
  return *images;
}

class RepairOfQemusImages : public RepairBesideQemu {};

TEST_P(RepairOfQemusImages, PromisesAndComparison) {
  const std::vector<CorpusImage>& images = QemuImages();
  for (uint64_t kind = GetParam(); kind < images.size(); kind += kShards) {
    Dice dice(kind);
    for (uint64_t i = 0; i < kDamagedPerQemuImage && !EnoughFailures(); ++i) {
      const DamagedImage damaged = DamageImage(images[kind], dice);
      const RepairOutcome outcome = TryRepair(images[kind], damaged.bytes);
      if (!outcome.broken_promises.empty()) {
        ++failures_;
        ADD_FAILURE() << images[kind].name << " (" << kind << "), image " << i << "\n"
                      << damaged.damage << "\n"
                      << outcome.broken_promises;
      }
      if (IsWanted(kind, i)) Try(images[kind], damaged, i);
    }
  }
  rates_.Print("images of QEMU's tools");
}

INSTANTIATE_TEST_SUITE_P(Shards, RepairOfQemusImages, ::testing::Range(uint64_t{0}, kShards));

}  // namespace
}  // namespace qcow2check::testing

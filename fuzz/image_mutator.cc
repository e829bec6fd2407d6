#include "fuzz/image_mutator.h"

#include <algorithm>
#include <optional>
#include <string>

#include "checker/check.h"
#include "common/byte_order.h"
#include "common/check.h"
#include "common/checked_math.h"
#include "common/header.h"
#include "common/header_extension.h"
#include "common/refcount_block.h"
#include "common/table_entry.h"
#include "tests/dice.h"
#include "tests/image_places.h"
#include "tests/image_text.h"

namespace qcow2check::testing {
namespace {

// Larger clusters are left to the fuzzer's own changes: a mutation must be quick.
constexpr uint64_t kMostTableBytes = uint64_t{2} << 20;

bool IsInFile(const SparseFile& image, uint64_t offset, uint64_t length) {
  return offset <= image.size_bytes() && length <= image.size_bytes() - offset;
}

void Write(SparseFile& image, uint64_t offset, const std::vector<uint8_t>& bytes) {
  if (!IsInFile(image, offset, bytes.size())) return;
  QCOW2CHECK_CHECK(image.WriteAt(HostOffset{offset}, bytes).ok());
}

// The low bytes of `value`, big endian.
void WriteNumber(SparseFile& image, uint64_t offset, uint64_t value, int width) {
  std::vector<uint8_t> bytes(8);
  Store64(bytes.data(), value);
  Write(image, offset, {bytes.end() - width, bytes.end()});
}

uint64_t ReadNumber(const SparseFile& image, uint64_t offset, int width) {
  return image.Word(offset) >> (64 - 8 * width);
}

class Mutation {
 public:
  Mutation(SparseFile& image, Dice& dice)
      : image_(image), dice_(dice), places_(PlacesOf(image)), geometry_(places_.geometry) {
    cluster_size_ = geometry_.cluster_size();
  }

  void Happen() {
    using Verb = void (Mutation::*)();
    static constexpr Verb kVerbs[] = {
        &Mutation::FlipBit,    &Mutation::FlipBit,       &Mutation::Shift,
        &Mutation::Shift,      &Mutation::SetWord,       &Mutation::SetWord,
        &Mutation::Swap,       &Mutation::CrossLink,     &Mutation::CrossLink,
        &Mutation::SetField,   &Mutation::SetField,      &Mutation::Resize,
        &Mutation::OverTable,  &Mutation::OverTable,     &Mutation::SetRefcount,
        &Mutation::AddEntry,   &Mutation::AddEntry,      &Mutation::AddEntry,
        &Mutation::AddCluster, &Mutation::TouchExtension};
    (this->*kVerbs[dice_.Below(std::size(kVerbs))])();
  }

 private:
  // Each kind of structure is as likely as the others, whatever the image has more of.
  std::optional<PlacedWord> SomeWord() {
    if (places_.words.empty()) return std::nullopt;
    const PlaceKind kind = dice_.OneOf(places_.words).kind;
    const PlaceKind wanted = static_cast<PlaceKind>(dice_.Below(8));
    const std::vector<PlacedWord> words = places_.WordsOf(wanted);
    return dice_.OneOf(words.empty() ? places_.WordsOf(kind) : words);
  }
  std::optional<PlacedTable> SomeTable() {
    if (places_.tables.empty()) return std::nullopt;
    PlacedTable table = dice_.OneOf(places_.tables);
    table.length = std::min(table.length, kMostTableBytes);
    return table;
  }
  uint64_t Get(const PlacedWord& word) const { return ReadNumber(image_, word.offset, word.bytes); }
  void Set(const PlacedWord& word, uint64_t value) {
    WriteNumber(image_, word.offset, value, word.bytes);
  }
  uint64_t Clusters() const { return image_.size_bytes() / cluster_size_ + 1; }
  uint64_t SomeCluster() { return dice_.Below(Clusters()) * cluster_size_; }

  void FlipBit() {
    if (const auto word = SomeWord()) {
      Set(*word, Get(*word) ^ uint64_t{1} << dice_.Below(static_cast<uint64_t>(word->bytes) * 8));
    }
  }

  void Shift() {
    if (const auto word = SomeWord()) {
      const uint64_t unit = word->bytes == 4 ? 1 : dice_.OneOf<uint64_t>({cluster_size_, 512, 1});
      const uint64_t by = dice_.Between(1, 3) * unit;
      Set(*word, dice_.Percent(50) ? Get(*word) + by : Get(*word) - by);
    }
  }

  void SetWord() {
    if (const auto word = SomeWord()) {
      const uint64_t old = Get(*word);
      Set(*word, dice_.OneOf<uint64_t>({0, 0, 1, 2, ~uint64_t{0}, ~uint64_t{0} >> 1, old | kZeroBit,
                                        old | kCompressedBit, old ^ kCopiedBit, old & ~kOffsetMask,
                                        kOffsetMask, image_.size_bytes(), dice_.Below(1 << 16),
                                        dice_.Below(~uint64_t{0})}));
    }
  }

  void Swap() {
    const auto one = SomeWord(), other = SomeWord();
    if (!one || !other) return;
    const uint64_t value = Get(*one);
    if (dice_.Percent(60)) Set(*one, Get(*other));
    Set(*other, value);
  }

  // A pointer to what belongs to something else.
  void CrossLink() {
    const auto word = SomeWord();
    if (!word || word->bytes != 8) return;
    uint64_t target = SomeCluster();
    if (const auto table = SomeTable(); table && dice_.Percent(60)) target = table->offset;
    Set(*word, (Get(*word) & ~kOffsetMask) | target);
  }

  void SetField() {
    const HeaderField& field = kHeaderFields[dice_.Below(kHeaderFields.size())];
    const int width = static_cast<int>(field.width);
    const uint64_t old = ReadNumber(image_, field.offset, width);
    const uint64_t value =
        dice_.OneOf<uint64_t>({0, 1, 2, 3, 4, 9, 16, 104, 112, old + 1, old - 1, old * 2, old / 2,
                               old ^ uint64_t{1} << dice_.Below(field.width * 8), SomeCluster(),
                               ~uint64_t{0}, image_.size_bytes(), dice_.Below(~uint64_t{0})});
    WriteNumber(image_, field.offset, value, width);
  }

  void Resize() {
    uint64_t size = image_.size_bytes();
    switch (dice_.Below(4)) {
      case 0:
        size = dice_.Below(size + 1);
        break;
      case 1:
        size -= std::min(size, dice_.Between(1, 3) * cluster_size_);
        break;
      case 2:
        size += dice_.Between(1, 3) * cluster_size_;
        break;
      default:
        size += dice_.Between(1, cluster_size_);
    }
    QCOW2CHECK_CHECK(image_.Resize(std::min(size, uint64_t{1} << 56)).ok());
    FitToInput();
  }

  // Of what is written a part, of whole sectors, may not have reached the disk.
  void OverTable() {
    const auto table = SomeTable();
    if (!table || table->length == 0) return;
    std::vector<uint8_t> bytes(table->length);
    const uint64_t other = SomeCluster();
    switch (dice_.Below(4)) {
      case 0:
        break;
      case 1:
        if (IsInFile(image_, other, bytes.size())) bytes = image_.Bytes(other, bytes.size());
        break;
      case 2:
        for (size_t i = 0; i < bytes.size(); ++i) {
          bytes[i] = static_cast<uint8_t>("a line \n"[i % 8]);
        }
        break;
      default:
        for (size_t i = 1; i < bytes.size(); i += 2) bytes[i] = 1;
    }
    const uint64_t begin = dice_.Percent(40) ? dice_.Below(bytes.size()) / 512 * 512 : 0;
    bytes.erase(bytes.begin(), bytes.begin() + static_cast<int64_t>(begin));
    Write(image_, table->offset + begin, bytes);
  }

  void SetRefcount() {
    if (places_.refcount_blocks.empty()) return;
    const uint64_t block = dice_.OneOf(places_.refcount_blocks);
    if (cluster_size_ > kMostTableBytes || !IsInFile(image_, block, cluster_size_)) return;
    std::vector<uint8_t> bytes = image_.Bytes(block, cluster_size_);
    const uint64_t limit = std::min(geometry_.refcount_block_entries(), Clusters() + 2);
    const uint64_t count = dice_.OneOf<uint64_t>({0, 0, 1, 2, 3, ~uint64_t{0}});
    StoreRefcount(bytes.data(), dice_.Below(limit), geometry_.refcount_order,
                  std::min(count, geometry_.refcount_max()));
    Write(image_, block, bytes);
  }

  // An L2 entry, of any kind, where there may have been none.
  void AddEntry() {
    std::vector<PlacedTable> tables;
    for (const PlacedTable& table : places_.tables) {
      if (table.kind == PlaceKind::kL2) tables.push_back(table);
    }
    if (tables.empty()) return;
    const uint64_t table = dice_.OneOf(tables).offset;
    const uint64_t nearby =
        dice_.Percent(80) ? std::min<uint64_t>(geometry_.l2_entries(), 16) : geometry_.l2_entries();
    const uint64_t place = table + dice_.Below(nearby) * geometry_.l2_entry_bytes();
    uint64_t entry = SomeCluster();
    switch (dice_.Below(4)) {
      case 0:
        entry = EncodeCompressed({entry + dice_.Below(cluster_size_), dice_.Between(1, 600)},
                                 geometry_.cluster_bits);
        break;
      case 1:
        entry = dice_.Percent(50) ? kZeroBit : entry | kZeroBit | kCopiedBit;
        break;
      default:
        entry |= kCopiedBit;
    }
    WriteNumber(image_, place, entry, 8);
    if (!geometry_.extended_l2) return;
    WriteNumber(image_, place + 8,
                dice_.OneOf<uint64_t>({0, 0xffffffff, dice_.Below(~uint64_t{0})}), 8);
  }

  // A new cluster at the end, and an entry that leads to it: of any table.
  void AddCluster() {
    const uint64_t offset = RoundUp(image_.size_bytes(), cluster_size_);
    const auto table = SomeTable();
    if (!table || table->length < 8 || offset + cluster_size_ > uint64_t{1} << 56) return;
    QCOW2CHECK_CHECK(image_.Resize(offset + cluster_size_).ok());
    FitToInput();
    const uint64_t slot = dice_.Below(std::min<uint64_t>(table->length / 8, 16));
    WriteNumber(image_, table->offset + slot * 8, offset | kCopiedBit, 8);
    if (const auto other = SomeTable(); other && dice_.Percent(50)) {
      Write(image_, offset, image_.Bytes(other->offset, std::min(other->length, cluster_size_)));
    } else {
      WriteNumber(image_, offset, dice_.Below(~uint64_t{0}), 8);
    }
  }

  // Another type or length of one in the list, or one more.
  void TouchExtension() {
    const Header header = DecodeHeader(image_.Bytes(0, kHeaderBytesKnown));
    const uint64_t area = std::min({cluster_size_, image_.size_bytes(), kMostTableBytes});
    const HeaderExtensionList list =
        ParseHeaderExtensions(image_.Bytes(0, area), header.header_length, area);
    uint64_t at = list.end_bytes;
    if (!list.extensions.empty() && dice_.Percent(70)) {
      at = dice_.OneOf(list.extensions).offset_bytes;
    } else if (list.has_end_marker) {
      at -= 8;
    }
    if (dice_.Percent(50)) {
      WriteNumber(
          image_, at,
          dice_.OneOf<uint64_t>({kExtensionEnd, kExtensionBackingFormat, kExtensionFeatureNames,
                                 kExtensionBitmaps, kExtensionCrypto, kExtensionDataFile,
                                 kExtensionRepairNote, 0x12345678}),
          4);
    }
    WriteNumber(image_, at + 4,
                dice_.OneOf<uint64_t>({0, 1, 8, 16, 24, 25, 48, 0xffffffff, dice_.Below(600)}), 4);
  }

  // What is stored must not grow for ever.
  void FitToInput() {
    if (image_.stored_bytes() > kMaxStoredBytes) {
      QCOW2CHECK_CHECK(image_.Resize(kMaxStoredBytes).ok());
    }
  }

  SparseFile& image_;
  Dice& dice_;
  const ImagePlaces places_;
  const Geometry& geometry_;
  uint64_t cluster_size_ = 0;
};

std::optional<uint64_t> RefcountToStore(const Finding& finding) {
  switch (finding.code) {
    case FindingCode::kRefcountTooLow:
    case FindingCode::kRefcountZeroInUse:
    case FindingCode::kRefcountTooHigh:
    case FindingCode::kRefcountLazy:
    case FindingCode::kRefcountPastEnd:
    case FindingCode::kLeakedCluster:
    case FindingCode::kLeakSuspicious:
      if (finding.host_offset.has_value()) return finding.expected.value_or(0);
      return std::nullopt;
    default:
      return std::nullopt;
  }
}

std::vector<uint8_t> InputOf(const SparseFile& image, bool as_text) {
  if (!as_text) return image.Bytes();
  const std::string text = FormatImageText(image);
  return {text.begin(), text.end()};
}

}  // namespace

void MakeRefcountsRight(SparseFile& image) {
  constexpr uint64_t kMostClusters = 4096;
  const Report report = CheckImage(image, {.max_findings = 500, .threads = 1});
  const ImagePlaces places = PlacesOf(image);
  const uint64_t cluster_size = places.geometry.cluster_size();
  if (cluster_size > kMostTableBytes) return;
  for (const Finding& finding : report.findings) {
    if (finding.code == FindingCode::kCopiedWrong && finding.host_offset.has_value()) {
      const uint64_t place = finding.host_offset->bytes;
      WriteNumber(image, place, image.Word(place) ^ kCopiedBit, 8);
    }
    const std::optional<uint64_t> count = RefcountToStore(finding);
    if (!count.has_value() || finding.clusters > kMostClusters) continue;
    for (uint64_t i = 0; i < finding.clusters; ++i) {
      const uint64_t cluster = finding.host_offset->bytes / cluster_size + i;
      const uint64_t index = cluster / places.geometry.refcount_block_entries();
      if (index >= places.refcount_blocks.size()) break;
      const uint64_t block = places.refcount_blocks[index];
      if (block == 0 || !IsInFile(image, block, cluster_size)) continue;
      std::vector<uint8_t> bytes = image.Bytes(block, cluster_size);
      StoreRefcount(bytes.data(), cluster % places.geometry.refcount_block_entries(),
                    places.geometry.refcount_order,
                    std::min(*count, places.geometry.refcount_max()));
      Write(image, block, bytes);
    }
  }
}

std::vector<uint8_t> MutateImage(Input input, uint64_t max_bytes, uint64_t seed) {
  Dice dice(seed);
  std::optional<SparseFile> image = ImageOf(input);
  if (!image.has_value() || image->size_bytes() < kHeaderBytesV2) return {};
  const bool as_text = IsImageText(input);
  for (uint64_t times = dice.Between(1, 4); times > 0; --times) {
    Mutation(*image, dice).Happen();
    if (!as_text && image->size_bytes() > max_bytes) return {};
  }
  if (dice.Percent(50)) MakeRefcountsRight(*image);
  std::vector<uint8_t> bytes = InputOf(*image, as_text);
  if (bytes.size() > max_bytes) return {};
  return bytes;
}

}  // namespace qcow2check::testing

#include "tests/random_damage.h"

#include <algorithm>
#include <optional>

#include "absl/strings/str_format.h"
#include "common/byte_order.h"
#include "common/refcount_block.h"
#include "common/table_entry.h"
#include "tests/damage.h"

namespace qcow2check::testing {
namespace {

class RandomAccident {
 public:
  RandomAccident(Dice& dice, const ImagePlaces& places, std::vector<uint8_t>& bytes)
      : dice_(dice),
        places_(places),
        bytes_(bytes),
        cluster_size_(places.geometry.cluster_size()) {}

  // Empty if the dice asked for what this image does not have.
  std::string Happen() {
    switch (dice_.Below(20)) {
      case 0:
      case 1:
      case 2:
      case 3:
        return FlipBitOfWord();
      case 4:
      case 5:
      case 6:
      case 7:
        return SetWord();
      case 8:
      case 9:
        return SwapOrCopyWord();
      case 10:
      case 11:
        return SetRefcount();
      case 12:
        return ChangeCopied();
      case 13:
      case 14:
      case 15:
        return OverwriteTable();
      case 16:
        return TearTable();
      case 17:
        return CutFile();
      case 18:
        return LoseRefcounts();
      default:
        return SetFeatureBit();
    }
  }

 private:
  // Each kind of structure is as likely as the others, whatever the image has more of. Places stay
  // those of the sound image; the file may be shorter by now.
  std::optional<PlacedWord> SomeWord() {
    static const std::vector<PlaceKind> kKinds = {PlaceKind::kHeaderField,
                                                  PlaceKind::kL1,
                                                  PlaceKind::kL1,
                                                  PlaceKind::kL2,
                                                  PlaceKind::kL2,
                                                  PlaceKind::kL2,
                                                  PlaceKind::kRefcountTable,
                                                  PlaceKind::kSnapshotTable,
                                                  PlaceKind::kSnapshotTable,
                                                  PlaceKind::kBitmapDirectory,
                                                  PlaceKind::kBitmapTable};
    const std::vector<PlacedWord> words = places_.WordsOf(dice_.OneOf(kKinds));
    if (words.empty()) return std::nullopt;
    const PlacedWord word = dice_.OneOf(words);
    if (word.offset + 8 > bytes_.size()) return std::nullopt;
    return word;
  }

  uint64_t Get(const PlacedWord& word) const {
    return word.bytes == 8 ? Load64(&bytes_[word.offset]) : Load32(&bytes_[word.offset]);
  }
  std::string Set(const PlacedWord& word, uint64_t value) {
    const uint64_t old = Get(word);
    if (word.bytes == 8) {
      Store64(&bytes_[word.offset], value);
    } else {
      Store32(&bytes_[word.offset], static_cast<uint32_t>(value));
    }
    if (Get(word) == old) return "";
    return absl::StrFormat("%s, 0x%x: 0x%x set to 0x%x", NameOf(word.kind), word.offset, old,
                           Get(word));
  }

  std::string FlipBitOfWord() {
    const std::optional<PlacedWord> word = SomeWord();
    if (!word.has_value()) return "";
    const uint64_t bits = static_cast<uint64_t>(word->bytes) * 8;
    return Set(*word, Get(*word) ^ uint64_t{1} << dice_.Below(bits));
  }

  // A pointer that leads to a wrong place, or a wrong number.
  std::string SetWord() {
    const std::optional<PlacedWord> word = SomeWord();
    if (!word.has_value()) return "";
    if (word->bytes == 4) return Set(*word, dice_.OneOf<uint64_t>({0, 1, 3, 70000, 0xffffffff}));
    const uint64_t old = Get(*word);
    const uint64_t flags = old & ~kOffsetMask;
    const uint64_t clusters = bytes_.size() / cluster_size_;
    switch (dice_.Below(7)) {
      case 0:
        return Set(*word, 0);
      case 1:  // shifted by a cluster or by some
        return Set(*word, old + dice_.Between(1, 3) * cluster_size_);
      case 2:
        return Set(*word, old - std::min(EntryOffset(old), cluster_size_));
      case 3:  // shifted by a sector
        return Set(*word, old + 512);
      case 4:
        return Set(*word, flags | (clusters + dice_.Below(1000)) * cluster_size_);
      case 5:
        return Set(*word, dice_.Below(~uint64_t{0}));
      default:
        return Set(*word, flags | dice_.Below(clusters) * cluster_size_);
    }
  }

  std::string SwapOrCopyWord() {
    const std::optional<PlacedWord> one = SomeWord();
    const std::optional<PlacedWord> other = SomeWord();
    if (!one || !other || one->kind != other->kind || one->bytes != other->bytes) return "";
    const uint64_t value = Get(*one);
    const bool swap = dice_.Percent(50);
    std::string what;
    if (swap) what = Set(*one, Get(*other)) + "; ";
    return what + Set(*other, value);
  }

  std::string SetRefcount() {
    const Geometry& geometry = places_.geometry;
    const uint64_t cluster = dice_.Below(bytes_.size() / cluster_size_ + 4);
    const uint64_t index = cluster / geometry.refcount_block_entries();
    if (index >= places_.refcount_blocks.size() || places_.refcount_blocks[index] == 0) return "";
    const uint64_t block = places_.refcount_blocks[index];
    if (block + cluster_size_ > bytes_.size()) return "";
    const uint64_t entry = cluster % geometry.refcount_block_entries();
    const uint64_t count =
        std::min(dice_.OneOf<uint64_t>({0, 0, 0, 1, 2, 3, ~uint64_t{0}}), geometry.refcount_max());
    const uint64_t old = LoadRefcount(&bytes_[block], entry, geometry.refcount_order);
    if (count == old) return "";
    StoreRefcount(&bytes_[block], entry, geometry.refcount_order, count);
    return absl::StrFormat("refcount of cluster %d (0x%x): %d set to %d", cluster,
                           cluster * cluster_size_, old, count);
  }

  // In one entry, or in all of a table.
  std::string ChangeCopied() {
    const PlaceKind kind = dice_.Percent(50) ? PlaceKind::kL1 : PlaceKind::kL2;
    const std::vector<PlacedWord> words = places_.WordsOf(kind);
    if (words.empty()) return "";
    const bool all = dice_.Percent(30);
    const PlacedWord chosen = dice_.OneOf(words);
    std::string what;
    for (const PlacedWord& word : words) {
      if (word.offset + 8 > bytes_.size() || (!all && word.offset != chosen.offset)) continue;
      what = Set(word, Get(word) ^ kCopiedBit);
    }
    return all && !what.empty()
               ? absl::StrFormat("all COPIED flags of the %ss turned", NameOf(kind))
               : what;
  }

  std::optional<PlacedTable> SomeTable() {
    static const std::vector<PlaceKind> kKinds = {PlaceKind::kL1,
                                                  PlaceKind::kL2,
                                                  PlaceKind::kL2,
                                                  PlaceKind::kRefcountTable,
                                                  PlaceKind::kRefcountBlock,
                                                  PlaceKind::kSnapshotTable,
                                                  PlaceKind::kBitmapDirectory,
                                                  PlaceKind::kBitmapTable};
    const PlaceKind kind = dice_.OneOf(kKinds);
    std::vector<PlacedTable> tables;
    for (const PlacedTable& table : places_.tables) {
      if (table.kind == kind && table.offset + table.length <= bytes_.size()) {
        tables.push_back(table);
      }
    }
    if (tables.empty()) return std::nullopt;
    return dice_.OneOf(tables);
  }

  std::string OverwriteTable() {
    const std::optional<PlacedTable> table = SomeTable();
    if (!table.has_value()) return "";
    const auto [offset, length] = std::pair(table->offset, table->length);
    absl::string_view with;
    switch (dice_.Below(4)) {
      case 0:
        with = "zeros";
        Fill(bytes_, offset, length, 0);
        break;
      case 1:
        with = "text";
        FillWithText(bytes_, offset, length);
        break;
      case 2: {
        with = "refcounts";
        for (uint64_t i = 0; i < length; ++i) bytes_[offset + i] = static_cast<uint8_t>(i % 2);
        break;
      }
      default:
        with = "garbage";
        FillWithGarbage(bytes_, offset, length);
    }
    return absl::StrFormat("the %s at 0x%x overwritten with %s", NameOf(table->kind), offset, with);
  }

  // A write of the table that reached the disk in part: whole sectors of it are zeros.
  std::string TearTable() {
    const std::optional<PlacedTable> table = SomeTable();
    if (!table.has_value() || table->length < 1024) return "";
    const uint64_t begin = dice_.Below(table->length / 512) * 512;
    Fill(bytes_, table->offset + begin, table->length - begin, 0);
    return absl::StrFormat("the %s at 0x%x is zeros from 0x%x on", NameOf(table->kind),
                           table->offset, begin);
  }

  std::string CutFile() {
    uint64_t cut = dice_.Below(bytes_.size() / 3) + 1;
    if (dice_.Percent(70)) cut = std::min(cut, dice_.Between(1, 4) * cluster_size_);
    const uint64_t size = std::max(bytes_.size() - cut, cluster_size_);
    Truncate(bytes_, size);
    return absl::StrFormat("the file cut off at 0x%x", size);
  }

  // What a crash with lazy refcounts leaves, or a refcount block that never reached the disk.
  std::string LoseRefcounts() {
    const std::vector<uint64_t>& blocks = places_.refcount_blocks;
    const uint64_t block = dice_.OneOf(blocks);
    if (block == 0 || block + cluster_size_ > bytes_.size()) return "";
    const uint64_t begin = dice_.Percent(50) ? 0 : dice_.Below(cluster_size_);
    Fill(bytes_, block + begin, cluster_size_ - begin, 0);
    return absl::StrFormat("the refcount block at 0x%x is zeros from 0x%x on", block, begin);
  }

  std::string SetFeatureBit() {
    if (places_.geometry.version < 3) return "";
    const uint8_t bits = static_cast<uint8_t>(dice_.Between(1, 3));  // dirty, corrupt
    bytes_[79] |= bits;
    return absl::StrFormat("incompatible feature bits 0x%x set", bits);
  }

  Dice& dice_;
  const ImagePlaces& places_;
  std::vector<uint8_t>& bytes_;
  const uint64_t cluster_size_;
};

}  // namespace

std::string DamageAtRandom(Dice& dice, const ImagePlaces& places, std::vector<uint8_t>& bytes) {
  for (;;) {
    std::string what = RandomAccident(dice, places, bytes).Happen();
    if (!what.empty()) return what;
  }
}

}  // namespace qcow2check::testing

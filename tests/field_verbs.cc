#include "tests/field_verbs.h"

#include <algorithm>
#include <optional>
#include <set>

#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace qcow2check::testing {
namespace {

struct VerbInput {
  uint64_t value = 0;
  int bits = 0;
  uint64_t unit = 1;  // what is added: a cluster for offsets
  int shift = 0;      // of addresses in the field
  const BuiltImage& image;

  uint64_t Ones() const { return bits == 64 ? ~uint64_t{0} : (uint64_t{1} << bits) - 1; }
  uint64_t Flipped(int bit) const {
    return value ^ uint64_t { 1 } << bit;
  }
  std::optional<uint64_t> Address(uint64_t offset) const {
    const uint64_t address = offset >> shift;
    return address <= Ones() ? std::optional(address) : std::nullopt;
  }
};

struct FieldVerb {
  absl::string_view name;
  std::optional<uint64_t> (*apply)(const VerbInput& in);
  bool is_address = false;
};

using Value = std::optional<uint64_t>;
constexpr FieldVerb kVerbs[] = {
    {"zero", [](const VerbInput&) -> Value { return 0; }},
    {"ones", [](const VerbInput& in) -> Value { return in.Ones(); }},
    {"add", [](const VerbInput& in) -> Value { return (in.value + in.unit) & in.Ones(); }},
    {"subtract", [](const VerbInput& in) -> Value { return (in.value - in.unit) & in.Ones(); }},
    {"first bit", [](const VerbInput& in) -> Value { return in.Flipped(in.bits - 1); }},
    {"middle bit", [](const VerbInput& in) -> Value { return in.Flipped(in.bits / 2); }},
    {"last bit", [](const VerbInput& in) -> Value { return in.Flipped(0); }},
    // The largest that is not negative to a program that takes it for signed.
    {"max", [](const VerbInput& in) -> Value { return in.Ones() >> 1; }},
    {"L1 table", [](const VerbInput& in) { return in.Address(in.image.l1.offset); }, true},
    {"L2 table", [](const VerbInput& in) { return in.Address(in.image.L2At(0).host_offset); },
     true},
    {"refcount table",
     [](const VerbInput& in) { return in.Address(in.image.refcount_table.offset); }, true},
    {"refcount block", [](const VerbInput& in) { return in.Address(in.image.refcount_blocks[0]); },
     true},
    {"data", [](const VerbInput& in) { return in.Address(in.image.At(0).host_offset); }, true},
    {"snapshot table",
     [](const VerbInput& in) { return in.Address(in.image.snapshot_table.offset); }, true},
    {"snapshot's L1 table",
     [](const VerbInput& in) {
       return in.image.snapshots.empty() ? Value() : in.Address(in.image.snapshots[0].l1.offset);
     },
     true},
};

// Whether `list` ("a, b", "!a, b" or "") has the name.
bool Names(absl::string_view list, absl::string_view name) {
  if (list.empty()) return true;
  const bool excepts = absl::ConsumePrefix(&list, "!");
  const std::vector<absl::string_view> names = absl::StrSplit(list, ", ");
  return (std::find(names.begin(), names.end(), name) != names.end()) != excepts;
}

}  // namespace

std::string FieldPair::Words() const {
  return absl::StrFormat("%s, %s: %s, %s: 0x%x becomes 0x%x", image, record, field.name, verb,
                         old_value, new_value);
}

std::vector<FieldPair> PairsOf(absl::string_view image_name, const BuiltImage& image) {
  std::vector<FieldPair> pairs;
  for (const RecordPlace& record : RecordsOf(image_name)) {
    const uint64_t offset = record.find(image).offset;
    for (const FormatField& field : FieldsOf(record.record)) {
      const bool is_offset = field.use == FieldUse::kOffset;
      const VerbInput in = {.value = LoadField(image.bytes, offset, field),
                            .bits = field.bits,
                            .unit = is_offset ? image.cluster_size() >> field.lowest_bit : 1,
                            .shift = is_offset ? field.lowest_bit : 0,
                            .image = image};
      std::set<uint64_t> values = {in.value};
      for (const FieldVerb& verb : kVerbs) {
        const Value value = verb.apply(in);
        if (!value.has_value() || !values.insert(*value).second) continue;
        pairs.push_back(
            {image_name, record.name, field, verb.name, verb.is_address, offset, in.value, *value});
      }
    }
  }
  return pairs;
}

std::vector<uint8_t> Damaged(const BuiltImage& image, const FieldPair& pair) {
  std::vector<uint8_t> bytes = image.bytes;
  StoreField(bytes, pair.offset_bytes, pair.field, pair.new_value);
  return bytes;
}

bool Matches(const ReviewedPairs& line, const FieldPair& pair) {
  return Names(line.images, pair.image) && Names(line.records, pair.record) &&
         line.field == pair.field.name &&
         (Names(line.verbs, pair.verb) || (pair.is_address && Names(line.verbs, "addresses")));
}

}  // namespace qcow2check::testing

// The structures as they are stored. Where things are and who owns them: inspect_lookup.cc.
#include "checker/inspect.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/byte_order.h"
#include "common/checked_math.h"
#include "common/limits.h"
#include "common/refcount_block.h"

namespace qcow2check {
namespace {

// Of the fields behind those that we know, as many bytes as a reader wants to see.
constexpr uint64_t kUnknownHeaderBytes = 256;
// Ours: runs of refcounts and bitmap table entries in one answer, over all blocks and bitmaps.
constexpr uint64_t kDetailsInAll = 1'000'000;

// Calls visit(index, entry) for each entry that is not 0 of the table of 64-bit entries at
// `offset`, as far as the file goes. Holes are not read.
template <typename Visit>
void ForEachUsed(CheckState& state, uint64_t offset, uint64_t entries, Structure structure,
                 Visit visit) {
  const uint64_t end =
      std::min(SaturatingAdd(offset, SaturatingMultiply(entries, 8)), state.file.size_bytes());
  std::vector<uint8_t> piece;
  uint64_t at = offset;
  while (at < end) {
    const Extent data = state.file.NextData(HostOffset{at});
    if (data.empty() || data.begin_bytes >= end) break;
    at = std::max(at, data.begin_bytes & ~uint64_t{7});
    piece.resize(RoundUp(std::min({end - at, kMaxPieceBytes, data.end_bytes - at}), 8));
    state.Read(HostOffset{at}, absl::MakeSpan(piece), structure);
    for (uint64_t i = 0; i < piece.size() && at + i < end; i += 8) {
      const uint64_t entry = Load64(&piece[i]);
      if (entry != 0) visit((at - offset + i) / 8, entry);
    }
    at += piece.size();
  }
}

// Entries of a table at `offset` that the file has bytes for, the last one perhaps not wholly.
uint64_t EntriesInFile(uint64_t offset, uint64_t entries, uint64_t file_bytes) {
  if (offset >= file_bytes) return 0;
  return std::min(entries, DivideRoundingUp(file_bytes - offset, 8));
}

// Why the table at `offset` cannot be read; empty if it can.
std::string PlaceProblem(uint64_t offset, const Geometry& geometry, uint64_t file_bytes) {
  if (offset == 0) return "its offset is 0";
  if (!IsAligned(offset, geometry.cluster_size())) {
    return absl::StrFormat("its offset 0x%x is not the start of a cluster", offset);
  }
  if (offset >= file_bytes) {
    return absl::StrFormat("it is at 0x%x, and the file ends at 0x%x", offset, file_bytes);
  }
  return "";
}

}  // namespace

ImageInspector::ImageInspector(const ImageFile& file, InspectCaps caps)
    : file_(file),
      caps_(caps),
      options_({.max_findings = 0}),
      state_(file, options_),
      details_left_(kDetailsInAll) {
  RunPasses(state_, "header");
  is_qcow2_ = !state_.findings.Has(FindingCode::kNotQcow2);
}

CheckState& ImageInspector::Walk() {
  if (walk_ == nullptr) {
    walk_ = std::make_unique<CheckState>(file_, options_);
    RunPasses(*walk_, "l2-tables");
  }
  return *walk_;
}

std::vector<std::string> ImageInspector::Unread() const {
  std::vector<std::string> unread;
  for (const SkippedPart& part : state_.coverage.skipped) {
    unread.push_back(absl::StrCat(part.what, ": ", part.why));
  }
  return unread;
}

absl::Status ImageInspector::NeedGeometry() const {
  if (state_.geometry) return absl::OkStatus();
  const std::string why = state_.coverage.skipped.empty() ? "the header is damaged"
                                                          : state_.coverage.skipped.back().why;
  return absl::FailedPreconditionError(why);
}

absl::Status ImageInspector::NeedL1() const {
  absl::Status status = NeedGeometry();
  if (!status.ok() || state_.header.l1_size == 0) return status;
  const std::string problem =
      PlaceProblem(state_.header.l1_table_offset, state_.geo(), file_.size_bytes());
  if (problem.empty()) return status;
  return absl::FailedPreconditionError(absl::StrCat("the L1 table cannot be read: ", problem));
}

absl::Status ImageInspector::NeedRefcountTable() const {
  absl::Status status = NeedGeometry();
  if (!status.ok()) return status;
  const Header& header = state_.header;
  std::string problem =
      PlaceProblem(header.refcount_table_offset, state_.geo(), file_.size_bytes());
  if (!state_.refcounts_readable) {
    problem = absl::StrCat("refcount_order is ", header.refcount_order, ", 6 at most is possible");
  } else if (header.refcount_table_clusters == 0) {
    problem = "the header gives it no clusters";
  }
  if (problem.empty()) return status;
  return absl::FailedPreconditionError(absl::StrCat("the refcounts cannot be read: ", problem));
}

uint64_t ImageInspector::ReadWord(uint64_t offset, Structure structure) {
  std::array<uint8_t, 8> bytes;
  state_.Read(HostOffset{offset}, absl::MakeSpan(bytes), structure);
  return Load64(bytes.data());
}

HeaderView ImageInspector::ShowHeader() {
  const Header& header = state_.header;
  HeaderView view = {.header = header,
                     .geometry = state_.geometry,
                     .refcounts_readable = state_.refcounts_readable,
                     .file_bytes = file_.size_bytes(),
                     .backing_name = state_.backing_name,
                     .backing_format = state_.backing_format,
                     .data_file_name = state_.data_file_name};
  const uint32_t version = header.version < 3 ? 2 : 3;
  const uint64_t length = version == 2 ? kHeaderBytesV2 : header.header_length;
  const uint64_t shown =
      std::min(std::max<uint64_t>(length, kHeaderBytesV3), kHeaderBytesKnown + kUnknownHeaderBytes);
  std::vector<uint8_t> bytes(std::min(file_.size_bytes(), shown));
  state_.Read(HostOffset{0}, absl::MakeSpan(bytes), Structure::kHeader);
  const auto add = [&](absl::string_view name, uint64_t begin, uint64_t end,
                       std::optional<uint64_t> value) {
    HeaderFieldView field = {.name = std::string(name), .offset = begin, .value = value};
    const uint64_t stop = std::min<uint64_t>(end, bytes.size());
    if (begin < stop) {
      field.bytes.assign(bytes.begin() + static_cast<int64_t>(begin),
                         bytes.begin() + static_cast<int64_t>(stop));
    }
    view.fields.push_back(std::move(field));
  };
  for (const HeaderField& field : kHeaderFields) {
    if (field.since > version) continue;
    if (field.offset >= kHeaderBytesV3 && field.offset >= length) continue;
    add(field.name, field.offset, field.offset + field.width, LoadHeaderField(field, bytes));
  }
  if (length > kHeaderBytesV3 + 1) {
    add("padding", kHeaderBytesV3 + 1, std::min<uint64_t>(length, kHeaderBytesKnown), std::nullopt);
  }
  if (length > kHeaderBytesKnown && bytes.size() > kHeaderBytesKnown) {
    add("unknown_fields", kHeaderBytesKnown, length, std::nullopt);
  }
  return view;
}

absl::StatusOr<ExtensionsView> ImageInspector::ShowExtensions() const {
  if (absl::Status status = NeedGeometry(); !status.ok()) return status;
  ExtensionsView view = {.end_bytes = state_.extensions.end_bytes,
                         .has_end_marker = state_.extensions.has_end_marker,
                         .overflow = state_.extensions.overflow};
  for (const HeaderExtension& extension : state_.extensions.extensions) {
    view.extensions.Add(caps_.directory, extension);
  }
  return view;
}

absl::StatusOr<L1View> ImageInspector::ShowL1() {
  if (absl::Status status = NeedL1(); !status.ok()) return status;
  const uint64_t offset = state_.header.l1_table_offset;
  const uint64_t entries = state_.header.l1_size;
  L1View view = {.offset = HostOffset{offset},
                 .entries = entries,
                 .entries_in_file = EntriesInFile(offset, entries, file_.size_bytes())};
  ForEachUsed(state_, offset, entries, Structure::kL1Table, [&](uint64_t index, uint64_t entry) {
    view.used.Add(caps_.entries, {index, HostOffset{offset + index * 8}, entry,
                                  state_.geo().GuestOffsetOf(index, 0)});
  });
  return view;
}

void ImageInspector::ReadRefcountBlock(RefcountBlockView& block) {
  const Geometry& geometry = state_.geo();
  const int order = geometry.refcount_order;
  std::vector<uint8_t> piece(std::min(geometry.cluster_size(), kMaxPieceBytes));
  const uint64_t piece_entries = piece.size() * 8 >> order;
  RefcountRun run;
  const auto end_run = [&] {
    if (run.refcount == 0) return;
    const uint64_t cap = details_left_ == 0 ? 0 : caps_.details;
    block.runs.Add(cap, run);
    details_left_ -= details_left_ == 0 ? 0 : 1;
  };
  for (uint64_t at = 0; at < geometry.cluster_size(); at += piece.size()) {
    state_.Read(HostOffset{block.offset.bytes + at}, absl::MakeSpan(piece),
                Structure::kRefcountBlock);
    const uint64_t first = SaturatingAdd(block.first_cluster, at * 8 >> order);
    for (uint64_t i = 0; i < piece_entries; ++i) {
      const uint64_t refcount = LoadRefcount(piece.data(), i, order);
      block.nonzero += refcount != 0 ? 1 : 0;
      if (refcount == run.refcount) {
        ++run.clusters;
        continue;
      }
      end_run();
      run = {SaturatingAdd(first, i), 1, refcount};
    }
  }
  end_run();
}

absl::StatusOr<RefcountsView> ImageInspector::ShowRefcounts() {
  if (absl::Status status = NeedRefcountTable(); !status.ok()) return status;
  const Geometry& geometry = state_.geo();
  const uint64_t offset = state_.header.refcount_table_offset;
  const uint64_t entries =
      SaturatingMultiply(state_.header.refcount_table_clusters, geometry.cluster_size()) / 8;
  RefcountsView view = {.table_offset = HostOffset{offset},
                        .table_entries = entries,
                        .table_entries_in_file = EntriesInFile(offset, entries, file_.size_bytes()),
                        .refcount_bits = geometry.refcount_bits(),
                        .block_entries = geometry.refcount_block_entries()};
  absl::flat_hash_map<uint64_t, uint64_t> read;  // offset of a block -> table index
  ForEachUsed(state_, offset, entries, Structure::kRefcountTable,
              [&](uint64_t index, uint64_t entry) {
                RefcountBlockView block = {
                    .table_index = index,
                    .entry_offset = HostOffset{offset + index * 8},
                    .entry = entry,
                    .offset = HostOffset{entry & kRefcountTableOffsetMask},
                    .first_cluster = SaturatingMultiply(index, geometry.refcount_block_entries())};
                block.not_read = PlaceProblem(block.offset.bytes, geometry, file_.size_bytes());
                if (block.not_read.empty() && view.blocks.items.size() < caps_.entries) {
                  const auto [first, is_new] = read.emplace(block.offset.bytes, index);
                  if (is_new) {
                    ReadRefcountBlock(block);
                  } else {
                    block.same_block_as = first->second;
                  }
                }
                view.blocks.Add(caps_.entries, std::move(block));
              });
  return view;
}

absl::StatusOr<SnapshotsView> ImageInspector::ShowSnapshots() {
  if (absl::Status status = NeedGeometry(); !status.ok()) return status;
  SnapshotsView view = {.table_offset = HostOffset{state_.header.snapshots_offset},
                        .count = state_.header.nb_snapshots,
                        .virtual_size_bytes = state_.header.size};
  if (view.count == 0) return view;
  CheckState walk(file_, options_);
  RunPasses(walk, "snapshot-table");
  for (SnapshotEntry& entry : walk.snapshots) view.snapshots.Add(caps_.directory, std::move(entry));
  if (walk.snapshots.size() < view.count) {
    view.incomplete = walk.coverage.skipped.empty() ? "not all entries can be read"
                                                    : walk.coverage.skipped.back().why;
  }
  return view;
}

BitmapView ImageInspector::ShowBitmap(BitmapEntry entry) {
  BitmapView view = {.entry = std::move(entry)};
  view.not_read = PlaceProblem(view.entry.table_offset, state_.geo(), file_.size_bytes());
  if (view.not_read.empty() && !state_.Spend(view.entry.table_entries, Structure::kBitmapTable)) {
    view.not_read = "tables overlap so often that reading them all would take too long";
  }
  if (!view.not_read.empty()) return view;
  ForEachUsed(state_, view.entry.table_offset, view.entry.table_entries, Structure::kBitmapTable,
              [&](uint64_t index, uint64_t word) {
                if (EntryOffset(word) != 0) {
                  ++view.data_clusters;
                } else if ((word & 1) != 0) {
                  ++view.all_ones;
                }
                view.used.Add(details_left_ == 0 ? 0 : caps_.details, {index, word});
                details_left_ -= details_left_ == 0 ? 0 : 1;
              });
  return view;
}

absl::StatusOr<BitmapsView> ImageInspector::ShowBitmaps() {
  if (absl::Status status = NeedGeometry(); !status.ok()) return status;
  BitmapsView view;
  for (const HeaderExtension& extension : state_.extensions.extensions) {
    if (extension.type != kExtensionBitmaps) continue;
    const std::optional<BitmapsExtension> decoded = DecodeBitmapsExtension(extension.data);
    if (!decoded) {
      return absl::FailedPreconditionError(absl::StrCat("the bitmaps extension has ",
                                                        extension.length_bytes, " bytes, not ",
                                                        kBitmapsExtensionBytes));
    }
    view.present = true;
    view.extension = *decoded;
  }
  if (!view.present) return view;
  view.stale = !state_.header.Has(kBitmapsConsistent);
  uint64_t at = view.extension.directory_offset;
  const std::string problem = PlaceProblem(at, state_.geo(), file_.size_bytes());
  if (!problem.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the bitmap directory cannot be read: ", problem));
  }
  const uint64_t end =
      std::min(SaturatingAdd(at, view.extension.directory_size_bytes), file_.size_bytes());
  const uint64_t wanted = std::min(view.extension.nb_bitmaps, kQemuMaxBitmaps);
  std::vector<uint8_t> fixed(kBitmapFixedBytes);
  while (view.bitmaps.total() < wanted && at + kBitmapFixedBytes <= end) {
    state_.Read(HostOffset{at}, absl::MakeSpan(fixed), Structure::kBitmapDirectory);
    BitmapEntry entry = DecodeBitmapFixed(fixed, at);
    if (SaturatingAdd(at, entry.length_bytes) > RoundUp(end, 8)) break;
    std::vector<uint8_t> name(std::min<uint64_t>(entry.name_bytes, kMaxBitmapNameBytes));
    state_.Read(HostOffset{at + kBitmapFixedBytes + entry.extra_data_bytes}, absl::MakeSpan(name),
                Structure::kBitmapDirectory);
    entry.name.assign(name.begin(), name.end());
    at += entry.length_bytes;
    view.bitmaps.Add(caps_.directory, ShowBitmap(std::move(entry)));
  }
  if (view.bitmaps.total() < view.extension.nb_bitmaps) {
    view.incomplete = absl::StrFormat("only %d of %d entries can be read", view.bitmaps.total(),
                                      view.extension.nb_bitmaps);
  }
  return view;
}

absl::StatusOr<uint64_t> ImageInspector::ReadL1Entry(uint64_t l1_index) {
  const uint64_t offset = state_.header.l1_table_offset + l1_index * 8;
  if (offset >= file_.size_bytes()) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "L1 entry %d is at 0x%x, and the file ends at 0x%x", l1_index, offset, file_.size_bytes()));
  }
  return ReadWord(offset, Structure::kL1Table);
}

absl::StatusOr<L2View> ImageInspector::ShowL2(uint64_t l1_index) {
  if (absl::Status status = NeedL1(); !status.ok()) return status;
  if (l1_index >= state_.header.l1_size) {
    return absl::OutOfRangeError(absl::StrFormat("there is no L1 slot %d: the L1 table has %d",
                                                 l1_index, state_.header.l1_size));
  }
  absl::StatusOr<uint64_t> l1_entry = ReadL1Entry(l1_index);
  if (!l1_entry.ok()) return l1_entry.status();
  const Geometry& geometry = state_.geo();
  L2View view = {.l1_index = l1_index,
                 .l1_entry_offset = HostOffset{state_.header.l1_table_offset + l1_index * 8},
                 .l1_entry = *l1_entry,
                 .guest = geometry.GuestOffsetOf(l1_index, 0),
                 .guest_bytes = geometry.l2_guest_bytes()};
  const uint64_t target = EntryOffset(*l1_entry);
  if (target == 0) return view;
  const uint64_t offset = target & ~(geometry.cluster_size() - 1);
  if (target >= file_.size_bytes()) {
    return absl::FailedPreconditionError(
        absl::StrFormat("L1 slot %d points to an L2 table at 0x%x, and the file ends at 0x%x",
                        l1_index, target, file_.size_bytes()));
  }
  view.table_offset = HostOffset{offset};
  if (target != offset) {
    view.note = absl::StrFormat(
        "the entry points to 0x%x, which is not the start of a cluster and is an error for QEMU; "
        "this is the cluster at 0x%x",
        target, offset);
  } else if (file_.size_bytes() - offset < geometry.cluster_size()) {
    view.note = absl::StrFormat("the file ends at 0x%x, inside the table", file_.size_bytes());
  }
  const uint64_t step = geometry.l2_entry_bytes();
  std::vector<uint8_t> piece(std::min(geometry.cluster_size(), kMaxPieceBytes));
  L2EntryView run = {.count = 0};
  for (uint64_t begin = 0; begin < geometry.cluster_size(); begin += piece.size()) {
    state_.Read(HostOffset{offset + begin}, absl::MakeSpan(piece), Structure::kL2Table);
    for (uint64_t at = 0; at < piece.size(); at += step) {
      const uint64_t entry = Load64(&piece[at]);
      const uint64_t bitmap_word = geometry.extended_l2 ? Load64(&piece[at + 8]) : 0;
      const bool folds =
          run.kind == L2EntryKind::kUnallocated || run.kind == L2EntryKind::kZeroPlain;
      if (run.count != 0 && folds && run.entry == entry && run.bitmap_word == bitmap_word) {
        ++run.count;
        continue;
      }
      if (run.count != 0) view.entries.Add(caps_.entries, run);
      const uint64_t index = (begin + at) / step;
      run = {index,
             1,
             HostOffset{offset + begin + at},
             geometry.GuestOffsetOf(l1_index, index),
             entry,
             bitmap_word,
             KindOfL2Entry(entry, geometry)};
    }
  }
  view.entries.Add(caps_.entries, run);
  return view;
}

}  // namespace qcow2check

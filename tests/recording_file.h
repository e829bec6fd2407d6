// Files on a disk that remembers every write, and what is left of them when the program is killed
// or the power fails; and a file whose writes fail.
#ifndef QCOW2CHECK_TESTS_RECORDING_FILE_H_
#define QCOW2CHECK_TESTS_RECORDING_FILE_H_

#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "common/image_file.h"
#include "common/memory_file.h"
#include "tests/dice.h"

namespace qcow2check::testing {

using Bytes = std::vector<uint8_t>;
// The files of a disk, in the order in which they were added.
using DiskState = std::vector<Bytes>;

class RecordedDisk;

class RecordingFile : public WritableImageFile {
 public:
  RecordingFile(RecordedDisk& disk, size_t number, Bytes bytes)
      : disk_(disk), number_(number), file_(std::move(bytes)) {}

  const Bytes& bytes() const { return file_.bytes(); }

  uint64_t size_bytes() const override { return file_.size_bytes(); }
  absl::Status ReadAt(HostOffset offset, absl::Span<uint8_t> dst) const override {
    return file_.ReadAt(offset, dst);
  }
  absl::Status WriteAt(HostOffset offset, absl::Span<const uint8_t> src) override;
  absl::Status Resize(uint64_t size_bytes) override;
  absl::Status Discard(const Extent& extent) override;
  absl::Status Flush() override;

 private:
  RecordedDisk& disk_;
  size_t number_;
  MemoryFile file_;
};

// What the power may leave of a disk: each sector that was written since its file was last flushed
// has any of the contents that it had since then, each file any of its lengths.
class PowerCut {
 public:
  // In how many ways; saturated.
  uint64_t ways() const;
  // Each of them once, `way` from 0. Way 0: nothing unflushed survived.
  DiskState Way(uint64_t way) const;
  DiskState AtRandom(Dice& dice) const;

 private:
  friend class RecordedDisk;
  struct UnsureSector {
    size_t file = 0;
    uint64_t offset = 0;
    std::vector<Bytes> contents;  // distinct; the first was flushed
  };
  DiskState Build(const std::vector<size_t>& content_of,
                  const std::vector<size_t>& length_of) const;

  DiskState flushed_;  // as long as the file ever was
  std::vector<UnsureSector> sectors_;
  std::vector<std::vector<uint64_t>> lengths_;  // by file: distinct; the first was flushed
};

class RecordedDisk {
 public:
  RecordedDisk() = default;
  RecordedDisk(const RecordedDisk&) = delete;
  RecordedDisk& operator=(const RecordedDisk&) = delete;

  RecordingFile& AddFile(Bytes bytes);

  // How many writes, resizes, discards and flushes there were.
  size_t events() const { return events_.size(); }
  // Whether the first `count` of them end with a flush, or a flush comes next.
  bool IsAtFlush(size_t count) const;
  // The disk after the first `count` of them, if the program is killed there.
  DiskState Killed(size_t count) const;
  // The same if it is killed inside the last one, a write, each time one sector further. Nothing if
  // that is no write of several sectors.
  std::vector<DiskState> KilledInside(size_t count) const;
  // If the power fails there.
  PowerCut PowerFails(size_t count) const;

 private:
  friend class RecordingFile;
  struct Event {
    enum Kind { kWrite, kResize, kDiscard, kFlush } kind = kFlush;
    size_t file = 0;
    uint64_t offset = 0;  // kResize: the new length
    Bytes bytes;          // kDiscard: zeros
  };
  static void Replay(const Event& event, Bytes& bytes);

  DiskState initial_;
  std::vector<Event> events_;
  std::deque<RecordingFile> files_;
};

// Passes everything on to another file, but one write, resize, discard or flush fails, and all
// after it.
class FailingFile : public WritableImageFile {
 public:
  explicit FailingFile(WritableImageFile& file) : file_(file) {}

  // The operation number `operation`, from 0, fails; a write after half of its sectors.
  void FailAt(uint64_t operation, absl::Status error) {
    fail_at_ = operation;
    error_ = std::move(error);
  }
  uint64_t operations() const { return operations_; }

  uint64_t size_bytes() const override { return file_.size_bytes(); }
  absl::Status ReadAt(HostOffset offset, absl::Span<uint8_t> dst) const override {
    return file_.ReadAt(offset, dst);
  }
  Extent NextData(HostOffset offset) const override { return file_.NextData(offset); }
  absl::Status WriteAt(HostOffset offset, absl::Span<const uint8_t> src) override;
  absl::Status Resize(uint64_t size_bytes) override;
  absl::Status Discard(const Extent& extent) override;
  absl::Status Flush() override;
  bool has_fixed_size() const override { return file_.has_fixed_size(); }

 private:
  bool Fails() { return operations_++ >= fail_at_; }

  WritableImageFile& file_;
  uint64_t fail_at_ = UINT64_MAX;
  uint64_t operations_ = 0;
  absl::Status error_;
};

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_RECORDING_FILE_H_

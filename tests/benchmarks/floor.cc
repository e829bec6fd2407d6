// floor IMAGE: what no checker can do without. Reads every metadata cluster of the image (L1 and L2
// tables, snapshot table, refcount table and blocks) once, in the order of the file, adjacent ones
// together, with two threads, and adds up a byte of each page. Judges nothing; the image must be
// sound.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <utility>
#include <vector>

#include "common/byte_order.h"
#include "common/geometry.h"
#include "common/header.h"
#include "common/snapshot_entry.h"
#include "common/table_entry.h"

namespace qcow2check {
namespace {

constexpr uint64_t kMaxReadBytes = 1 << 20;
constexpr uint64_t kPageBytes = 4096;

class Floor {
 public:
  explicit Floor(int fd) : fd_(fd) {}

  // The sum, which only keeps the compiler from leaving the work out.
  unsigned Run() {
    const Header header = DecodeHeader(Read(0, kHeaderBytesKnown));
    cluster_size_ = header.cluster_size();
    AddL2Tables(header.l1_table_offset, header.l1_size);
    AddSnapshots(header);
    AddRefcountBlocks(header);
    return ReadClusters();
  }

 private:
  std::vector<uint8_t> Read(uint64_t offset, uint64_t length) const {
    std::vector<uint8_t> bytes(length);
    for (uint64_t done = 0; done < length;) {
      const ssize_t count =
          pread(fd_, &bytes[done], length - done, static_cast<off_t>(offset + done));
      if (count < 0) {
        std::perror("read");
        std::exit(1);
      }
      if (count == 0) break;  // behind the end of the file are zeros
      done += static_cast<uint64_t>(count);
    }
    return bytes;
  }

  // The clusters that the table's words lead to. Neighbours are often equal, so that most
  // duplicates never get into the list.
  void AddTargets(uint64_t table_offset, uint64_t entries, uint64_t mask) {
    const std::vector<uint8_t> table = Read(table_offset, entries * 8);
    for (uint64_t i = 0; i < entries; ++i) {
      const uint64_t target = Load64(&table[i * 8]) & mask;
      if (target != 0 && (clusters_.empty() || clusters_.back() != target)) {
        clusters_.push_back(target);
      }
    }
  }

  void AddL2Tables(uint64_t l1_offset, uint64_t entries) {
    const auto l1 = std::make_pair(l1_offset, entries);
    if (std::find(l1_tables_.rbegin(), l1_tables_.rend(), l1) != l1_tables_.rend()) return;
    l1_tables_.push_back(l1);
    AddTargets(l1_offset, entries, kOffsetMask);
    std::sort(clusters_.begin(), clusters_.end());
    clusters_.erase(std::unique(clusters_.begin(), clusters_.end()), clusters_.end());
  }

  void AddSnapshots(const Header& header) {
    uint64_t offset = header.snapshots_offset;
    for (uint32_t i = 0; i < header.nb_snapshots; ++i) {
      const SnapshotEntry entry = DecodeSnapshotFixed(Read(offset, kSnapshotFixedBytes), offset);
      AddL2Tables(entry.l1_table_offset, entry.l1_size);
      offset += entry.length_bytes;
    }
  }

  void AddRefcountBlocks(const Header& header) {
    AddTargets(header.refcount_table_offset, header.refcount_table_clusters * cluster_size_ / 8,
               kRefcountTableOffsetMask);
  }

  unsigned ReadClusters() {
    std::sort(clusters_.begin(), clusters_.end());
    unsigned sums[2] = {0, 0};
    const size_t middle = clusters_.size() / 2;
    std::thread second([&] { sums[1] = ReadRange(middle, clusters_.size()); });
    sums[0] = ReadRange(0, middle);
    second.join();
    return sums[0] + sums[1];
  }

  unsigned ReadRange(size_t begin, size_t end) const {
    unsigned sum = 0;
    std::vector<uint8_t> bytes(std::max(kMaxReadBytes, cluster_size_));
    while (begin < end) {
      const uint64_t offset = clusters_[begin];
      uint64_t length = cluster_size_;
      while (++begin < end && clusters_[begin] == offset + length &&
             length + cluster_size_ <= bytes.size()) {
        length += cluster_size_;
      }
      if (pread(fd_, bytes.data(), length, static_cast<off_t>(offset)) < 0) std::exit(1);
      for (uint64_t i = 0; i < length; i += kPageBytes) sum += bytes[i];
    }
    return sum;
  }

  int fd_;
  uint64_t cluster_size_ = 0;
  std::vector<std::pair<uint64_t, uint64_t>> l1_tables_;  // offset, entries
  std::vector<uint64_t> clusters_;  // offsets of L2 tables and refcount blocks
};

}  // namespace
}  // namespace qcow2check

int main(int argc, char** argv) {
  const int fd = argc == 2 ? open(argv[1], O_RDONLY | O_CLOEXEC) : -1;
  if (fd < 0) {
    std::fputs("usage: floor IMAGE\n", stderr);
    return 1;
  }
  std::printf("%u\n", qcow2check::Floor(fd).Run());
  return 0;
}

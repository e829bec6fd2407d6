// One connection to an NBD server: requests of several threads, many of them under way at a time.
//
// A thread of its own makes every call into libnbd; callers queue requests and wait. (Servers often
// serve one client at a time, so several connections are not to be had.) Everything that the server
// says is a claim: sizes of replies are bounded, nothing is sized by it.
#ifndef QCOW2CHECK_COMMON_NBD_CONNECTION_H_
#define QCOW2CHECK_COMMON_NBD_CONNECTION_H_

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/posix_io.h"

struct nbd_handle;

namespace qcow2check {

struct NbdLibrary;

// Who wrote the URI. One that an image names may not make us read local files (TLS keys).
enum class UriFrom { kUser, kImage };

// What the server says when it is connected to.
struct NbdExport {
  uint64_t size_bytes = 0;
  uint64_t block_bytes = 1;         // offsets and lengths of requests are multiples of it
  uint64_t most_request_bytes = 0;  // of one read or write
  bool read_only = false;
  bool can_flush = false;
  bool can_fua = false;  // a single write can be made durable
  bool can_zero = false;
  bool can_fast_zero = false;  // can refuse to zero what it would have to write
  bool tells_zeros = false;    // by block status
};

// A stretch of the export: it begins where the one before it ends.
struct NbdStretch {
  uint64_t end_bytes = 0;
  bool reads_as_zeros = false;
};

struct NbdRequest {
  enum class Kind {
    kRead,
    kWrite,       // durable when it is done, if `durable`
    kFlush,       // no offset and no length
    kZero,        // may give the space back; with `fast`: only if that is no writing
    kBlockStatus  // adds to `stretches`, from the offset on; may tell less or more than asked for
  };
  Kind kind = Kind::kRead;
  uint64_t offset_bytes = 0;
  uint64_t length_bytes = 0;
  uint8_t* into = nullptr;        // kRead
  const uint8_t* from = nullptr;  // kWrite
  bool durable = false;
  bool fast = false;
  std::vector<NbdStretch>* stretches = nullptr;
  // Set when it is done. kDataLoss with the server's word for it; kResourceExhausted: no space;
  // kUnimplemented (kZero, kBlockStatus): the server does not do that; kUnavailable: the connection
  // is lost.
  absl::Status status;
};

class NbdConnection {
 public:
  // Connects. kUnavailable, in one plain sentence, if that does not work within half a minute, or
  // libnbd is missing.
  static absl::StatusOr<std::unique_ptr<NbdConnection>> Open(const std::string& uri, UriFrom from);
  // Says goodbye to the server. No request may be under way.
  ~NbdConnection();
  NbdConnection(const NbdConnection&) = delete;
  NbdConnection& operator=(const NbdConnection&) = delete;

  const NbdExport& facts() const { return facts_; }

  // Does all of them, in any order, and returns when all are done. Thread-safe.
  void Run(absl::Span<NbdRequest> requests);

  // kUnavailable, and why, when the connection is lost: from then on every request fails.
  // Thread-safe.
  absl::Status status() const;

 private:
  struct Batch;    // the requests of one Run
  struct Pending;  // one of them

  NbdConnection(std::unique_ptr<const NbdLibrary> library, FileDescriptor wake_fd);

  // All of these run in the thread.
  void Serve(const std::string& uri, UriFrom from);
  absl::Status Connect(const std::string& uri, UriFrom from);
  absl::Status LearnFacts();
  bool Turn();
  void IssueQueued();
  int64_t Issue(Pending& pending);
  absl::Status StillThere() const;
  absl::Status WaitAndNotify(int timeout_ms);
  void Lose(const absl::Status& why);
  void SayGoodbye();
  void Deliver(const std::vector<Pending*>& done);
  std::string LastError() const;
  static int OnComplete(void* pending, int* error);
  static int OnStretches(void* pending, const char* context, uint64_t offset, uint32_t* entries,
                         size_t count, int* error);

  void Wake() const;

  const std::unique_ptr<const NbdLibrary> library_;
  const FileDescriptor wake_fd_;
  NbdExport facts_;  // set before Open returns

  // Of the thread.
  nbd_handle* handle_ = nullptr;
  absl::flat_hash_set<Pending*> in_flight_;
  std::vector<Pending*> done_;

  mutable std::mutex mutex_;  // never held while libnbd is called
  std::condition_variable opened_;
  bool is_opened_ = false;
  bool stop_ = false;
  absl::Status status_;
  std::deque<Pending*> queue_;

  std::thread thread_;
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_NBD_CONNECTION_H_

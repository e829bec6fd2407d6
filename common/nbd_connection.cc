#include "common/nbd_connection.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <system_error>
#include <utility>

#include "absl/base/attributes.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/nbd_library.h"

namespace qcow2check {
namespace {

// What libnbd's authors suggest for one connection; more only fills queues.
constexpr size_t kMostInFlight = 64;
// Longer reads travel in pieces, side by side.
constexpr uint64_t kMostRequestBytes = 1 << 20;
// A server that wants smaller requests is not believed: each has a cost.
constexpr uint64_t kLeastRequestBytes = 4096;
// Kept of one reply; the rest is asked for again.
constexpr size_t kMostStretches = 1 << 14;
constexpr absl::Duration kHandshakeLimit = absl::Seconds(30);
constexpr absl::Duration kGoodbyeLimit = absl::Seconds(1);
// A host that has vanished does not close its connections.
constexpr int kSilenceLimitSeconds = 60;

void NoticeVanishedHosts(int fd) {
  // These fail on a Unix socket, which does not need them.
  const auto set = [fd](int level, int option, int value) {
    return setsockopt(fd, level, option, &value, sizeof(value)) == 0;
  };
  if (!set(IPPROTO_TCP, TCP_USER_TIMEOUT, kSilenceLimitSeconds * 1000)) return;
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, kSilenceLimitSeconds / 4);
  set(IPPROTO_TCP, TCP_KEEPINTVL, kSilenceLimitSeconds / 4);
}

// The thread must not take signals that are the program's, and a server that is gone is an error
// and no SIGPIPE. The new thread inherits what is blocked here.
template <typename Function>
std::thread ThreadWithoutSignals(Function function) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread thread;
  try {
    thread = std::thread(std::move(function));
  } catch (const std::system_error&) {  // the caller looks whether there is a thread
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return thread;
}

absl::string_view VerbOf(NbdRequest::Kind kind) {
  switch (kind) {
    case NbdRequest::Kind::kRead:
      return "read";
    case NbdRequest::Kind::kWrite:
      return "write";
    case NbdRequest::Kind::kFlush:
      return "flush";
    case NbdRequest::Kind::kZero:
      return "zero";
    case NbdRequest::Kind::kBlockStatus:
      return "tell holes";
  }
  return "";
}

absl::Status StatusOf(const NbdRequest& request, int error, absl::string_view words) {
  if (error == 0) return absl::OkStatus();
  std::string message = absl::StrCat("the server cannot ", VerbOf(request.kind));
  if (request.kind != NbdRequest::Kind::kFlush) {
    absl::StrAppend(&message, " at offset ", request.offset_bytes);
  }
  absl::StrAppend(&message, ": ", words);
  switch (error) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return absl::ResourceExhaustedError(message);
    case ENOTSUP:
    case EINVAL:
      // Nobody needs these two.
      return request.kind == NbdRequest::Kind::kZero ||
                     request.kind == NbdRequest::Kind::kBlockStatus
                 ? absl::UnimplementedError(message)
                 : absl::DataLossError(message);
    default:
      return absl::DataLossError(message);
  }
}

}  // namespace

struct NbdConnection::Batch {
  size_t left = 0;
  std::condition_variable done;
};

struct NbdConnection::Pending {
  NbdConnection* connection = nullptr;
  Batch* batch = nullptr;
  NbdRequest* request = nullptr;
};

NbdConnection::NbdConnection(std::unique_ptr<const NbdLibrary> library, FileDescriptor wake_fd)
    : library_(std::move(library)), wake_fd_(std::move(wake_fd)) {}

absl::StatusOr<std::unique_ptr<NbdConnection>> NbdConnection::Open(const std::string& uri,
                                                                   UriFrom from) {
  const auto error = [&uri](absl::string_view why) {
    return absl::UnavailableError(absl::StrCat("cannot open '", uri, "': ", why));
  };
  absl::StatusOr<NbdLibrary> library = LoadNbdLibrary();
  if (!library.ok()) return error(library.status().message());
  FileDescriptor wake_fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_fd.valid()) return error(std::strerror(errno));
  std::unique_ptr<NbdConnection> connection(
      new NbdConnection(std::make_unique<const NbdLibrary>(*library), std::move(wake_fd)));
  connection->thread_ =
      ThreadWithoutSignals([&connection = *connection, uri, from] { connection.Serve(uri, from); });
  if (!connection->thread_.joinable()) return error("no thread can be started");
  std::unique_lock lock(connection->mutex_);
  connection->opened_.wait(lock, [&] { return connection->is_opened_; });
  const absl::Status status = connection->status_;
  lock.unlock();
  if (!status.ok()) return error(status.message());
  return connection;
}

NbdConnection::~NbdConnection() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  Wake();
  thread_.join();
}

absl::Status NbdConnection::status() const {
  const std::lock_guard lock(mutex_);
  return status_;
}

void NbdConnection::Wake() const {
  const uint64_t one = 1;
  // It can only fail because there are very many wakes that have not been noticed: one is enough.
  ABSL_ATTRIBUTE_UNUSED const ssize_t ignored = write(wake_fd_.get(), &one, sizeof(one));
}

void NbdConnection::Run(absl::Span<NbdRequest> requests) {
  if (requests.empty()) return;
  Batch batch{.left = requests.size()};
  std::vector<Pending> pending;
  pending.reserve(requests.size());
  for (NbdRequest& request : requests) pending.push_back({this, &batch, &request});
  std::unique_lock lock(mutex_);
  if (!status_.ok()) {
    for (NbdRequest& request : requests) request.status = status_;
    return;
  }
  for (Pending& one : pending) queue_.push_back(&one);
  lock.unlock();
  Wake();
  lock.lock();
  batch.done.wait(lock, [&batch] { return batch.left == 0; });
}

// --- The thread ---

void NbdConnection::Serve(const std::string& uri, UriFrom from) {
  absl::Status status = Connect(uri, from);
  const bool connected = status.ok();
  {
    const std::lock_guard lock(mutex_);
    status_ = std::move(status);
    is_opened_ = true;
    opened_.notify_all();
  }
  while (connected && Turn()) {
  }
  if (handle_ == nullptr) return;
  if (connected) SayGoodbye();
  library_->close(handle_);
}

std::string NbdConnection::LastError() const {
  const char* const error = library_->get_error();
  if (error == nullptr) return "the connection failed";
  absl::string_view words = error;
  // "nbd_aio_notify_read: ...": which function it was tells the user nothing.
  const size_t colon = words.find(": ");
  if (absl::StartsWith(words, "nbd_") && colon != absl::string_view::npos) {
    words.remove_prefix(colon + 2);
  }
  return std::string(words);
}

absl::Status NbdConnection::Connect(const std::string& uri, UriFrom from) {
  const auto failed = [this] { return absl::UnavailableError(LastError()); };
  handle_ = library_->create();
  if (handle_ == nullptr) return failed();
  if (library_->set_uri_allow_local_file(handle_, from == UriFrom::kUser) != 0 ||
      library_->add_meta_context(handle_, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0 ||
      library_->aio_connect_uri(handle_, uri.c_str()) != 0) {
    return failed();
  }
  const absl::Time deadline = absl::Now() + kHandshakeLimit;
  while (library_->aio_is_ready(handle_) != 1) {
    const absl::Duration left = deadline - absl::Now();
    if (left <= absl::ZeroDuration()) {
      return absl::UnavailableError(
          "the server does not answer (some serve only one client at a time)");
    }
    const absl::Status status =
        WaitAndNotify(static_cast<int>(absl::ToInt64Milliseconds(left)) + 1);
    if (!status.ok()) return status;
  }
  NoticeVanishedHosts(library_->aio_get_fd(handle_));
  return LearnFacts();
}

absl::Status NbdConnection::LearnFacts() {
  const int64_t size = library_->get_size(handle_);
  if (size < 0) return absl::UnavailableError(LastError());
  facts_.size_bytes = static_cast<uint64_t>(size);
  facts_.read_only = library_->is_read_only(handle_) != 0;
  facts_.can_flush = library_->can_flush(handle_) == 1;
  facts_.can_fua = library_->can_fua(handle_) == 1;
  facts_.can_zero = library_->can_zero(handle_) == 1;
  facts_.can_fast_zero = library_->can_fast_zero(handle_) == 1;
  facts_.tells_zeros = library_->can_meta_context(handle_, LIBNBD_CONTEXT_BASE_ALLOCATION) == 1;
  const int64_t block = library_->get_block_size(handle_, LIBNBD_SIZE_MINIMUM);
  // A server that says nothing may want whole sectors, unless its export has no whole number.
  const uint64_t unsaid = facts_.size_bytes % 512 == 0 ? 512 : 1;
  facts_.block_bytes = block > 0 ? static_cast<uint64_t>(block) : unsaid;
  const int64_t most = library_->get_block_size(handle_, LIBNBD_SIZE_MAXIMUM);
  const uint64_t believed = most > 0 ? static_cast<uint64_t>(most) : kMostRequestBytes;
  facts_.most_request_bytes =
      std::clamp(believed, std::max(kLeastRequestBytes, facts_.block_bytes), kMostRequestBytes) /
      facts_.block_bytes * facts_.block_bytes;
  // We round requests to blocks ourselves. What an end of the export that is no whole block is
  // worth, the server decides.
  library_->set_strict_mode(
      handle_, library_->get_strict_mode(handle_) & ~static_cast<uint32_t>(LIBNBD_STRICT_ALIGN));
  return absl::OkStatus();
}

// One round: what is queued goes out, what comes back is delivered. False at the end.
bool NbdConnection::Turn() {
  IssueQueued();
  // What could not even be issued must not wait for something else to happen.
  const absl::Status status = done_.empty() ? WaitAndNotify(/*timeout_ms=*/-1) : StillThere();
  if (!status.ok()) {
    Lose(status);
    return false;
  }
  Deliver(std::exchange(done_, {}));
  const std::lock_guard lock(mutex_);
  return !stop_;
}

void NbdConnection::IssueQueued() {
  std::vector<Pending*> now;
  {
    const std::lock_guard lock(mutex_);
    while (!queue_.empty() && in_flight_.size() + now.size() < kMostInFlight) {
      now.push_back(queue_.front());
      queue_.pop_front();
    }
  }
  for (Pending* pending : now) {
    // It may be complete before the call that issues it returns.
    in_flight_.insert(pending);
    if (Issue(*pending) >= 0) continue;
    const int error = library_->get_errno();
    pending->request->status = StatusOf(*pending->request, error != 0 ? error : EIO, LastError());
    if (in_flight_.erase(pending) != 0) done_.push_back(pending);
  }
}

int64_t NbdConnection::Issue(Pending& pending) {
  const NbdRequest& request = *pending.request;
  const nbd_completion_callback completion = {&OnComplete, &pending, nullptr};
  const uint32_t durable = request.durable ? LIBNBD_CMD_FLAG_FUA : 0;
  const uint64_t offset = request.offset_bytes, length = request.length_bytes;
  switch (request.kind) {
    case NbdRequest::Kind::kRead:
      return library_->aio_pread(handle_, request.into, length, offset, completion, 0);
    case NbdRequest::Kind::kWrite:
      return library_->aio_pwrite(handle_, request.from, length, offset, completion, durable);
    case NbdRequest::Kind::kFlush:
      return library_->aio_flush(handle_, completion, 0);
    case NbdRequest::Kind::kZero:
      return library_->aio_zero(handle_, length, offset, completion,
                                durable | (request.fast ? LIBNBD_CMD_FLAG_FAST_ZERO : 0));
    case NbdRequest::Kind::kBlockStatus:
      return library_->aio_block_status(handle_, length, offset, {&OnStretches, &pending, nullptr},
                                        completion, 0);
  }
  return -1;
}

// libnbd calls this while it holds its lock on the connection: it must not be called from here.
int NbdConnection::OnComplete(void* pending, int* error) {
  Pending& done = *static_cast<Pending*>(pending);
  NbdConnection& connection = *done.connection;
  done.request->status = StatusOf(*done.request, *error, std::strerror(*error));
  if (connection.in_flight_.erase(&done) != 0) connection.done_.push_back(&done);
  return 1;  // libnbd may forget it
}

int NbdConnection::OnStretches(void* pending, const char* context, uint64_t offset,
                               uint32_t* entries, size_t count, int* /*error*/) {
  std::vector<NbdStretch>& stretches = *static_cast<Pending*>(pending)->request->stretches;
  // One answer is all that there may be.
  if (absl::string_view(context) != LIBNBD_CONTEXT_BASE_ALLOCATION || !stretches.empty()) return 0;
  // Pairs of a length and flags. Lengths have 32 bits, so their sum cannot overflow.
  uint64_t end = offset;
  for (size_t i = 0; i + 1 < count && stretches.size() < kMostStretches; i += 2) {
    end += entries[i];
    const bool zeros = (entries[i + 1] & LIBNBD_STATE_ZERO) != 0;
    if (!stretches.empty() && stretches.back().reads_as_zeros == zeros) {
      stretches.back().end_bytes = end;
    } else {
      stretches.push_back({end, zeros});
    }
  }
  return 0;
}

absl::Status NbdConnection::StillThere() const {
  if (library_->aio_is_closed(handle_) == 1) {
    return absl::UnavailableError("the server closed the connection");
  }
  if (library_->aio_is_dead(handle_) == 1) return absl::UnavailableError(LastError());
  return absl::OkStatus();
}

absl::Status NbdConnection::WaitAndNotify(int timeout_ms) {
  if (absl::Status status = StillThere(); !status.ok()) return status;
  const auto goes = [this](unsigned direction) {
    return (library_->aio_get_direction(handle_) & direction) != 0;
  };
  std::array<pollfd, 2> fds = {
      {{library_->aio_get_fd(handle_), 0, 0}, {wake_fd_.get(), POLLIN, 0}}};
  if (goes(LIBNBD_AIO_DIRECTION_READ)) fds[0].events |= POLLIN;
  if (goes(LIBNBD_AIO_DIRECTION_WRITE)) fds[0].events |= POLLOUT;
  if (poll(fds.data(), fds.size(), timeout_ms) < 0 && errno != EINTR) {
    return absl::UnavailableError(std::strerror(errno));
  }
  if (fds[1].revents != 0) {
    uint64_t wakes = 0;
    ABSL_ATTRIBUTE_UNUSED const ssize_t ignored = read(wake_fd_.get(), &wakes, sizeof(wakes));
  }
  constexpr int kEnded = POLLHUP | POLLERR | POLLNVAL;
  int result = 0;
  if (goes(LIBNBD_AIO_DIRECTION_READ) && (fds[0].revents & (POLLIN | kEnded)) != 0) {
    result = library_->aio_notify_read(handle_);
  } else if ((fds[0].revents & (POLLOUT | kEnded)) != 0) {
    result = library_->aio_notify_write(handle_);
  }
  return result == 0 ? StillThere() : absl::UnavailableError(LastError());
}

void NbdConnection::Lose(const absl::Status& why) {
  // Before anybody is woken: libnbd must not touch their buffers any more.
  library_->close(std::exchange(handle_, nullptr));
  std::vector<Pending*> lost = std::exchange(done_, {});
  lost.insert(lost.end(), in_flight_.begin(), in_flight_.end());
  in_flight_.clear();
  {
    const std::lock_guard lock(mutex_);
    status_ = absl::UnavailableError(
        absl::StrCat("the connection to the server is lost: ", why.message()));
    lost.insert(lost.end(), queue_.begin(), queue_.end());
    queue_.clear();
    for (Pending* pending : lost) pending->request->status = status_;
  }
  Deliver(lost);
}

void NbdConnection::Deliver(const std::vector<Pending*>& done) {
  if (done.empty()) return;
  const std::lock_guard lock(mutex_);
  for (Pending* pending : done) {
    Batch& batch = *pending->batch;
    // With the lock held: who waits for the batch ends its life.
    if (--batch.left == 0) batch.done.notify_all();
  }
}

void NbdConnection::SayGoodbye() {
  const absl::Time deadline = absl::Now() + kGoodbyeLimit;
  if (library_->aio_disconnect(handle_, 0) != 0) return;
  while (absl::Now() < deadline && WaitAndNotify(/*timeout_ms=*/100).ok()) {
  }
}

}  // namespace qcow2check

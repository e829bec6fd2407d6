#include "cli/watch.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"

namespace qcow2check {
namespace {

// A check that is over at once needs no line.
constexpr absl::Duration kBeforeFirstLine = absl::Seconds(1);
constexpr absl::Duration kBetweenUpdates = absl::Milliseconds(250);
constexpr absl::Duration kBetweenLines = absl::Seconds(5);
constexpr char kEraseLine[] = "\r\x1b[K";

std::string MebiBytes(uint64_t bytes) {
  return absl::StrFormat("%.1f MiB", static_cast<double>(bytes) / (1 << 20));
}

}  // namespace

Watch::Watch(Progress& progress, uint64_t images, Show show)
    : progress_(progress), images_(images), show_(show), begin_(absl::Now()) {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) sigaddset(&signals, signal);
  pthread_sigmask(SIG_BLOCK, &signals, &signals_before_);
  signals_fd_ = signalfd(-1, &signals, SFD_CLOEXEC);
  end_fd_ = eventfd(0, EFD_CLOEXEC);
  try {
    if (signals_fd_ >= 0 && end_fd_ >= 0) thread_ = std::thread([this] { Run(); });
  } catch (const std::system_error&) {
    // No thread is to be had: nobody watches.
  }
  if (!thread_.joinable()) pthread_sigmask(SIG_SETMASK, &signals_before_, nullptr);
}

Watch::~Watch() {
  if (thread_.joinable()) {
    eventfd_write(end_fd_, 1);
    thread_.join();
    pthread_sigmask(SIG_SETMASK, &signals_before_, nullptr);
  }
  for (const int fd : {signals_fd_, end_fd_}) {
    if (fd >= 0) close(fd);
  }
}

void Watch::Run() {
  // When nobody reads the lines any more the work goes on: it may be a repair.
  sigset_t pipe;
  sigemptyset(&pipe);
  sigaddset(&pipe, SIGPIPE);
  pthread_sigmask(SIG_BLOCK, &pipe, nullptr);
  absl::Duration wait = show_ == Show::kNothing ? absl::InfiniteDuration() : kBeforeFirstLine;
  pollfd fds[] = {{.fd = signals_fd_, .events = POLLIN, .revents = 0},
                  {.fd = end_fd_, .events = POLLIN, .revents = 0}};
  while (true) {
    const int timeout =
        wait == absl::InfiniteDuration() ? -1 : static_cast<int>(absl::ToInt64Milliseconds(wait));
    const int ready = poll(fds, 2, timeout);
    if (fds[1].revents != 0) return;
    signalfd_siginfo info;
    if (ready > 0 && read(signals_fd_, &info, sizeof(info)) == sizeof(info)) {
      TakeSignal(static_cast<int>(info.ssi_signo));
    } else if (ready == 0) {
      ShowLine(show_ == Show::kLine ? "" : "\n");
      wait = show_ == Show::kLine ? kBetweenUpdates : kBetweenLines;
    }
  }
}

void Watch::TakeSignal(int signal) {
  if (signal == SIGUSR1) {
    ShowLine("\n");
    return;
  }
  if (!progress_.stop.exchange(true)) return;
  // Whoever asks twice does not want to wait: the default action ends the program.
  sigset_t all;
  sigemptyset(&all);
  sigaddset(&all, signal);
  pthread_sigmask(SIG_UNBLOCK, &all, nullptr);
  raise(signal);
}

std::string Watch::Line() const {
  const uint64_t read = progress_.bytes_read;
  const uint64_t expected = std::max<uint64_t>(progress_.bytes_expected, read);
  const double seconds = absl::ToDoubleSeconds(absl::Now() - begin_);
  const double rate = static_cast<double>(read) / std::max(seconds, 1e-3);
  std::string line = "qcow2check: ";
  if (images_ > 1) absl::StrAppend(&line, images_done_.load(), " of ", images_, " images, ");
  absl::StrAppend(&line, MebiBytes(read), " of ", MebiBytes(expected), " of metadata",
                  absl::StrFormat(", %.1f MiB/s", rate / (1 << 20)));
  // How much the images that were not opened yet have is not known.
  if (images_ == 1 && expected > read && rate > 0) {
    absl::StrAppendFormat(&line, ", %.0f s left", static_cast<double>(expected - read) / rate);
  }
  return line;
}

void Watch::ShowLine(absl::string_view end) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const bool overwrite = line_is_shown_ || show_ == Show::kLine;
  const std::string text = absl::StrCat(overwrite ? kEraseLine : "", Line(), end);
  std::fwrite(text.data(), 1, text.size(), stderr);
  line_is_shown_ = end.empty();
}

void Watch::FinishImage() {
  ++images_done_;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (line_is_shown_) std::fputs(kEraseLine, stderr);
  line_is_shown_ = false;
}

}  // namespace qcow2check

// Somebody who watches the checks of a run: says on stderr how far they are, and takes the signals
// that ask for that or tell them to stop.
#ifndef QCOW2CHECK_CLI_WATCH_H_
#define QCOW2CHECK_CLI_WATCH_H_

#include <signal.h>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>

#include "absl/time/time.h"
#include "checker/progress.h"

namespace qcow2check {

class Watch {
 public:
  // What is shown without being asked for.
  enum class Show {
    kNothing,
    kLine,   // one line on a terminal, overwritten
    kLines,  // a line every few seconds
  };

  // Begins to watch the checks of `images` images that keep `progress` up to date. Must be made
  // before other threads are: they, too, leave SIGINT, SIGTERM and SIGUSR1 to it. SIGUSR1 prints
  // a line; the first SIGINT or SIGTERM sets progress.stop, the second ends the program.
  Watch(Progress& progress, uint64_t images, Show show);
  ~Watch();
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  // Says that one more image is done, and that something else is about to be printed.
  void FinishImage();

 private:
  void Run();
  void TakeSignal(int signal);
  void ShowLine(absl::string_view end);
  std::string Line() const;

  Progress& progress_;
  const uint64_t images_;
  const Show show_;
  const absl::Time begin_;
  sigset_t signals_before_;
  int signals_fd_ = -1;
  int end_fd_ = -1;  // written to when the watch ends
  std::atomic<uint64_t> images_done_{0};
  std::mutex mutex_;  // guards the line on the terminal
  bool line_is_shown_ = false;
  std::thread thread_;
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_CLI_WATCH_H_

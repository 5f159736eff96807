// One clock for all times of a record: milliseconds since the epoch, monotonic within the process.
#pragma once

#include <ctime>

namespace mote::runner {

inline double clock_ms(clockid_t id) {
  timespec time{};
  clock_gettime(id, &time);
  return static_cast<double>(time.tv_sec) * 1e3 + static_cast<double>(time.tv_nsec) / 1e6;
}

/// What is added to CLOCK_MONOTONIC, which the traces are in. The same for the whole process.
inline double monotonic_to_epoch_ms() {
  static const double offset = clock_ms(CLOCK_REALTIME) - clock_ms(CLOCK_MONOTONIC);
  return offset;
}

inline double now_ms() { return monotonic_to_epoch_ms() + clock_ms(CLOCK_MONOTONIC); }

}  // namespace mote::runner

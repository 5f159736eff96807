#include "memory_sampler.h"

#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <cstring>

#include "clock.h"

namespace mote::runner {
namespace {

constexpr auto kPeriod = std::chrono::milliseconds(10);

/// A line such as "RssAnon:\t    1234 kB"; 0 if there is none.
uint64_t field(const char* status, const char* name) {
  constexpr uint64_t kKilobyte = 1024;
  const char* found = std::strstr(status, name);
  return found == nullptr ? 0 : std::strtoull(found + std::strlen(name), nullptr, 10) * kKilobyte;
}

bool read_status(char* text, size_t size) {
  const int file = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
  if (file < 0) return false;
  const ssize_t count = read(file, text, size - 1);
  close(file);
  if (count <= 0) return false;
  text[count] = '\0';
  return true;
}

}  // namespace

MemorySampler::MemorySampler() {
  sample();
  thread_ = std::thread([this] {
    while (!stopped_) {
      std::this_thread::sleep_for(kPeriod);
      sample();
    }
  });
}

void MemorySampler::sample() {
  char text[8192];
  const std::lock_guard<std::mutex> lock(mutex_);  // before the clock, so that samples are in order
  const double when = now_ms();
  if (!read_status(text, sizeof(text))) return;
  samples_.push_back({when, field(text, "\nRssAnon:"), field(text, "\nRssFile:")});
}

void MemorySampler::stop() {
  stopped_ = true;
  if (thread_.joinable()) thread_.join();
}

}  // namespace mote::runner

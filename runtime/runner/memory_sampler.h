// Resident memory of this process over time.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace mote::runner {

struct MemorySample {
  double ms;
  uint64_t anonymous_bytes;
  uint64_t file_bytes;
};

/// Samples every 10 ms in a thread of its own, from its making to stop().
class MemorySampler {
 public:
  MemorySampler();
  ~MemorySampler() { stop(); }
  MemorySampler(const MemorySampler&) = delete;
  MemorySampler& operator=(const MemorySampler&) = delete;

  /// One more sample, at the end of a stage.
  void sample();

  void stop();

  /// After stop(), in order of time.
  const std::vector<MemorySample>& samples() const { return samples_; }

 private:
  std::mutex mutex_;
  std::vector<MemorySample> samples_;
  std::atomic<bool> stopped_{false};
  std::thread thread_;
};

}  // namespace mote::runner

#include "trace.h"

#include <pthread.h>
#include <sched.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>

namespace mote {
namespace {

static_assert(sizeof(MoteTraceEvent) == 64, "an event is a cache line, and a record of 64 bytes in files");
static_assert(sizeof(pthread_t) <= sizeof(uint64_t));

constexpr const char* kPhaseNames[] = {"layer",   "quantize",        "router", "route",   "gather",
                                       "gate_up", "quantize_hidden", "down",   "combine", "matmul",
                                       "linear"};
static_assert(sizeof(kPhaseNames) / sizeof(kPhaseNames[0]) == kNumPhases);

/// What the writers share. `events` and `capacity` change only while no recording runs and no writer is in between.
struct Recorder {
  std::atomic<uint64_t> recording{0};  // the number of the one that runs, or 0
  std::atomic<uint32_t> writers{0};    // those inside record()
  std::atomic<uint64_t> num_events{0};
  std::atomic<uint32_t> num_calls{0};
  MoteTraceEvent* events = nullptr;
  uint64_t capacity = 0;
};
Recorder recorder;

// start, stop and read exclude each other. Not std::mutex, which brings exceptions into the plugins.
pthread_mutex_t control = PTHREAD_MUTEX_INITIALIZER;
uint64_t last_recording = 0;

class Lock {
 public:
  Lock() { pthread_mutex_lock(&control); }
  ~Lock() { pthread_mutex_unlock(&control); }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;
};

/// After this no writer touches the events. A writer announces itself before it looks whether the recording runs, and here it is the
/// other way round, so (in the one order of these four operations) either it sees the end or is seen.
void end_recording() {
  recorder.recording.store(0, std::memory_order_seq_cst);
  while (recorder.writers.load(std::memory_order_seq_cst) != 0) sched_yield();  // for the copy of one event
}

uint64_t num_recorded() { return std::min(recorder.num_events.load(std::memory_order_relaxed), recorder.capacity); }

}  // namespace

uint64_t TraceCall::now_ns() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<uint64_t>(time.tv_sec) * 1000000000u + static_cast<uint64_t>(time.tv_nsec);
}

TraceCall::TraceCall(const void* layer) {
  if (recorder.recording.load(std::memory_order_relaxed) == 0) return;
  recorder.writers.fetch_add(1, std::memory_order_seq_cst);
  recording_ = recorder.recording.load(std::memory_order_seq_cst);
  if (recording_ != 0) call_ = recorder.num_calls.fetch_add(1, std::memory_order_relaxed);
  recorder.writers.fetch_sub(1, std::memory_order_release);
  layer_ = reinterpret_cast<uintptr_t>(layer);
}

void TraceCall::record(Phase phase, uint16_t expert, size_t tokens, size_t bytes, uint64_t begin_ns,
                       uint64_t end_ns) const {
  if (!is_on()) return;
  MoteTraceEvent recorded = event(phase, expert, tokens, begin_ns, end_ns);
  recorded.bytes = bytes;
  write(recorded);
}

void TraceCall::record_route(uint16_t expert, size_t token, size_t rank, uint64_t now_ns) const {
  if (!is_on()) return;
  MoteTraceEvent recorded = event(Phase::kRoute, expert, 1, now_ns, now_ns);
  recorded.token = static_cast<uint32_t>(token);
  recorded.rank = static_cast<uint32_t>(rank);
  write(recorded);
}

MoteTraceEvent TraceCall::event(Phase phase, uint16_t expert, size_t tokens, uint64_t begin_ns, uint64_t end_ns) const {
  MoteTraceEvent event = {};
  event.begin_ns = begin_ns;
  event.end_ns = end_ns;
  event.layer = layer_;
  const pthread_t thread = pthread_self();
  std::memcpy(&event.thread, &thread, sizeof(thread));
  event.call = call_;
  event.tokens = static_cast<uint32_t>(tokens);
  event.phase = static_cast<uint16_t>(phase);
  event.expert = expert;
  return event;
}

void TraceCall::write(const MoteTraceEvent& event) const {
  recorder.writers.fetch_add(1, std::memory_order_seq_cst);
  if (recorder.recording.load(std::memory_order_seq_cst) == recording_) {
    const uint64_t index = recorder.num_events.fetch_add(1, std::memory_order_relaxed);
    if (index < recorder.capacity) recorder.events[index] = event;
  }
  recorder.writers.fetch_sub(1, std::memory_order_release);
}

}  // namespace mote

using mote::recorder;

#define MOTE_EXPORT extern "C" __attribute__((visibility("default")))

MOTE_EXPORT int mote_trace_start(uint64_t capacity) {
  const mote::Lock lock;
  mote::end_recording();
  std::free(recorder.events);
  recorder.events = nullptr;
  recorder.capacity = 0;
  recorder.num_events.store(0, std::memory_order_relaxed);
  recorder.num_calls.store(0, std::memory_order_relaxed);
  if (capacity == 0 || capacity > SIZE_MAX / sizeof(MoteTraceEvent)) return 1;
  recorder.events = static_cast<MoteTraceEvent*>(std::malloc(static_cast<size_t>(capacity) * sizeof(MoteTraceEvent)));
  if (recorder.events == nullptr) return 1;
  recorder.capacity = capacity;
  recorder.recording.store(++mote::last_recording, std::memory_order_seq_cst);
  return 0;
}

MOTE_EXPORT uint64_t mote_trace_stop(uint64_t* dropped) {
  const mote::Lock lock;
  mote::end_recording();
  const uint64_t recorded = mote::num_recorded();
  if (dropped != nullptr) *dropped = recorder.num_events.load(std::memory_order_relaxed) - recorded;
  return recorded;
}

MOTE_EXPORT uint64_t mote_trace_read(MoteTraceEvent* out, uint64_t first, uint64_t count) {
  const mote::Lock lock;
  if (recorder.recording.load(std::memory_order_relaxed) != 0) return 0;
  const uint64_t recorded = mote::num_recorded();
  if (first >= recorded) return 0;
  const uint64_t copied = std::min(count, recorded - first);
  if (copied > 0) std::memcpy(out, recorder.events + first, static_cast<size_t>(copied) * sizeof(MoteTraceEvent));
  return copied;
}

MOTE_EXPORT const char* mote_trace_phase_name(uint16_t phase) {
  return phase < mote::kNumPhases ? mote::kPhaseNames[phase] : nullptr;
}

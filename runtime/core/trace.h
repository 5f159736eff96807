// How the steps of a call are recorded, for mote/trace.h. Internal to the core.
//
// A call asks once, at its beginning, whether a recording runs (one relaxed load); after that its steps only look at a member. A
// recording has a number, and an event is written only while the recording of its number runs.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mote/trace.h"

namespace mote {

/// Their names are in trace.cpp, in the same order.
enum class Phase : uint16_t {
  kLayer,           // a whole call
  kQuantize,        // rows of x
  kRouter,          // logits, softmax, top-k
  kRoute,           // no time: an expert that a token goes to
  kGather,          // rows of x into tiles
  kGateUp,          // with the activation
  kQuantizeHidden,  // rows of h, and into tiles
  kDown,
  kCombine,  // weighted sum over experts
  kMatMul,   // of TernaryMatMul
  kLinear,   // of QuantizedMatMul
};
inline constexpr size_t kNumPhases = 11;

inline constexpr uint16_t kNoExpert = MOTE_TRACE_NO_EXPERT;
inline constexpr uint16_t kSharedExpert = MOTE_TRACE_SHARED_EXPERT;

/// One call of an operator. Its tasks may record from any thread.
class TraceCall {
 public:
  /// Takes part in the recording under way, if there is one.
  explicit TraceCall(const void* layer);

  bool is_on() const { return recording_ != 0; }
  static uint64_t now_ns();

  /// These do nothing if is_on() is false, or the recording has ended since.
  void record(Phase phase, uint16_t expert, size_t tokens, size_t bytes, uint64_t begin_ns, uint64_t end_ns) const;
  void record_route(uint16_t expert, size_t token, size_t rank, uint64_t now_ns) const;

 private:
  MoteTraceEvent event(Phase phase, uint16_t expert, size_t tokens, uint64_t begin_ns, uint64_t end_ns) const;
  void write(const MoteTraceEvent& event) const;

  uint64_t recording_ = 0;  // 0: none
  uint64_t layer_ = 0;
  uint32_t call_ = 0;
};

/// Records its own lifetime.
class Span {
 public:
  Span(const TraceCall& call, Phase phase, uint16_t expert, size_t tokens, size_t bytes = 0)
      : call_(call), bytes_(bytes), tokens_(tokens), phase_(phase), expert_(expert) {
    if (call.is_on()) begin_ns_ = TraceCall::now_ns();
  }
  ~Span() {
    if (call_.is_on()) call_.record(phase_, expert_, tokens_, bytes_, begin_ns_, TraceCall::now_ns());
  }
  Span(const Span&) = delete;
  Span& operator=(const Span&) = delete;

 private:
  const TraceCall& call_;
  uint64_t begin_ns_ = 0;
  size_t bytes_;
  size_t tokens_;
  Phase phase_;
  uint16_t expert_;
};

}  // namespace mote

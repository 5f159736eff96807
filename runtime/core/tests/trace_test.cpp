// What a recording holds: every call as it was, and nothing else, whoever starts and stops it when.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "layer_fixture.h"
#include "matmul_fixture.h"
#include "mote/trace.h"
#include "random_order_pool.h"

namespace mote::test {
namespace {

using Events = std::vector<MoteTraceEvent>;

constexpr uint64_t kEnough = 1 << 16;

std::string phase_of(const MoteTraceEvent& event) { return mote_trace_phase_name(event.phase); }

Events stop_and_read() {
  uint64_t dropped = 0;
  Events events(mote_trace_stop(&dropped));
  EXPECT_EQ(dropped, 0u);
  EXPECT_EQ(mote_trace_read(events.data(), 0, events.size() + 5), events.size());
  return events;
}

/// The events of what `work` computes.
template <class Work>
Events record(Work work) {
  EXPECT_EQ(mote_trace_start(kEnough), 0);
  work();
  return stop_and_read();
}

uint64_t sum_of(const Events& events, const std::string& phase, uint32_t MoteTraceEvent::* field) {
  uint64_t sum = 0;
  for (const MoteTraceEvent& event : events) sum += phase_of(event) == phase ? event.*field : 0;
  return sum;
}

uint64_t bytes_of(const Events& events) {
  uint64_t sum = 0;
  for (const MoteTraceEvent& event : events) sum += event.bytes;
  return sum;
}

std::set<std::string> phases_of(const Events& events) {
  std::set<std::string> phases;
  for (const MoteTraceEvent& event : events) phases.insert(phase_of(event));
  return phases;
}

/// Each call has one `layer`, all its other spans inside of that, and the identity of the layer.
void expect_whole_calls(const Events& events, size_t calls, const void* layer) {
  std::map<uint32_t, MoteTraceEvent> whole;
  for (const MoteTraceEvent& event : events) {
    if (phase_of(event) != "layer") continue;
    EXPECT_TRUE(whole.emplace(event.call, event).second) << "two of call " << event.call;
  }
  EXPECT_EQ(whole.size(), calls);
  for (const MoteTraceEvent& event : events) {
    ASSERT_EQ(whole.count(event.call), 1u);
    const MoteTraceEvent& call = whole[event.call];
    EXPECT_LE(call.begin_ns, event.begin_ns) << phase_of(event);
    EXPECT_LE(event.begin_ns, event.end_ns) << phase_of(event);
    EXPECT_LE(event.end_ns, call.end_ns) << phase_of(event);
    EXPECT_EQ(event.layer, reinterpret_cast<uintptr_t>(layer));
    EXPECT_EQ(event.reserved, 0u);
    if (phase_of(event) != "route") {
      EXPECT_EQ(event.token, 0u);
      EXPECT_EQ(event.rank, 0u);
    }
  }
}

/// Of a token that every expert's matrices are as large for.
uint64_t stored_bytes_of_one_token(const LayerTensors& tensors) {
  const auto experts = static_cast<uint64_t>(tensors.dimensions.num_experts);
  const uint64_t of_experts = tensors.gate_up_packed.size() + tensors.gate_up_scale.size() +
                              tensors.down_packed.size() + tensors.down_scale.size();
  uint64_t bytes = tensors.router.size() + of_experts / experts * static_cast<uint64_t>(tensors.dimensions.top_k);
  for (const Tensor* tensor : {&tensors.shared_gate_up, &tensors.shared_gate_up_scale, &tensors.shared_down,
                               &tensors.shared_down_scale}) {
    if (!tensor->is_absent()) bytes += tensor->size();
  }
  return bytes;
}

TEST(Trace, HoldsEveryPhaseOfALayer) {
  Rng rng(50);
  for (const Formats& formats : kFormats) {
    const LayerTensors tensors(with_formats({5, 2, 340, 1200, true}, formats), rng);
    const TernaryMoE layer = tensors.create();
    for (const size_t tokens : {1, 40}) {
      const std::vector<float> x = random_values(tokens * 340, rng);
      RandomOrderPool pool(3, rng());
      const Events events = record([&] { compute(layer, supported_isas().back(), x, pool.view()); });
      SCOPED_TRACE(to_string(tensors.dimensions) + " tokens=" + std::to_string(tokens));

      expect_whole_calls(events, 1, tensors.gate_up_packed.data());
      EXPECT_EQ(phases_of(events), (std::set<std::string>{"layer", "quantize", "router", "route", "gather", "gate_up",
                                                          "quantize_hidden", "down", "combine"}));
      for (const char* phase : {"layer", "quantize", "router"}) {
        EXPECT_EQ(sum_of(events, phase, &MoteTraceEvent::tokens), tokens) << phase;
      }
      EXPECT_EQ(sum_of(events, "route", &MoteTraceEvent::tokens), 2 * tokens);
      const size_t slots = (tensors.dimensions.shared_format == "none" ? 2 : 3) * tokens;
      EXPECT_EQ(sum_of(events, "gather", &MoteTraceEvent::tokens), slots);
      EXPECT_EQ(sum_of(events, "quantize_hidden", &MoteTraceEvent::tokens), slots);
      if (tokens == 1) {
        EXPECT_EQ(bytes_of(events), stored_bytes_of_one_token(tensors));
      }
    }
  }
}

TEST(Trace, NamesTheExperts) {
  Rng rng(51);
  const LayerTensors tensors({4, 1, 40, 40, false, "2bit", "int4", 32}, rng);
  const std::vector<float> x = random_values(60 * 40, rng);
  const Events events = record([&] { compute(tensors.create(), supported_isas().back(), x); });
  std::map<uint16_t, uint64_t> load;
  for (const MoteTraceEvent& event : events) {
    if (phase_of(event) == "route") load[event.expert] += event.tokens;
  }
  ASSERT_GE(load.size(), 2u);
  for (const char* phase : {"gather", "gate_up", "quantize_hidden", "down"}) {
    std::map<uint16_t, uint64_t> tokens;
    for (const MoteTraceEvent& event : events) {
      if (phase_of(event) == phase) tokens[event.expert] += event.tokens;
    }
    EXPECT_EQ(tokens[MOTE_TRACE_SHARED_EXPERT], 60u) << phase;
    tokens.erase(MOTE_TRACE_SHARED_EXPERT);
    EXPECT_EQ(tokens, load) << phase;
  }
  for (const MoteTraceEvent& event : events) {
    const std::set<std::string> of_all = {"layer", "quantize", "router", "combine"};
    EXPECT_EQ(event.expert == MOTE_TRACE_NO_EXPERT, of_all.count(phase_of(event)) == 1) << phase_of(event);
  }
}

/// Experts by the token's logits, the greatest first, in double precision: random values have no ties.
std::vector<uint16_t> experts_in_order(const LayerTensors& tensors, const float* x) {
  const auto experts = static_cast<size_t>(tensors.dimensions.num_experts);
  const auto hidden = static_cast<size_t>(tensors.dimensions.hidden_size);
  std::vector<double> logits(experts, 0.0);
  for (size_t i = 0; i < experts * hidden; ++i) {
    logits[i / hidden] += static_cast<double>(tensors.router.get_float(i)) * static_cast<double>(x[i % hidden]);
  }
  std::vector<uint16_t> order(experts);
  std::iota(order.begin(), order.end(), uint16_t{0});
  std::sort(order.begin(), order.end(), [&](uint16_t a, uint16_t b) { return logits[a] > logits[b]; });
  return order;
}

TEST(Trace, SaysWhereEachTokenGoes) {
  Rng rng(62);
  const LayerTensors tensors({5, 3, 40, 40, true, "2bit", "int8"}, rng);
  std::vector<float> x = random_values(21 * 40, rng);
  x[9 * 40] = std::numeric_limits<float>::infinity();  // goes nowhere
  RandomOrderPool pool(3, rng());
  const Events events =
      record([&] { compute_in_chunks(tensors.create(), supported_isas().back(), x, 8, pool.view()); });
  using Route = std::tuple<uint32_t, uint32_t, uint16_t>;
  std::vector<Route> found, expected;
  for (const MoteTraceEvent& event : events) {
    if (phase_of(event) == "route") found.emplace_back(event.token, event.rank, event.expert);
  }
  for (uint32_t token = 0; token < 21; ++token) {
    const std::vector<uint16_t> order = experts_in_order(tensors, x.data() + token * 40);
    for (uint32_t rank = 0; token != 9 && rank < 3; ++rank) expected.emplace_back(token, rank, order[rank]);
  }
  EXPECT_EQ(found, expected);
}

TEST(Trace, ReadsWeightsAgainForEveryChunk) {
  Rng rng(52);
  const LayerTensors tensors({1, 1, 40, 40, false, "2bit", "int8"}, rng);
  const std::vector<float> x = random_values(21 * 40, rng);
  const Events events = record([&] { compute_in_chunks(tensors.create(), supported_isas().back(), x, 7); });
  expect_whole_calls(events, 1, tensors.gate_up_packed.data());
  EXPECT_EQ(bytes_of(events), 3 * stored_bytes_of_one_token(tensors));
  EXPECT_EQ(sum_of(events, "route", &MoteTraceEvent::tokens), 21u);
}

TEST(Trace, HoldsEveryPhaseOfAMatMul) {
  Rng rng(53);
  for (const char* packing : {"2bit", "1.6bit"}) {
    const MatMulTensors tensors(3000, 5000, packing, rng);
    for (const size_t tokens : {1, 40}) {
      const std::vector<float> x = random_values(tokens * 3000, rng);
      RandomOrderPool pool(3, rng());
      const Events events = record(
          [&] { compute_in_chunks(tensors.create(), supported_isas().back(), x, tokens, pool.view()); });
      expect_whole_calls(events, 1, tensors.packed.data());
      EXPECT_EQ(phases_of(events), (std::set<std::string>{"layer", "quantize", "matmul"}));
      EXPECT_EQ(bytes_of(events), tensors.packed.size() + tensors.scale.size());
      EXPECT_EQ(sum_of(events, "quantize", &MoteTraceEvent::tokens), tokens);
    }
  }
}

TEST(Trace, HoldsEveryPhaseOfAQuantizedMatMul) {
  Rng rng(55);
  for (const bool has_bias : {false, true}) {
    for (const auto& [format, group_size] : {std::pair{"bf16", 0}, std::pair{"int8", 0}, std::pair{"int4", 64}}) {
      const QuantizedMatMulTensors tensors(1000, 2001, format, group_size, has_bias, rng);
      const std::vector<float> x = random_values(3 * 1000, rng);
      RandomOrderPool pool(3, rng());
      const Events events =
          record([&] { compute_in_chunks(tensors.create(), supported_isas().back(), x, 3, pool.view()); });
      expect_whole_calls(events, 1, tensors.weight.data());
      EXPECT_EQ(phases_of(events), (std::set<std::string>{"layer", "quantize", "linear"}));
      EXPECT_EQ(bytes_of(events), tensors.weight.size() + (tensors.scale.is_absent() ? 0 : tensors.scale.size()) +
                                      (has_bias ? tensors.bias.size() : 0));
    }
  }
}

TEST(Trace, TokensThatAreNotFiniteGoToNoExpert) {
  Rng rng(54);
  const LayerTensors tensors({3, 2, 40, 40, false, "2bit", "bf16"}, rng);
  std::vector<float> x = random_values(3 * 40, rng);
  x[40] = std::numeric_limits<float>::infinity();
  Events events = record([&] { compute(tensors.create(), supported_isas().back(), x); });
  EXPECT_EQ(sum_of(events, "route", &MoteTraceEvent::tokens), 4u);
  x.assign(x.size(), std::numeric_limits<float>::infinity());
  events = record([&] { compute(tensors.create(), supported_isas().back(), x); });
  expect_whole_calls(events, 1, tensors.gate_up_packed.data());
  EXPECT_EQ(phases_of(events), (std::set<std::string>{"layer", "quantize", "router", "combine"}));
}

TEST(Trace, ChangesNoBit) {
  Rng rng(55);
  for (const Formats& formats : kFormats) {
    const LayerTensors tensors(with_formats({4, 2, 37, 36, true}, formats), rng);
    const std::vector<float> x = random_values(30 * 37, rng);
    const std::vector<float> expected = tensors.expected(x);
    for (const IsaEntry& isa : supported_isas()) {
      std::vector<float> y;
      record([&] { y = compute_in_chunks(tensors.create(), isa, x, 7); });
      expect_same_bits(y, expected, to_string(tensors.dimensions) + " traced on " + isa.name);
    }
  }
}

TEST(Trace, CountsWhatDoesNotFit) {
  Rng rng(56);
  const LayerTensors tensors({4, 1, 40, 40}, rng);
  const std::vector<float> x = random_values(40, rng);
  const auto run = [&] { compute(tensors.create(), supported_isas().back(), x); };
  const Events all = record(run);
  ASSERT_GT(all.size(), 3u);
  ASSERT_EQ(mote_trace_start(3), 0);
  run();
  uint64_t dropped = 0;
  EXPECT_EQ(mote_trace_stop(&dropped), 3u);
  EXPECT_EQ(dropped, all.size() - 3);
  EXPECT_EQ(mote_trace_stop(nullptr), 3u) << "stopping again changes nothing";

  Events some(all.size());
  EXPECT_EQ(mote_trace_read(some.data(), 0, some.size()), 3u);
  EXPECT_EQ(mote_trace_read(some.data(), 2, some.size()), 1u);
  EXPECT_EQ(mote_trace_read(some.data(), 1, 1), 1u);
  EXPECT_EQ(phase_of(some[0]), phase_of(all[1]));
  EXPECT_EQ(mote_trace_read(some.data(), 3, 1), 0u);
  EXPECT_EQ(mote_trace_read(nullptr, 0, 0), 0u);
}

TEST(Trace, ForgetsWhatWasBefore) {
  Rng rng(57);
  const LayerTensors tensors({2, 1, 16, 16}, rng);
  const std::vector<float> x = random_values(16, rng);
  const auto run = [&] { compute(tensors.create(), supported_isas().back(), x); };
  const Events first = record(run);
  run();  // while nothing is recorded
  const Events second = record(run);
  EXPECT_EQ(first.size(), second.size());
  for (const MoteTraceEvent& event : second) EXPECT_EQ(event.call, 0u);

  MoteTraceEvent event;
  ASSERT_EQ(mote_trace_start(kEnough), 0);
  run();
  EXPECT_EQ(mote_trace_read(&event, 0, 1), 0u) << "while it runs";
  ASSERT_EQ(mote_trace_start(kEnough), 0);
  EXPECT_EQ(mote_trace_stop(nullptr), 0u);
}

TEST(Trace, RefusesImpossibleCapacities) {
  for (const uint64_t capacity : {uint64_t{0}, UINT64_MAX}) {
    EXPECT_EQ(mote_trace_start(capacity), 1) << capacity;
    uint64_t dropped = 1;
    EXPECT_EQ(mote_trace_stop(&dropped), 0u);
    EXPECT_EQ(dropped, 0u);
  }
}

TEST(Trace, NamesAllPhasesOnce) {
  std::set<std::string> names;
  uint16_t phase = 0;
  while (mote_trace_phase_name(phase) != nullptr) names.insert(mote_trace_phase_name(phase++));
  EXPECT_EQ(names.size(), phase);
  EXPECT_EQ(mote_trace_phase_name(UINT16_MAX), nullptr);
}

/// Does something before one step of a call.
struct MeddlingPool {
  size_t step;
  void (*meddle)();
  size_t steps = 0;

  ThreadPool view() {
    return {[](void* self_pointer, void (*task)(void*, size_t), size_t count, void* arg) {
              auto& self = *static_cast<MeddlingPool*>(self_pointer);
              if (self.steps++ == self.step) self.meddle();
              for (size_t i = 0; i < count; ++i) task(arg, i);
              return true;
            },
            this};
  }
};

TEST(Trace, CallsUnderWayEnterNoNewRecording) {
  Rng rng(58);
  const LayerTensors tensors({2, 1, 64, 4096, false, "2bit", "int8"}, rng);
  const std::vector<float> x = random_values(30 * 64, rng);
  for (const bool was_recorded : {false, true}) {
    if (was_recorded) {
      ASSERT_EQ(mote_trace_start(kEnough), 0);
    }
    MeddlingPool pool = {1, [] { ASSERT_EQ(mote_trace_start(kEnough), 0); }};
    compute(tensors.create(), supported_isas().back(), x, pool.view());
    ASSERT_GT(pool.steps, 1u);
    EXPECT_EQ(mote_trace_stop(nullptr), 0u);
  }
}

TEST(Trace, ACallThatIsStoppedLacksItsEnd) {
  Rng rng(59);
  const LayerTensors tensors({2, 1, 64, 4096, false, "2bit", "int8"}, rng);
  const std::vector<float> x = random_values(30 * 64, rng);
  ASSERT_EQ(mote_trace_start(kEnough), 0);
  MeddlingPool pool = {1, [] { mote_trace_stop(nullptr); }};
  compute(tensors.create(), supported_isas().back(), x, pool.view());
  const Events events = stop_and_read();
  EXPECT_EQ(phases_of(events).count("quantize"), 1u);
  EXPECT_EQ(phases_of(events).count("layer"), 0u);
}

TEST(Trace, CallsOfSeveralThreadsKeepApart) {
  Rng rng(60);
  const LayerTensors tensors({4, 2, 40, 36, true, "2bit", "int8"}, rng);
  const TernaryMoE layer = tensors.create();
  const std::vector<float> x = random_values(12 * 40, rng);
  constexpr size_t kThreads = 4, kCalls = 8;
  const Events events = record([&] {
    std::vector<std::thread> threads;
    for (size_t i = 0; i < kThreads; ++i) {
      threads.emplace_back([&] {
        RandomOrderPool pool(2, 1);
        for (size_t call = 0; call < kCalls; ++call) compute(layer, supported_isas().back(), x, pool.view());
      });
    }
    for (std::thread& thread : threads) thread.join();
  });
  expect_whole_calls(events, kThreads * kCalls, tensors.gate_up_packed.data());
  std::map<uint32_t, uint64_t> load;
  for (const MoteTraceEvent& event : events) {
    if (phase_of(event) == "route") load[event.call] += event.tokens;
  }
  EXPECT_EQ(load.size(), kThreads * kCalls);
  for (const auto& [call, tokens] : load) EXPECT_EQ(tokens, 2 * 12u) << call;
}

TEST(Trace, MayStartAndStopAtAnyTime) {
  Rng rng(61);
  const LayerTensors tensors({4, 1, 40, 36, true, "1.6bit", "int4", 32}, rng);
  const TernaryMoE layer = tensors.create();
  const std::vector<float> x = random_values(6 * 40, rng);
  const std::vector<float> expected = tensors.expected(x);
  std::atomic<bool> done{false};
  std::vector<std::thread> threads;
  for (size_t i = 0; i < 2; ++i) {
    threads.emplace_back([&] {
      RandomOrderPool pool(2, 1);
      while (!done) expect_same_bits(compute(layer, supported_isas().back(), x, pool.view()), expected, "traced now and then");
    });
  }
  std::thread other([&] {  // in turn with the one below
    while (!done) mote_trace_stop(nullptr);
  });
  size_t recorded = 0;
  for (size_t round = 0; round < 300 || (recorded == 0 && round < 100000); ++round) {
    ASSERT_EQ(mote_trace_start(1 + round % 100), 0);
    std::this_thread::yield();
    Events events(mote_trace_stop(nullptr));
    recorded += events.size();
    EXPECT_EQ(mote_trace_read(events.data(), 0, events.size()), events.size());
    for (const MoteTraceEvent& event : events) {
      EXPECT_NE(mote_trace_phase_name(event.phase), nullptr);
      EXPECT_EQ(event.layer, reinterpret_cast<uintptr_t>(tensors.gate_up_packed.data()));
    }
  }
  done = true;
  for (std::thread& thread : threads) thread.join();
  other.join();
  EXPECT_GT(recorded, 0u);
}

}  // namespace
}  // namespace mote::test

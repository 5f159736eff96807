// Time of one layer of a 1.5B-scale model (hidden 1536, intermediate 8960, 4 experts, top-1), by tokens and threads, for a
// packing of the experts and a format of the shared one. Layers take turns, enough of them to exceed the caches, as the layers of a
// model do. MOTE_ISA chooses the kernels.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "layout.h"
#include "mote/ternary_moe.h"
#include "mote/trace.h"

namespace {

constexpr int64_t kHidden = 1536;
constexpr int64_t kIntermediate = 8960;
constexpr int64_t kExperts = 4;
constexpr size_t kLayers = 12;
constexpr double kExpertProducts = 3.0 * kHidden * kIntermediate;
constexpr int64_t kGroupSize = 128;

/// A point is measured for at least this long, and at least this often.
constexpr double kMillisecondsPerPoint = 700;
constexpr size_t kMinRounds = 6;

/// Waits by spinning at first, so that what is measured is the layer and not the system's wake-up; then gives way, for
/// machines with other work.
template <class Condition>
void wait_until(Condition condition) {
  constexpr int kSpins = 10000;
  for (int i = 0; !condition(); ++i) {
    if (i > kSpins) std::this_thread::yield();
  }
}

class SpinningPool {
 public:
  explicit SpinningPool(size_t threads) {
    for (size_t i = 1; i < threads; ++i) workers_.emplace_back([this] { wait_for_work(); });
  }
  ~SpinningPool() {
    stop_ = true;
    ++generation_;
    for (std::thread& worker : workers_) worker.join();
  }
  mote::ThreadPool view() {
    if (workers_.empty()) return {};
    return {[](void* self, void (*task)(void*, size_t), size_t count, void* arg) {
              static_cast<SpinningPool*>(self)->run(task, count, arg);
              return true;
            },
            this};
  }

 private:
  void run(void (*task)(void*, size_t), size_t count, void* arg) {
    task_ = task;
    arg_ = arg;
    count_ = count;
    next_ = 0;
    busy_ = workers_.size();
    ++generation_;
    work();
    wait_until([this] { return busy_ == 0; });
  }
  void work() {
    for (size_t i = next_++; i < count_; i = next_++) task_(arg_, i);
  }
  void wait_for_work() {
    size_t seen = 0;
    for (;;) {
      wait_until([&] { return generation_ != seen; });
      seen = generation_;
      if (stop_) return;
      work();
      --busy_;
    }
  }

  std::vector<std::thread> workers_;
  std::atomic<size_t> generation_{0}, next_{0}, busy_{0};
  std::atomic<bool> stop_{false};
  void (*task_)(void*, size_t) = nullptr;
  void* arg_ = nullptr;
  size_t count_ = 0;
};

std::vector<float> uniform(size_t count, float low, float high) {
  static std::mt19937 rng(1);
  std::uniform_real_distribution<float> distribution(low, high);
  std::vector<float> out(count);
  for (float& value : out) value = distribution(rng);
  return out;
}

using PackedBytes = std::unique_ptr<void, decltype(&std::free)>;

/// Aligned like the tensors of a mapped file. All bytes are alike, since time does not depend on them.
PackedBytes packed_bytes(size_t size) {
  PackedBytes out(std::aligned_alloc(64, size), &std::free);
  std::memset(out.get(), 0x59, size);
  return out;
}

/// The formats to measure, by the names of docs/operator.md.
struct Formats {
  std::string packing = "2bit";
  std::string shared = "none";

  mote::WeightFormat packed() const {
    return packing == "2bit" ? mote::WeightFormat::kTwoBit : mote::WeightFormat::kOneSixBit;
  }
  mote::WeightFormat shared_weights() const {
    return shared == "int4"   ? mote::WeightFormat::kInt4
           : shared == "int8" ? mote::WeightFormat::kInt8
                              : mote::WeightFormat::kBf16;
  }
  bool has_shared() const { return shared != "none"; }
};

int64_t lines(mote::WeightFormat format, int64_t inputs) {
  return static_cast<int64_t>(mote::num_lines(format, static_cast<size_t>(inputs)));
}

/// A packed tensor of this shape.
struct Tensor {
  std::vector<int64_t> shape;
  PackedBytes bytes;
  size_t size;

  Tensor(std::vector<int64_t> dimensions, size_t element_bytes) : shape(std::move(dimensions)), bytes(nullptr, &std::free) {
    size = element_bytes;
    for (const int64_t n : shape) size *= static_cast<size_t>(n);
    bytes = packed_bytes(size);
  }
  mote::TensorView view() const { return {bytes.get(), shape.data(), shape.size()}; }
};

struct Layer {
  std::vector<float> router = uniform(kExperts * kHidden, -0.05f, 0.05f);
  std::vector<float> gate_up_scale = uniform(kExperts * 2, 0.01f, 0.02f);
  std::vector<float> down_scale = uniform(kExperts, 0.01f, 0.02f);
  std::vector<Tensor> tensors;
  double expert_bytes = 0, shared_bytes = 0;
  mote::TernaryMoE moe;

  explicit Layer(const Formats& formats) {
    mote::TernaryMoEConfig config;
    config.num_experts = kExperts;
    config.top_k = 1;
    config.hidden_size = kHidden;
    config.intermediate_size = kIntermediate;
    config.activation = "silu";
    config.packing = formats.packing.c_str();
    config.layout_version = mote::kLayoutVersion;
    config.shared_format = formats.shared.c_str();
    config.shared_group_size = formats.shared == "int4" ? kGroupSize : 0;

    const mote::WeightFormat packed = formats.packed();
    tensors.emplace_back(std::vector<int64_t>{kExperts, kIntermediate / 16, 2, lines(packed, kHidden), 64}, 1);
    tensors.emplace_back(std::vector<int64_t>{kExperts, kHidden / 16, lines(packed, kIntermediate), 64}, 1);
    expert_bytes = static_cast<double>(tensors[0].size + tensors[1].size) / kExperts;
    if (formats.has_shared()) add_shared(formats);

    const int64_t router_shape[] = {kExperts, kHidden};
    const int64_t gate_up_scale_shape[] = {kExperts, 2};
    const int64_t down_scale_shape[] = {kExperts};
    mote::TernaryMoEWeights weights;
    weights.router = {router.data(), router_shape, 2};
    weights.gate_up_packed = tensors[0].view();
    weights.gate_up_scale = {gate_up_scale.data(), gate_up_scale_shape, 2};
    weights.down_packed = tensors[1].view();
    weights.down_scale = {down_scale.data(), down_scale_shape, 1};
    mote::TensorView* shared[] = {&weights.shared_gate_up, &weights.shared_down, &weights.shared_gate_up_scale,
                                  &weights.shared_down_scale};
    for (size_t i = 2; i < tensors.size(); ++i) *shared[i - 2] = tensors[i].view();
    const mote::Status status = mote::TernaryMoE::create(config, weights, &moe);
    if (!status.is_ok()) {
      std::fprintf(stderr, "%s\n", status.message());
      std::exit(1);
    }
  }

  void add_shared(const Formats& formats) {
    const mote::WeightFormat format = formats.shared_weights();
    tensors.emplace_back(std::vector<int64_t>{kIntermediate / 16, 2, lines(format, kHidden), 64}, 1);
    tensors.emplace_back(std::vector<int64_t>{kHidden / 16, lines(format, kIntermediate), 64}, 1);
    if (format != mote::WeightFormat::kBf16) {
      const int64_t group = format == mote::WeightFormat::kInt4 ? kGroupSize : kIntermediate + kHidden;
      const int64_t hidden_groups = (kHidden + group - 1) / group;
      const int64_t intermediate_groups = (kIntermediate + group - 1) / group;
      tensors.emplace_back(std::vector<int64_t>{kIntermediate / 16, 2, hidden_groups, 16}, 2);
      tensors.emplace_back(std::vector<int64_t>{kHidden / 16, intermediate_groups, 16}, 2);
    }
    for (size_t i = 2; i < tensors.size(); ++i) shared_bytes += static_cast<double>(tensors[i].size);
  }
};

/// How many experts the router selects for these tokens, and so how many are read.
size_t experts_used(const Layer& layer, const std::vector<float>& x) {
  bool used[kExperts] = {};
  for (size_t begin = 0; begin < x.size(); begin += kHidden) {
    size_t best = 0;
    double best_logit = -1e300;
    for (size_t e = 0; e < kExperts; ++e) {
      double logit = 0;
      for (size_t k = 0; k < kHidden; ++k) logit += x[begin + k] * layer.router[e * kHidden + k];
      if (logit > best_logit) best_logit = logit, best = e;
    }
    used[best] = true;
  }
  return static_cast<size_t>(std::count(used, used + kExperts, true));
}

struct Timing {
  double median_ms, best_ms, gigabytes;
};

Timing measure(const std::vector<std::unique_ptr<Layer>>& layers, size_t tokens, size_t threads) {
  using Clock = std::chrono::steady_clock;
  SpinningPool pool(threads);
  const std::vector<float> x = uniform(tokens * kHidden, -1.0f, 1.0f);
  std::vector<float> y(x.size());
  size_t bytes = 0;
  if (!layers[0]->moe.scratch_size(tokens, &bytes)) std::exit(1);
  std::unique_ptr<void, decltype(&std::free)> scratch(std::aligned_alloc(64, bytes), &std::free);

  std::vector<double> times;
  double total_ms = 0, gigabytes = 0;
  for (size_t i = 0; i < kMinRounds || total_ms < kMillisecondsPerPoint; ++i) {
    const Layer& layer = *layers[i % layers.size()];
    const Clock::time_point start = Clock::now();
    if (!layer.moe.compute(x.data(), y.data(), tokens, scratch.get(), pool.view())) std::exit(1);
    times.push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
    total_ms += times.back();
    if (i < layers.size()) {
      gigabytes += (static_cast<double>(experts_used(layer, x)) * layer.expert_bytes + layer.shared_bytes) / 1e9;
    }
  }
  gigabytes /= static_cast<double>(std::min(times.size(), layers.size()));
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times.front(), gigabytes};
}

/// The same layers with and without a recording (mote/trace.h), by turns, so that both meet the same machine.
void compare_traced(const std::vector<std::unique_ptr<Layer>>& layers, size_t tokens, size_t threads) {
  using Clock = std::chrono::steady_clock;
  constexpr uint64_t kCapacity = 1 << 16;
  SpinningPool pool(threads);
  const std::vector<float> x = uniform(tokens * kHidden, -1.0f, 1.0f);
  std::vector<float> y(x.size());
  size_t bytes = 0;
  if (!layers[0]->moe.scratch_size(tokens, &bytes)) std::exit(1);
  std::unique_ptr<void, decltype(&std::free)> scratch(std::aligned_alloc(64, bytes), &std::free);

  std::vector<double> times[2];
  uint64_t events = 0;
  double total_ms = 0;
  for (size_t i = 0; i < 2 * kMinRounds || total_ms < 4 * kMillisecondsPerPoint; ++i) {
    // Every layer meets both, and neither always comes first.
    const bool traced = (i + i / 2) % 2 != 0;
    if (traced && mote_trace_start(kCapacity) != 0) std::exit(1);
    const Clock::time_point start = Clock::now();
    if (!layers[i / 2 % layers.size()]->moe.compute(x.data(), y.data(), tokens, scratch.get(), pool.view())) std::exit(1);
    times[traced].push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
    total_ms += times[traced].back();
    if (traced) events = mote_trace_stop(nullptr);
  }
  for (std::vector<double>& side : times) std::sort(side.begin(), side.end());
  const double off = times[0][times[0].size() / 2], on = times[1][times[1].size() / 2];
  std::printf("%8zu %8zu %10.3f %10.3f %9.1f%% %10llu %8zu\n", tokens, threads, off, on, 100 * (on / off - 1),
              static_cast<unsigned long long>(events), times[1].size());
}

}  // namespace

/// Arguments: 2bit or 1.6bit, none, bf16, int8 or int4, and numbers of tokens; without any, 2bit none 1 4 16 128 512.
/// `trace` compares calls with and without a recording instead.
int main(int argc, char** argv) {
  std::vector<size_t> token_counts;
  Formats formats;
  bool trace = false;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "2bit" || word == "1.6bit") {
      formats.packing = word;
    } else if (word == "none" || word == "bf16" || word == "int8" || word == "int4") {
      formats.shared = word;
    } else if (word == "trace") {
      trace = true;
    } else if (const size_t tokens = std::strtoul(argv[i], nullptr, 10); tokens > 0) {
      token_counts.push_back(tokens);
    } else {
      std::fprintf(stderr, "\"%s\" is no packing, format or number of tokens\n", argv[i]);
      return 2;
    }
  }
  if (token_counts.empty()) token_counts = {1, 4, 16, 128, 512};

  std::vector<std::unique_ptr<Layer>> layers;
  for (size_t i = 0; i < kLayers; ++i) layers.push_back(std::make_unique<Layer>(formats));

  std::printf("%s, hidden %d, intermediate %d, %d experts, top-1, packing %s, shared expert %s\n", mote::isa_name(),
              static_cast<int>(kHidden), static_cast<int>(kIntermediate), static_cast<int>(kExperts),
              formats.packing.c_str(), formats.shared.c_str());
  if (trace) {
    std::printf("%8s %8s %10s %10s %10s %10s %8s\n", "tokens", "threads", "off ms", "on ms", "cost", "events", "calls");
    for (const size_t tokens : token_counts) {
      for (const size_t threads : {1, 2}) compare_traced(layers, tokens, threads);
    }
    return 0;
  }
  std::printf("%8s %8s %10s %10s %16s %14s\n", "tokens", "threads", "median ms", "best ms", "weights GB/s", "Gmul-add/s");
  const double products_per_token = kExpertProducts * (formats.has_shared() ? 2 : 1);
  for (const size_t tokens : token_counts) {
    for (const size_t threads : {1, 2}) {
      const Timing timing = measure(layers, tokens, threads);
      std::printf("%8zu %8zu %10.3f %10.3f %16.1f %14.1f\n", tokens, threads, timing.median_ms, timing.best_ms,
                  timing.gigabytes / timing.median_ms * 1e3,
                  static_cast<double>(tokens) * products_per_token / timing.median_ms / 1e6);
    }
  }
  return 0;
}

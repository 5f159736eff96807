// Time of one layer of a 1.5B-scale model (hidden 1536, intermediate 8960, 4 experts, top-1), by tokens and threads.
// Layers take turns, enough of them to exceed the caches, as the layers of a model do. MOTE_ISA chooses the kernels.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "mote/ternary_moe.h"

namespace {

constexpr int64_t kHidden = 1536;
constexpr int64_t kIntermediate = 8960;
constexpr int64_t kExperts = 4;
constexpr size_t kLayers = 12;
constexpr double kExpertProducts = 3.0 * kHidden * kIntermediate;
constexpr double kExpertBytes = kExpertProducts / 4;

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

struct Layer {
  std::vector<float> router = uniform(kExperts * kHidden, -0.05f, 0.05f);
  std::vector<float> gate_up_scale = uniform(kExperts * 2, 0.01f, 0.02f);
  std::vector<float> down_scale = uniform(kExperts, 0.01f, 0.02f);
  PackedBytes gate_up = packed_bytes(kExperts * kIntermediate * 2 * kHidden / 4);
  PackedBytes down = packed_bytes(kExperts * kHidden * kIntermediate / 4);
  mote::TernaryMoE moe;

  Layer() {
    mote::TernaryMoEConfig config;
    config.num_experts = kExperts;
    config.top_k = 1;
    config.hidden_size = kHidden;
    config.intermediate_size = kIntermediate;
    config.activation = "silu";
    config.packing = "2bit";
    config.layout_version = mote::kLayoutVersion;
    const int64_t router_shape[] = {kExperts, kHidden};
    const int64_t gate_up_shape[] = {kExperts, kIntermediate / 16, 2, kHidden / 16, 64};
    const int64_t gate_up_scale_shape[] = {kExperts, 2};
    const int64_t down_shape[] = {kExperts, kHidden / 16, kIntermediate / 16, 64};
    const int64_t down_scale_shape[] = {kExperts};
    const mote::TernaryMoEWeights weights = {{router.data(), router_shape, 2},
                                             {gate_up.get(), gate_up_shape, 5},
                                             {gate_up_scale.data(), gate_up_scale_shape, 2},
                                             {down.get(), down_shape, 4},
                                             {down_scale.data(), down_scale_shape, 1}};
    const mote::Status status = mote::TernaryMoE::create(config, weights, &moe);
    if (!status.is_ok()) {
      std::fprintf(stderr, "%s\n", status.message());
      std::exit(1);
    }
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
    if (i < layers.size()) gigabytes += static_cast<double>(experts_used(layer, x)) * kExpertBytes / 1e9;
  }
  gigabytes /= static_cast<double>(std::min(times.size(), layers.size()));
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times.front(), gigabytes};
}

}  // namespace

/// Arguments: numbers of tokens to measure; without any, 1 4 16 128 512.
int main(int argc, char** argv) {
  std::vector<size_t> token_counts;
  for (int i = 1; i < argc; ++i) token_counts.push_back(std::strtoul(argv[i], nullptr, 10));
  if (token_counts.empty()) token_counts = {1, 4, 16, 128, 512};

  std::vector<std::unique_ptr<Layer>> layers;
  for (size_t i = 0; i < kLayers; ++i) layers.push_back(std::make_unique<Layer>());

  std::printf("%s, hidden %d, intermediate %d, %d experts, top-1\n", mote::isa_name(), static_cast<int>(kHidden),
              static_cast<int>(kIntermediate), static_cast<int>(kExperts));
  std::printf("%8s %8s %10s %10s %16s %14s\n", "tokens", "threads", "median ms", "best ms", "weights GB/s", "Gmul-add/s");
  for (const size_t tokens : token_counts) {
    for (const size_t threads : {1, 2}) {
      const Timing timing = measure(layers, tokens, threads);
      const double products = static_cast<double>(tokens) * kExpertProducts;
      std::printf("%8zu %8zu %10.3f %10.3f %16.1f %14.1f\n", tokens, threads, timing.median_ms, timing.best_ms,
                  timing.gigabytes / timing.median_ms * 1e3, products / timing.median_ms / 1e6);
    }
  }
  return 0;
}

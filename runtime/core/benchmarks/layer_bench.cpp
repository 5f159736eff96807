// Time of one layer of a 1.5B-scale model (hidden 1536, intermediate 8960, 4 experts, top-1), by tokens and threads.
// Layers take turns, enough of them to exceed the caches, as the layers of a model do. MOTE_ISA chooses the kernels.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "mote/ternary_moe.h"

namespace {

constexpr int64_t kHidden = 1536;
constexpr int64_t kIntermediate = 8960;
constexpr int64_t kExperts = 4;
constexpr size_t kLayers = 12;
constexpr double kSecondsPerPoint = 0.7;

/// Workers that wait by spinning, so that what is measured is the layer and not the system's wake-up.
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
    while (busy_ != 0) {
    }
  }
  void work() {
    for (size_t i = next_++; i < count_; i = next_++) task_(arg_, i);
  }
  void wait_for_work() {
    size_t seen = 0;
    for (;;) {
      while (generation_ == seen) {
      }
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

/// Random weights. Packed bytes of zeros and pluses are as good as any: time does not depend on them.
struct Layer {
  std::vector<float> router = uniform(kExperts * kHidden, -0.05f, 0.05f);
  std::vector<float> gate_up_scale = uniform(kExperts * 2, 0.01f, 0.02f);
  std::vector<float> down_scale = uniform(kExperts, 0.01f, 0.02f);
  std::vector<uint8_t> gate_up = std::vector<uint8_t>(kExperts * kIntermediate * 2 * kHidden / 4, 0x59);
  std::vector<uint8_t> down = std::vector<uint8_t>(kExperts * kHidden * kIntermediate / 4, 0x96);
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
                                             {gate_up.data(), gate_up_shape, 5},
                                             {gate_up_scale.data(), gate_up_scale_shape, 2},
                                             {down.data(), down_shape, 4},
                                             {down_scale.data(), down_scale_shape, 1}};
    const mote::Status status = mote::TernaryMoE::create(config, weights, &moe);
    if (!status.is_ok()) {
      std::fprintf(stderr, "%s\n", status.message());
      std::exit(1);
    }
  }
};

double median_milliseconds(const std::vector<std::unique_ptr<Layer>>& layers, size_t tokens, size_t threads) {
  using Clock = std::chrono::steady_clock;
  SpinningPool pool(threads);
  const std::vector<float> x = uniform(tokens * kHidden, -1.0f, 1.0f);
  std::vector<float> y(x.size());
  size_t bytes = 0;
  if (!layers[0]->moe.scratch_size(tokens, &bytes)) std::exit(1);
  std::unique_ptr<void, decltype(&std::free)> scratch(std::aligned_alloc(64, bytes), &std::free);

  std::vector<double> times;
  const Clock::time_point begin = Clock::now();
  for (size_t i = 0; i < 2 * layers.size() || Clock::now() - begin < std::chrono::duration<double>(kSecondsPerPoint);
       ++i) {
    const Clock::time_point start = Clock::now();
    layers[i % layers.size()]->moe.compute(x.data(), y.data(), tokens, scratch.get(), pool.view());
    if (i >= layers.size()) times.push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
    if (tokens > 1 && i > layers.size() && Clock::now() - begin > std::chrono::duration<double>(2 * kSecondsPerPoint)) break;
  }
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return times[times.size() / 2];
}

}  // namespace

int main() {
  std::vector<std::unique_ptr<Layer>> layers;
  for (size_t i = 0; i < kLayers; ++i) layers.push_back(std::make_unique<Layer>());

  const double expert_bytes = 3.0 * kHidden * kIntermediate / 4;
  const double expert_products = 3.0 * kHidden * kIntermediate;
  std::printf("%s, hidden %d, intermediate %d, %d experts, top-1\n", mote::isa_name(), static_cast<int>(kHidden),
              static_cast<int>(kIntermediate), static_cast<int>(kExperts));
  std::printf("%8s %8s %10s %18s %14s\n", "tokens", "threads", "ms", "GB/s (1 expert)", "Gmul-add/s");
  for (const size_t tokens : {1, 4, 16, 128, 512}) {
    for (const size_t threads : {1, 2}) {
      const double ms = median_milliseconds(layers, tokens, threads);
      std::printf("%8zu %8zu %10.3f %18.1f %14.1f\n", tokens, threads, ms, expert_bytes / ms / 1e6,
                  static_cast<double>(tokens) * expert_products / ms / 1e6);
    }
  }
  return 0;
}

// A thread pool for tests: real threads, a new random order of tasks in every call.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "mote/runtime.h"

namespace mote::test {

class RandomOrderPool {
 public:
  RandomOrderPool(size_t num_threads, uint64_t seed) : num_threads_(num_threads), rng_(seed) {}

  ThreadPool view() { return {&RandomOrderPool::run, this}; }

 private:
  static bool run(void* pool, void (*task)(void*, size_t), size_t count, void* arg) {
    static_cast<RandomOrderPool*>(pool)->run_all(task, count, arg);
    return true;
  }

  void run_all(void (*task)(void*, size_t), size_t count, void* arg) {
    std::vector<size_t> order(count);
    std::iota(order.begin(), order.end(), size_t{0});
    std::shuffle(order.begin(), order.end(), rng_);
    std::atomic<size_t> next{0};
    auto work = [&] {
      for (size_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) task(arg, order[i]);
    };
    std::vector<std::thread> threads;
    for (size_t i = 1; i < num_threads_; ++i) threads.emplace_back(work);
    work();
    for (std::thread& thread : threads) thread.join();
  }

  size_t num_threads_;
  std::mt19937_64 rng_;
};

}  // namespace mote::test

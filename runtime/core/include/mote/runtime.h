// What every operator of the core takes from the runtime that hosts it, and what it says of itself.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mote {

/// The only layout this core reads. An export of another version is refused.
inline constexpr int64_t kLayoutVersion = 1;

/// How the weights of a matrix are packed: docs/layout.md. The values index KernelTable::formats.
enum class WeightFormat : uint8_t { kTwoBit, kOneSixBit, kInt4, kInt8, kBf16 };
inline constexpr size_t kNumWeightFormats = 5;

/// A tensor owned by the runtime: data is not copied and must outlive the layer. No alignment is assumed.
struct TensorView {
  const void* data = nullptr;
  const int64_t* shape = nullptr;
  size_t rank = 0;
};

/// How the core asks the runtime's thread pool for work: run task(arg, i) for every i in [0, count), in any order,
/// on any threads, and return true when all are done. False says that some were not run and that none is running any more.
/// A null `run` means: serially, on the caller's thread.
struct ThreadPool {
  bool (*run)(void* pool, void (*task)(void* arg, size_t index), size_t count, void* arg) = nullptr;
  void* pool = nullptr;
};

/// Name of the instruction set chosen for this process, one of `kEntries` in dispatch.cpp. Chosen once, by what the CPU says
/// it has, or by the environment variable MOTE_ISA (for tests; an ISA the CPU lacks is refused and the best one is used).
const char* isa_name();

}  // namespace mote

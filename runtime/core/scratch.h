// What the runs of all operators do alike: laying out scratch memory, cutting tokens into chunks that bound it, and giving a step to
// the thread pool. Internal to the core.
#pragma once

#include <algorithm>
#include <cstddef>

#include "layout.h"
#include "mote/runtime.h"

namespace mote {

inline constexpr size_t kScratchAlignment = 64;

/// Scratch memory that several tokens together may take; a single token takes what it needs. Enough that weights are
/// reused (some 150 tokens of a layer of 1536 by 8960), and little beside the weights of a model.
inline constexpr size_t kScratchBudget = size_t{24} << 20;

/// Least work worth a task, in values to quantize or interleave: more than a single token has, whose step is not worth waking other
/// threads.
inline constexpr size_t kValuesPerTask = 32768;

/// Lays out buffers one after the other.
class Carver {
 public:
  /// The offset of `count` times `width` elements.
  size_t reserve(size_t count, size_t width, size_t element_bytes) {
    const size_t offset = bytes_;
    size_t elements = 0, size = 0;
    fits_ = fits_ && checked_mul(count, width, &elements) && checked_mul(elements, element_bytes, &size) &&
            checked_add(size, kScratchAlignment - 1, &size) &&
            checked_add(bytes_, size / kScratchAlignment * kScratchAlignment, &bytes_);
    return offset;
  }
  bool fits() const { return fits_; }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_ = 0;
  bool fits_ = true;
};

/// Tokens of a chunk, all of nearly equal size, where one token needs `token_bytes`.
inline size_t chunk_tokens(size_t num_tokens, size_t token_bytes) {
  const size_t most = std::max<size_t>(1, kScratchBudget / token_bytes);
  const size_t chunks = std::max<size_t>(1, ceil_div(num_tokens, most));
  return std::max<size_t>(1, ceil_div(num_tokens, chunks));
}

/// Calls Step, a member of Run, for 0 to count - 1 on the thread pool, or here if that is not worth a wake-up. False if the pool
/// failed.
template <auto Step, class Run>
[[nodiscard]] bool for_each(Run* run, const ThreadPool& threads, size_t count) {
  if (threads.run == nullptr || count <= 1) {
    for (size_t i = 0; i < count; ++i) (run->*Step)(i);
    return true;
  }
  return threads.run(threads.pool, [](void* self, size_t i) { (static_cast<Run*>(self)->*Step)(i); }, count, run);
}

/// The buffer at an offset that a Carver gave.
template <class T>
T* at(void* scratch, size_t offset) {
  return reinterpret_cast<T*>(static_cast<char*>(scratch) + offset);
}

}  // namespace mote

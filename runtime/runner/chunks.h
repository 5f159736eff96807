// How a long prompt is cut, as in mote_runtime.backends.base.
#pragma once

#include <cstddef>
#include <vector>

namespace mote::runner {

/// Positions of a prompt that go through the decoder at once: what an operator holds beside its weights grows with them, and not with
/// the prompt.
constexpr size_t kPrefillChunk = 512;

struct Chunk {
  size_t start, count;
};

/// The fewest pieces of at most `largest` (at least 1), all of them as long as the others, or one less.
inline std::vector<Chunk> chunks(size_t length, size_t largest) {
  const size_t count = length / largest + (length % largest != 0 ? 1 : 0);
  std::vector<Chunk> result;
  for (size_t i = 0, start = 0; i < count; ++i) {
    const size_t end = length / count * (i + 1) + length % count * (i + 1) / count;
    result.push_back({start, end - start});
    start = end;
  }
  return result;
}

}  // namespace mote::runner

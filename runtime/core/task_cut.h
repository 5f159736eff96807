// Cutting the blocks of rows of a matrix into tasks for a thread pool. Internal to the core.
#pragma once

#include <algorithm>
#include <cstddef>

#include "layout.h"

namespace mote {

struct Range {
  size_t begin;
  size_t end;
};

/// Large tasks first, a quarter of that size for the last quarter of the blocks. At the beginning of a task the first lines come
/// late from DRAM, and at its end the software prefetch reads what another thread takes, so tasks should be large; but a thread on a
/// busy core must not hold up the others with one, so the last should be small. Pools hand out one index at a time, in order.
class TaskCut {
 public:
  TaskCut() = default;

  /// `lines_per_block`: lines of weights times tiles of tokens, the measure of work.
  TaskCut(size_t blocks, size_t lines_per_block) : num_blocks_(lines_per_block == 0 ? 0 : blocks) {
    if (num_blocks_ == 0) return;
    const size_t least = ceil_div(kLeastLines, lines_per_block);
    const size_t most = std::max(least, kMostLines / lines_per_block);
    large_ = std::min(std::max(least, num_blocks_ / kTasks), most);
    small_ = std::max(least, large_ / 4);
    num_large_ = num_blocks_ / 4 * 3 / large_;
  }

  size_t count() const {
    return num_blocks_ == 0 ? 0 : num_large_ + ceil_div(num_blocks_ - num_large_ * large_, small_);
  }

  /// The blocks of a task.
  Range range(size_t task) const {
    if (task < num_large_) return {task * large_, (task + 1) * large_};
    const size_t begin = num_large_ * large_ + (task - num_large_) * small_;
    return {begin, std::min(num_blocks_, begin + small_)};
  }

 private:
  static constexpr size_t kTasks = 16;         // of the large size, if all were
  static constexpr size_t kLeastLines = 2048;  // 128 KB of weights, for a single token
  static constexpr size_t kMostLines = 32768;

  size_t num_blocks_ = 0;
  size_t large_ = 1;
  size_t small_ = 1;
  size_t num_large_ = 0;
};

}  // namespace mote

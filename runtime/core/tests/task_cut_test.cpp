#include "task_cut.h"

#include <gtest/gtest.h>

namespace mote::test {
namespace {

TEST(TaskCut, CoversEveryBlockOnceAndInOrder) {
  for (const size_t blocks : {0, 1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 96, 97, 560, 8192}) {
    for (const size_t lines : {size_t{1}, size_t{2}, size_t{100}, size_t{2047}, size_t{2048}, size_t{2049}, size_t{40000},
                               SIZE_MAX / 2, SIZE_MAX}) {
      const TaskCut cut(blocks, lines);
      size_t next = 0;
      for (size_t task = 0; task < cut.count(); ++task) {
        const Range range = cut.range(task);
        ASSERT_EQ(range.begin, next) << blocks << " blocks of " << lines << " lines, task " << task;
        ASSERT_GT(range.end, range.begin) << blocks << " blocks of " << lines << " lines, task " << task;
        next = range.end;
      }
      ASSERT_EQ(next, blocks) << lines;
    }
  }
}

TEST(TaskCut, NoWorkIsNoTask) {
  EXPECT_EQ(TaskCut().count(), 0u);
  EXPECT_EQ(TaskCut(100, 0).count(), 0u);
}

TEST(TaskCut, LargeTasksComeFirstAndSmallOnesLast) {
  const TaskCut cut(560, 192);  // gate and up of a layer of 1536 by 8960, packed in 2 bits
  const Range first = cut.range(0), last = cut.range(cut.count() - 2);
  EXPECT_EQ(first.end - first.begin, 35u);
  EXPECT_EQ(last.end - last.begin, 11u);
  EXPECT_GT(cut.count(), 16u);
  EXPECT_LT(cut.count(), 32u);
}

}  // namespace
}  // namespace mote::test

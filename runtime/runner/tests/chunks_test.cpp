#include "chunks.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace mote::runner {
namespace {

TEST(Chunks, AreFewEvenAndInOrder) {
  for (size_t largest : {1, 3, 7, 512}) {
    for (size_t length = 0; length < 1100; ++length) {
      const std::vector<Chunk> cuts = chunks(length, largest);
      ASSERT_EQ(cuts.size(), (length + largest - 1) / largest);
      size_t position = 0, shortest = largest, longest = 0;
      for (const Chunk& cut : cuts) {
        ASSERT_EQ(cut.start, position);
        position += cut.count;
        shortest = std::min(shortest, cut.count);
        longest = std::max(longest, cut.count);
      }
      ASSERT_EQ(position, length);
      ASSERT_LE(longest, largest);
      ASSERT_TRUE(length == 0 || longest - shortest <= 1) << length << " by " << largest;
    }
  }
}

TEST(Chunks, OfLengthsThatWouldOverflow) {
  const size_t huge = ~size_t{0};
  const std::vector<Chunk> cuts = chunks(huge, huge / 3 + 1);
  ASSERT_EQ(cuts.size(), 3u);
  EXPECT_EQ(cuts[2].start + cuts[2].count, huge);
}

}  // namespace
}  // namespace mote::runner

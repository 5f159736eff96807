#include "layout.h"

#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <vector>

#include "layout_vectors.h"

namespace mote::test {
namespace {

TEST(Layout, SizesAreCheckedForOverflow) {
  constexpr size_t kMax = std::numeric_limits<size_t>::max();
  size_t bytes = 0;
  EXPECT_TRUE(packed_size(17, 16, &bytes));
  EXPECT_EQ(bytes, 128u);
  EXPECT_TRUE(packed_size(0, 16, &bytes));
  EXPECT_EQ(bytes, 0u);
  EXPECT_FALSE(packed_size(kMax, kMax, &bytes));
  EXPECT_FALSE(packed_size(kMax, 16, &bytes));
  EXPECT_EQ(num_blocks(kMax), kMax / 16 + 1);
  EXPECT_FALSE(checked_add(kMax, 1, &bytes));
}

TEST(Layout, EachCodeHasThePlaceThatTheDocumentGives) {
  constexpr size_t kRows = 33, kCols = 35;
  std::vector<int8_t> ternary(kRows * kCols, 0);
  std::vector<uint8_t> packed(3 * 3 * 64);
  for (size_t n = 0; n < kRows; ++n) {
    for (size_t k = 0; k < kCols; ++k) {
      ternary[n * kCols + k] = 1;
      pack_2bit(ternary.data(), kRows, kCols, packed.data());
      ternary[n * kCols + k] = 0;
      const size_t r = n % 16, p = k % 16 / 4, j = k % 4;
      const size_t byte = (n / 16 * 3 + k / 16) * 64 + 4 * r + j;
      for (size_t b = 0; b < packed.size(); ++b) {
        ASSERT_EQ(packed[b], b == byte ? 0x55 + (1 << (2 * p)) : 0x55) << n << " " << k << " " << b;
      }
    }
  }
}

TEST(Layout, UnpackIsTheInverseOfPack) {
  std::mt19937 rng(1);
  for (size_t rows : {1, 15, 16, 17, 50}) {
    for (size_t cols : {1, 15, 16, 17, 50}) {
      std::vector<int8_t> ternary(rows * cols), again(rows * cols);
      for (int8_t& t : ternary) t = static_cast<int8_t>(static_cast<int>(rng() % 3) - 1);
      size_t bytes = 0;
      ASSERT_TRUE(packed_size(rows, cols, &bytes));
      std::vector<uint8_t> packed(bytes);
      pack_2bit(ternary.data(), rows, cols, packed.data());
      unpack_2bit(packed.data(), rows, cols, again.data());
      ASSERT_EQ(again, ternary) << rows << " x " << cols;
    }
  }
}

TEST(Layout, ReadsCodeThreeAsTwo) {
  const std::vector<uint8_t> packed(64, 0xff);
  std::vector<int8_t> ternary(256);
  unpack_2bit(packed.data(), 16, 16, ternary.data());
  for (int8_t t : ternary) ASSERT_EQ(t, 2);
}

TEST(Layout, AgreesWithTheVectorsSharedWithPython) {
  std::vector<LayoutCase> cases;
  std::string error;
  if (!layout_vectors_exist(MOTE_LAYOUT_VECTORS)) GTEST_SKIP() << MOTE_LAYOUT_VECTORS << " does not exist";
  ASSERT_TRUE(read_layout_vectors(MOTE_LAYOUT_VECTORS, &cases, &error)) << error;
  ASSERT_FALSE(cases.empty());
  for (const LayoutCase& c : cases) {
    size_t bytes = 0;
    ASSERT_TRUE(packed_size(c.rows, c.cols, &bytes));
    ASSERT_EQ(c.packed.size(), bytes) << c.name;
    std::vector<uint8_t> packed(bytes);
    pack_2bit(c.ternary.data(), c.rows, c.cols, packed.data());
    EXPECT_EQ(packed, c.packed) << c.name;
    std::vector<int8_t> ternary(c.ternary.size());
    unpack_2bit(c.packed.data(), c.rows, c.cols, ternary.data());
    EXPECT_EQ(ternary, c.ternary) << c.name;
  }
}

}  // namespace
}  // namespace mote::test

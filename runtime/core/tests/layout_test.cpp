#include "layout.h"

#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <string>
#include <vector>

#include "layout_vectors.h"

namespace mote::test {
namespace {

/// The table of docs/layout.md, and which values a matrix may have.
struct FormatFacts {
  WeightFormat format;
  const char* name;
  size_t inputs;  // C
  int32_t zero;   // a byte of zeros
  int32_t least, greatest;
};
constexpr FormatFacts kFacts[] = {
    {WeightFormat::kTwoBit, "2bit", 16, 0x55, -1, 1},
    {WeightFormat::kOneSixBit, "1.6bit", 20, 121, -1, 1},
    {WeightFormat::kInt4, "int4", 8, 0x88, -8, 7},
    {WeightFormat::kInt8, "int8", 4, 0, -128, 127},
    {WeightFormat::kBf16, "bf16", 2, 0, 0, 0xffff},
};

TEST(Layout, SizesAreCheckedForOverflow) {
  constexpr size_t kMax = std::numeric_limits<size_t>::max();
  size_t bytes = 0;
  for (const FormatFacts& facts : kFacts) {
    EXPECT_EQ(line_inputs(facts.format), facts.inputs) << facts.name;
    EXPECT_EQ(num_lines(facts.format, facts.inputs), 1u) << facts.name;
    EXPECT_EQ(num_lines(facts.format, facts.inputs + 1), 2u) << facts.name;
    EXPECT_TRUE(packed_size(facts.format, 17, facts.inputs, &bytes));
    EXPECT_EQ(bytes, 128u) << facts.name;
    EXPECT_TRUE(packed_size(facts.format, 0, 16, &bytes));
    EXPECT_EQ(bytes, 0u) << facts.name;
    EXPECT_FALSE(packed_size(facts.format, kMax, kMax, &bytes)) << facts.name;
    EXPECT_FALSE(packed_size(facts.format, kMax, facts.inputs, &bytes)) << facts.name;
  }
  EXPECT_EQ(num_blocks(kMax), kMax / 16 + 1);
  EXPECT_FALSE(checked_add(kMax, 1, &bytes));
}

TEST(Layout, RowsOfCodesReachTheEndOfTheLastLineOfEveryFormat) {
  for (size_t n = 1; n <= 400; ++n) {
    EXPECT_EQ(code_row_size(n) % 16, 0u);
    for (const FormatFacts& facts : kFacts) EXPECT_GE(code_row_size(n), num_lines(facts.format, n) * facts.inputs) << n;
  }
}

/// The bytes of a matrix that is `value` at (n, k) and else zero, by the text of the document.
std::vector<uint8_t> one_value(const FormatFacts& facts, size_t lines, size_t n, size_t k, int32_t value) {
  std::vector<uint8_t> packed((n / 16 + 1) * lines * 64, static_cast<uint8_t>(facts.zero));
  uint8_t* row = packed.data() + (n / 16 * lines + k / facts.inputs) * 64 + 4 * (n % 16);
  const size_t i = k % facts.inputs, plane = i / 4;
  if (facts.format == WeightFormat::kBf16) {
    row[2 * i] = static_cast<uint8_t>(value % 256);
    row[2 * i + 1] = static_cast<uint8_t>(value / 256);
    return packed;
  }
  const int32_t base = facts.format == WeightFormat::kTwoBit ? 4 : facts.format == WeightFormat::kOneSixBit ? 3 : 16;
  int32_t weight = 1;
  for (size_t p = 0; p < plane; ++p) weight *= base;
  row[i % 4] = static_cast<uint8_t>(facts.zero + value * weight);
  return packed;
}

TEST(Layout, EachCodeHasThePlaceThatTheDocumentGives) {
  constexpr size_t kRows = 17, kCols = 43;
  for (const FormatFacts& facts : kFacts) {
    const size_t lines = (kCols + facts.inputs - 1) / facts.inputs;
    std::vector<int32_t> values(kRows * kCols, 0);
    for (size_t n = 0; n < kRows; ++n) {
      for (size_t k = 0; k < kCols; ++k) {
        for (const int32_t value : {facts.least, facts.greatest}) {
          values[n * kCols + k] = value;
          std::vector<uint8_t> packed(2 * lines * 64), expected = one_value(facts, lines, n, k, value);
          expected.resize(packed.size(), static_cast<uint8_t>(facts.zero));
          pack(facts.format, values.data(), kRows, kCols, packed.data());
          ASSERT_EQ(packed, expected) << facts.name << " " << n << " " << k;
        }
        values[n * kCols + k] = 0;
      }
    }
  }
}

TEST(Layout, UnpackIsTheInverseOfPack) {
  std::mt19937 rng(1);
  for (const FormatFacts& facts : kFacts) {
    std::uniform_int_distribution<int32_t> any(facts.least, facts.greatest);
    for (size_t rows : {1, 15, 16, 17, 50}) {
      for (size_t cols : {1, 2, 3, 15, 16, 17, 20, 21, 50}) {
        std::vector<int32_t> values(rows * cols), again(rows * cols);
        for (int32_t& value : values) value = any(rng);
        size_t bytes = 0;
        ASSERT_TRUE(packed_size(facts.format, rows, cols, &bytes));
        std::vector<uint8_t> packed(bytes);
        pack(facts.format, values.data(), rows, cols, packed.data());
        unpack(facts.format, packed.data(), rows, cols, again.data());
        ASSERT_EQ(again, values) << facts.name << " " << rows << " x " << cols;
      }
    }
  }
}

TEST(Layout, ReadsDamagedBytesAsTheDocumentSays) {
  const std::vector<uint8_t> threes(64, 0xff);
  std::vector<int32_t> values(16 * 16);
  unpack(WeightFormat::kTwoBit, threes.data(), 16, 16, values.data());
  for (const int32_t t : values) ASSERT_EQ(t, 2);

  values.resize(16 * 20);
  for (int byte = 242; byte <= 255; ++byte) {
    const std::vector<uint8_t> bytes(64, static_cast<uint8_t>(byte));
    unpack(WeightFormat::kOneSixBit, bytes.data(), 16, 20, values.data());
    for (const int32_t t : values) ASSERT_EQ(t, 1) << byte;
  }
}

TEST(Layout, AgreesWithTheVectorsSharedWithPython) {
  for (const FormatFacts& facts : kFacts) {
    const std::string path = std::string(MOTE_LAYOUT_VECTORS) + "/layout_" + facts.name + "_v1.json";
    std::vector<LayoutCase> cases;
    std::string error;
    ASSERT_TRUE(read_layout_vectors(path, facts.name, &cases, &error)) << path << ": " << error;
    ASSERT_FALSE(cases.empty()) << path;
    for (const LayoutCase& c : cases) {
      const std::string what = std::string(facts.name) + " " + c.name;
      size_t bytes = 0;
      ASSERT_TRUE(packed_size(facts.format, c.rows, c.cols, &bytes));
      ASSERT_EQ(c.packed.size(), bytes) << what;
      for (const int32_t value : c.values) ASSERT_TRUE(value >= facts.least && value <= facts.greatest) << what;
      std::vector<uint8_t> packed(bytes);
      pack(facts.format, c.values.data(), c.rows, c.cols, packed.data());
      EXPECT_EQ(packed, c.packed) << what;
      std::vector<int32_t> values(c.values.size());
      unpack(facts.format, c.packed.data(), c.rows, c.cols, values.data());
      EXPECT_EQ(values, c.values) << what;
    }
  }
}

}  // namespace
}  // namespace mote::test

#include "layout.h"

#include <cstring>

namespace mote {
namespace {

constexpr size_t kPlanesOf[kNumWeightFormats] = {4, 5, 2, 1, 0};
constexpr size_t kBf16LineInputs = 2;
constexpr int32_t kPowersOfThree[] = {1, 3, 9, 27, 81};
constexpr int32_t kLargestFiveTrits = 242;

/// What is added to a value to make its code.
int32_t code_offset(WeightFormat format) {
  switch (format) {
    case WeightFormat::kTwoBit:
    case WeightFormat::kOneSixBit:
      return 1;
    case WeightFormat::kInt4:
      return 8;
    default:
      return 0;
  }
}

/// Where the code of an input of a row lies: the first byte, and the place among the codes that share it.
struct CodePosition {
  size_t byte;
  size_t plane;
};

CodePosition locate(WeightFormat format, size_t row, size_t col, size_t lines_per_block) {
  const size_t inputs = line_inputs(format);
  const size_t line = row / kBlockRows * lines_per_block + col / inputs;
  const size_t col_in_line = col % inputs;
  const size_t first = line * kLineBytes + kPlaneInputs * (row % kBlockRows);
  if (format == WeightFormat::kBf16) return {first + 2 * col_in_line, 0};
  return {first + col_in_line % kPlaneInputs, col_in_line / kPlaneInputs};
}

int32_t read_code(WeightFormat format, const uint8_t* byte, size_t plane) {
  switch (format) {
    case WeightFormat::kTwoBit:
      return (*byte >> (2 * plane)) & 3;
    case WeightFormat::kOneSixBit:
      return (*byte > kLargestFiveTrits ? kLargestFiveTrits : *byte) / kPowersOfThree[plane] % 3;
    case WeightFormat::kInt4:
      return (*byte >> (4 * plane)) & 15;
    case WeightFormat::kInt8:
      return static_cast<int8_t>(*byte);
    case WeightFormat::kBf16:
      return byte[0] | byte[1] << 8;
  }
  return 0;
}

void write_code(WeightFormat format, int32_t code, uint8_t* byte, size_t plane) {
  if (format == WeightFormat::kBf16) {
    byte[0] = static_cast<uint8_t>(code);
    byte[1] = static_cast<uint8_t>(code >> 8);
    return;
  }
  const int32_t weight = format == WeightFormat::kOneSixBit ? kPowersOfThree[plane]
                         : format == WeightFormat::kTwoBit  ? 1 << (2 * plane)
                                                            : 1 << (4 * plane);
  *byte = static_cast<uint8_t>(*byte + (code - read_code(format, byte, plane)) * weight);
}

}  // namespace

bool checked_mul(size_t a, size_t b, size_t* product) { return !__builtin_mul_overflow(a, b, product); }

bool checked_add(size_t a, size_t b, size_t* sum) { return !__builtin_add_overflow(a, b, sum); }

size_t line_inputs(WeightFormat format) {
  if (format == WeightFormat::kBf16) return kBf16LineInputs;
  return kPlaneInputs * kPlanesOf[static_cast<size_t>(format)];
}

size_t num_lines(WeightFormat format, size_t cols) { return ceil_div(cols, line_inputs(format)); }

bool packed_size(WeightFormat format, size_t rows, size_t cols, size_t* bytes) {
  size_t lines = 0;
  return checked_mul(num_blocks(rows), num_lines(format, cols), &lines) && checked_mul(lines, kLineBytes, bytes);
}

void pack(WeightFormat format, const int32_t* values, size_t rows, size_t cols, uint8_t* packed) {
  const size_t lines_per_block = num_lines(format, cols);
  const size_t padded_cols = lines_per_block * line_inputs(format);
  std::memset(packed, 0, num_blocks(rows) * lines_per_block * kLineBytes);
  for (size_t row = 0; row < num_blocks(rows) * kBlockRows; ++row) {
    for (size_t col = 0; col < padded_cols; ++col) {
      const int32_t value = row < rows && col < cols ? values[row * cols + col] : 0;
      const CodePosition at = locate(format, row, col, lines_per_block);
      write_code(format, value + code_offset(format), packed + at.byte, at.plane);
    }
  }
}

void unpack(WeightFormat format, const uint8_t* packed, size_t rows, size_t cols, int32_t* values) {
  const size_t lines_per_block = num_lines(format, cols);
  for (size_t row = 0; row < rows; ++row) {
    for (size_t col = 0; col < cols; ++col) {
      const CodePosition at = locate(format, row, col, lines_per_block);
      values[row * cols + col] = read_code(format, packed + at.byte, at.plane) - code_offset(format);
    }
  }
}

}  // namespace mote

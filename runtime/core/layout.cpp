#include "layout.h"

#include <cstring>

namespace mote {
namespace {

constexpr unsigned kCodeBits = 2;
constexpr unsigned kCodeMask = 3;
constexpr uint8_t kLineOfZeros = 0x55;  // four codes of t = 0

struct CodePosition {
  size_t byte;
  unsigned shift;
};

CodePosition locate(size_t row, size_t col, size_t lines_per_block) {
  const size_t line = row / kBlockRows * lines_per_block + col / kLineInputs;
  const size_t row_in_block = row % kBlockRows;
  const size_t col_in_line = col % kLineInputs;
  return {line * kLineBytes + 4 * row_in_block + col_in_line % 4,
          static_cast<unsigned>(kCodeBits * (col_in_line / 4))};
}

}  // namespace

bool checked_mul(size_t a, size_t b, size_t* product) { return !__builtin_mul_overflow(a, b, product); }

bool checked_add(size_t a, size_t b, size_t* sum) { return !__builtin_add_overflow(a, b, sum); }

size_t num_blocks(size_t n) { return n / kBlockRows + (n % kBlockRows != 0); }

bool packed_size(size_t rows, size_t cols, size_t* bytes) {
  size_t lines = 0;
  return checked_mul(num_blocks(rows), num_blocks(cols), &lines) && checked_mul(lines, kLineBytes, bytes);
}

void pack_2bit(const int8_t* ternary, size_t rows, size_t cols, uint8_t* packed) {
  const size_t lines_per_block = num_blocks(cols);
  std::memset(packed, kLineOfZeros, num_blocks(rows) * lines_per_block * kLineBytes);
  for (size_t row = 0; row < rows; ++row) {
    for (size_t col = 0; col < cols; ++col) {
      const CodePosition at = locate(row, col, lines_per_block);
      const unsigned code = static_cast<unsigned>(ternary[row * cols + col] + 1) & kCodeMask;
      packed[at.byte] = static_cast<uint8_t>((packed[at.byte] & ~(kCodeMask << at.shift)) | (code << at.shift));
    }
  }
}

void unpack_2bit(const uint8_t* packed, size_t rows, size_t cols, int8_t* ternary) {
  const size_t lines_per_block = num_blocks(cols);
  for (size_t row = 0; row < rows; ++row) {
    for (size_t col = 0; col < cols; ++col) {
      const CodePosition at = locate(row, col, lines_per_block);
      const unsigned code = (packed[at.byte] >> at.shift) & kCodeMask;
      ternary[row * cols + col] = static_cast<int8_t>(static_cast<int>(code) - 1);
    }
  }
}

}  // namespace mote

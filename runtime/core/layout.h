// The packed layouts, version 1, as docs/layout.md defines them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mote/runtime.h"

namespace mote {

/// Rows that share a line, and the bytes of a line.
inline constexpr size_t kBlockRows = 16;
inline constexpr size_t kLineBytes = 64;

/// A line multiplies whole planes: 16 rows by this many consecutive inputs.
inline constexpr size_t kPlaneInputs = 4;

/// Inputs of the longest line, that of "1.6bit".
inline constexpr size_t kMaxLineInputs = 20;

/// Limits of docs/operator.md. They keep every integer dot product inside int32 (see docs/kernels.md).
inline constexpr size_t kMaxExperts = 256;
inline constexpr size_t kMaxWidth = size_t{1} << 17;
/// Rows of a matrix of its own, such as that of a vocabulary: no sum runs over them.
inline constexpr size_t kMaxRows = size_t{1} << 20;

/// *product = a * b; false if it does not fit.
[[nodiscard]] bool checked_mul(size_t a, size_t b, size_t* product);

/// *sum = a + b; false if it does not fit.
[[nodiscard]] bool checked_add(size_t a, size_t b, size_t* sum);

// Static, because this header is compiled for every ISA and the linker must not merge what comes of it.

/// ceil(a / b).
static constexpr size_t ceil_div(size_t a, size_t b) { return a / b + (a % b != 0); }

/// ceil(rows / 16).
static constexpr size_t num_blocks(size_t rows) { return ceil_div(rows, kBlockRows); }

/// Bytes of a row of n activation codes: to the end of the last line of any format, in whole vectors of 16.
static constexpr size_t code_row_size(size_t n) { return ceil_div(n + kMaxLineInputs - 1, 16) * 16; }

/// Consecutive inputs in a line of this format.
size_t line_inputs(WeightFormat format);

/// ceil(cols / line_inputs).
size_t num_lines(WeightFormat format, size_t cols);

/// Bytes of a packed [rows, cols] matrix; false if they do not fit size_t.
[[nodiscard]] bool packed_size(WeightFormat format, size_t rows, size_t cols, size_t* bytes);

/// Packs [rows, cols] codes, row-major, into packed_size() bytes: t of the ternary formats, -8..7 of int4, -128..127 of int8,
/// the 16 bits of bf16. The reference, not a fast path.
void pack(WeightFormat format, const int32_t* values, size_t rows, size_t cols, uint8_t* packed);

/// The inverse of pack, which also says how damaged bytes read.
void unpack(WeightFormat format, const uint8_t* packed, size_t rows, size_t cols, int32_t* values);

}  // namespace mote

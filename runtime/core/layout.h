// The packed layout "2bit", version 1, as docs/layout.md defines it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mote {

/// Rows and inputs that share a line, and the bytes of a line.
inline constexpr size_t kBlockRows = 16;
inline constexpr size_t kLineInputs = 16;
inline constexpr size_t kLineBytes = 64;

/// Limits of docs/operator.md. They keep every integer dot product inside int32 (see docs/kernels.md).
inline constexpr size_t kMaxExperts = 256;
inline constexpr size_t kMaxWidth = size_t{1} << 20;

/// *product = a * b; false if it does not fit.
[[nodiscard]] bool checked_mul(size_t a, size_t b, size_t* product);

/// *sum = a + b; false if it does not fit.
[[nodiscard]] bool checked_add(size_t a, size_t b, size_t* sum);

/// ceil(n / 16), which serves rows and inputs alike.
size_t num_blocks(size_t n);

/// Bytes of a packed [rows, cols] matrix; false if they do not fit size_t.
[[nodiscard]] bool packed_size(size_t rows, size_t cols, size_t* bytes);

/// Packs ternary [rows, cols], values -1..1, row-major, into packed_size() bytes. The reference, not a fast path.
void pack_2bit(const int8_t* ternary, size_t rows, size_t cols, uint8_t* packed);

/// The inverse of pack_2bit; a code of 3 comes out as 2.
void unpack_2bit(const uint8_t* packed, size_t rows, size_t cols, int8_t* ternary);

}  // namespace mote

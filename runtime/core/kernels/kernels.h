// What an instruction set provides to the operators. Everything here is plain data: this header is compiled with the flags
// of every ISA, so a function in it could end up as AVX-512 code in the binary's scalar path.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mote/runtime.h"

namespace mote {

/// Outcome of quantizing a row. A row with a value that is not finite has d = NaN, q = 0 and sum = 0, so that whatever
/// is computed from it is NaN.
struct QuantizedRow {
  float d;
  int32_t sum;
  bool finite;
};

/// Most tokens that any kernel takes at once.
inline constexpr size_t kMaxTileTokens = 16;

/// Rows of inputs that share one unpacking of the weights. They are interleaved by words of 4 bytes (4 codes, or one float for
/// bf16), word w of token t at w * count + t: one stream to read, however many tokens. Zero beyond K up to a whole line.
struct TokenTile {
  size_t count;               // 1 to FormatKernels::tile_tokens
  const void* inputs;         // int8 [ceil(K / 4)][count][4], or float [K][count] for bf16
  const int32_t* group_sums;  // [groups][count], sums of the codes; only for int4
  float d[kMaxTileTokens];    // not for bf16
  int32_t sum[kMaxTileTokens];
};

/// What all blocks of rows of a matrix have in common.
struct BlockShape {
  size_t num_lines;
  size_t lines_per_group;  // num_lines where there are no groups
};

/// 16 rows of a matrix.
struct Block {
  const uint8_t* lines;
  const void* group_scales;  // bfloat16 [groups][16]; null for formats without groups
  float scale;               // of formats without groups
};

/// Kernels of one format of weights, for a tile of tokens and 16 rows.
struct FormatKernels {
  /// Most tokens of a tile.
  size_t tile_tokens;

  /// h = silu(gate) * up. Row t of the tile goes to h + t * h_stride, 16 values.
  void (*gate_up_block)(const BlockShape& shape, const Block& gate, const Block& up, const TokenTile& tile, float* h,
                        size_t h_stride);

  /// One matrix. Row t of the tile goes to results + 16 * t.
  void (*linear_block)(const BlockShape& shape, const Block& block, const TokenTile& tile, float* results);
};

/// Entry points of one ISA. All of them accept any alignment, and give the same bits on every ISA.
struct KernelTable {
  /// Step 1 of docs/operator.md. Writes code_row_size(n) codes, zero beyond n, and the sums of the groups of group_size
  /// values (a multiple of 16) if group_sums is not null.
  QuantizedRow (*quantize_row)(const float* v, size_t n, size_t group_size, int8_t* q, int32_t* group_sums);

  /// Interleaves `count` rows of num_words words of 4 bytes: word w of row t to out + 4 * (w * count + t). Words from num_words
  /// to padded_words become zero.
  void (*interleave)(const void* const* rows, size_t count, size_t num_words, size_t padded_words, void* out);

  /// Steps 2 and 3. logits and probabilities have room for num_experts rounded up to 16. False if a logit is not
  /// finite; probabilities are then not written.
  bool (*route)(const float* x, const float* router, size_t num_experts, size_t hidden_size, float* logits,
                float* probabilities);

  /// Step 7, for n <= 16 values of one token: the row of rank r is results + 16 * slots[r], and that of the shared expert
  /// `shared`, which may be null.
  void (*combine)(const float* results, const uint32_t* slots, const float* gates, size_t top_k, const float* shared,
                  float* y, size_t n);

  /// By WeightFormat.
  FormatKernels formats[kNumWeightFormats];
};

}  // namespace mote

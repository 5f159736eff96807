// What an instruction set provides to the layer. Everything here is plain data: this header is compiled with the flags
// of every ISA, so a function in it could end up as AVX-512 code in the binary's scalar path.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mote {

/// Outcome of quantizing a row. A row with a value that is not finite has d = NaN, q = 0 and sum = 0, so that whatever
/// is computed from it is NaN.
struct QuantizedRow {
  float d;
  int32_t sum;
  bool finite;
};

/// Most tokens that any kernel takes at once.
inline constexpr size_t kMaxTileTokens = 8;

/// Quantized rows of the same expert. Every q has ceil(K / 16) * 16 values, zero beyond K.
struct TokenTile {
  size_t count;
  const int8_t* q[kMaxTileTokens];
  float d[kMaxTileTokens];
  int32_t sum[kMaxTileTokens];
};

/// Entry points of one ISA. All of them accept any alignment, and give the same bits on every ISA.
struct KernelTable {
  /// Tokens for which one unpacking of the weights is shared; at most kMaxTileTokens.
  size_t tile_tokens;

  /// Step 1 of docs/operator.md. Writes ceil(n / 16) * 16 values, zero beyond n.
  QuantizedRow (*quantize_row)(const float* v, size_t n, int8_t* q);

  /// Steps 2 and 3. logits and probabilities have room for num_experts rounded up to 16. False if a logit is not
  /// finite; probabilities are then not written.
  bool (*route)(const float* x, const float* router, size_t num_experts, size_t hidden_size, float* logits,
                float* probabilities);

  /// Step 5 up to h, for one block of 16 rows: `lines` holds num_lines lines of gate and as many of up. Row t of the
  /// tile goes to h + t * h_stride, 16 values.
  void (*gate_up_block)(const uint8_t* lines, size_t num_lines, const TokenTile& tile, const float* gate_up_scale,
                        float* h, size_t h_stride);

  /// Step 5, D, for one block of 16 rows of num_lines lines. Row t of the tile goes to results + 16 * t.
  void (*down_block)(const uint8_t* lines, size_t num_lines, const TokenTile& tile, float down_scale, float* results);

  /// Step 6, for n <= 16 values of one token: the row of rank r is results + 16 * slots[r].
  void (*combine)(const float* results, const uint32_t* slots, const float* gates, size_t top_k, float* y, size_t n);
};

}  // namespace mote

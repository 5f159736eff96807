// Attention of the decoder for ExecuTorch, whose own kernels are in a library that needs Python.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mote::runner {

/// Sizes of one call. Query and output are float32 [length, query_heads, head_size]; keys and values [context, key_heads, head_size],
/// of which positions before start + length are read. Head h of the query meets head h / (query_heads / key_heads) of the keys.
struct AttentionShape {
  size_t length;
  size_t query_heads;
  size_t key_heads;
  size_t head_size;
  size_t start;  // position of the first query
  bool is_causal;
  float scale;
};

/// Rows are (key head, position, one of the query's heads that share it), in this order.
inline size_t attention_rows(const AttentionShape& shape) { return shape.query_heads * shape.length; }

/// Rows that are computed together, if so many are asked for: with fewer, keys and values are read more often.
constexpr size_t kAttentionTile = 64;

/// Rows `begin` to `end`, which may be computed in any order and on any threads, with the same bits. Vectors have at
/// most `max_lanes` floats, which is for tests: of 4, 8 and 16 the widest that the processor has is used.
void attend(const AttentionShape& shape, const float* query, const float* keys, const float* values, float* out,
            size_t begin, size_t end, size_t max_lanes = 16);

}  // namespace mote::runner

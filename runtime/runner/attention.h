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

/// Rows are (head, position), in order of heads.
inline size_t attention_rows(const AttentionShape& shape) { return shape.query_heads * shape.length; }

/// Rows `begin` to `end`, which may be computed in any order and on any threads.
void attend(const AttentionShape& shape, const float* query, const float* keys, const float* values, float* out,
            size_t begin, size_t end);

}  // namespace mote::runner

#include "matmul_run.h"

#include <algorithm>

#include "layout.h"
#include "scratch.h"

namespace mote {

bool MatMulRun::lay_out_scratch(const TernaryMatMul& layer, size_t token_capacity, MatMulScratch* plan) {
  const size_t row = code_row_size(static_cast<size_t>(layer.in_features_));
  Carver carver;
  plan->token_capacity = token_capacity;
  plan->rows = carver.reserve(token_capacity, 1, sizeof(QuantizedRow));
  plan->codes = carver.reserve(token_capacity, row, sizeof(int8_t));
  plan->tiles = carver.reserve(token_capacity, row, sizeof(int8_t));
  plan->total_bytes = carver.bytes();
  return carver.fits();
}

bool MatMulRun::plan_scratch(const TernaryMatMul& layer, size_t num_tokens, MatMulScratch* plan) {
  if (!lay_out_scratch(layer, 1, plan)) return false;
  return lay_out_scratch(layer, chunk_tokens(num_tokens, plan->total_bytes), plan);
}

MatMulRun::MatMulRun(const TernaryMatMul& layer, const KernelTable& kernels, const MatMulScratch& plan, void* scratch,
                     const ThreadPool& threads)
    : layer_(layer),
      format_(kernels.formats[static_cast<size_t>(layer.packing_)]),
      kernels_(kernels),
      plan_(plan),
      threads_(threads),
      trace_(layer.packed_),
      in_features_(static_cast<size_t>(layer.in_features_)),
      out_features_(static_cast<size_t>(layer.out_features_)),
      rows_(at<QuantizedRow>(scratch, plan.rows)),
      codes_(at<int8_t>(scratch, plan.codes)),
      tiles_(at<int8_t>(scratch, plan.tiles)) {
  shape_.num_lines = num_lines(layer.packing_, in_features_);
  shape_.lines_per_group = shape_.num_lines;
}

bool MatMulRun::run(const float* x, float* y, size_t num_tokens) {
  const Span span(trace_, Phase::kLayer, kNoExpert, num_tokens);
  for (size_t done = 0; done < num_tokens; done += plan_.token_capacity) {
    const size_t count = std::min(plan_.token_capacity, num_tokens - done);
    if (!run_chunk(x + done * in_features_, y + done * out_features_, count)) return false;
  }
  return true;
}

bool MatMulRun::run_chunk(const float* x, float* y, size_t num_tokens) {
  x_ = x;
  y_ = y;
  num_tokens_ = num_tokens;
  num_tiles_ = ceil_div(num_tokens, format_.tile_tokens);
  tiles_per_task_ = ceil_div(num_tiles_, ceil_div(num_tokens * in_features_, kValuesPerTask));
  multiply_tasks_ = TaskCut(num_blocks(out_features_), shape_.num_lines * num_tiles_);
  return for_each<&MatMulRun::quantize_task>(this, threads_, ceil_div(num_tiles_, tiles_per_task_)) &&
         for_each<&MatMulRun::multiply_task>(this, threads_, multiply_tasks_.count());
}

/// Tiles of nearly equal size: the first `num_tokens % num_tiles` of them have one token more.
size_t MatMulRun::tile_begin(size_t tile) const {
  return tile * (num_tokens_ / num_tiles_) + std::min(tile, num_tokens_ % num_tiles_);
}

void MatMulRun::quantize_task(size_t task) {
  const size_t row_size = code_row_size(in_features_);
  const size_t end = std::min(num_tiles_, (task + 1) * tiles_per_task_);
  const Span span(trace_, Phase::kQuantize, kNoExpert, tile_begin(end) - tile_begin(task * tiles_per_task_));
  for (size_t tile = task * tiles_per_task_; tile < end; ++tile) {
    const size_t first = tile_begin(tile);
    const size_t count = tile_begin(tile + 1) - first;
    const void* rows[kMaxTileTokens];
    for (size_t t = 0; t < count; ++t) {
      int8_t* codes = codes_ + (first + t) * row_size;
      rows_[first + t] = kernels_.quantize_row(x_ + (first + t) * in_features_, in_features_, 0, codes, nullptr);
      rows[t] = codes;
    }
    const size_t words = row_size / sizeof(int32_t);
    kernels_.interleave(rows, count, words, words, tiles_ + first * row_size);
  }
}

void MatMulRun::multiply_task(size_t task) {
  const size_t row_size = code_row_size(in_features_);
  const Range blocks = multiply_tasks_.range(task);
  const size_t scale_bytes = blocks.begin == 0 ? sizeof(float) : 0;  // the only one
  const Span span(trace_, Phase::kMatMul, kNoExpert, num_tokens_,
                  (blocks.end - blocks.begin) * shape_.num_lines * kLineBytes + scale_bytes);
  for (size_t i = 0; i < num_tiles_; ++i) {
    const size_t first = tile_begin(i);
    TokenTile tile;
    tile.count = tile_begin(i + 1) - first;
    tile.inputs = tiles_ + first * row_size;
    tile.group_sums = nullptr;
    for (size_t t = 0; t < tile.count; ++t) {
      tile.d[t] = rows_[first + t].d;
      tile.sum[t] = rows_[first + t].sum;
    }
    for (size_t block = blocks.begin; block < blocks.end; ++block) {
      float results[kMaxTileTokens * kBlockRows];
      format_.linear_block(shape_, {layer_.packed_ + block * shape_.num_lines * kLineBytes, nullptr, layer_.scale_}, tile,
                           results);
      const size_t column = block * kBlockRows;
      for (uint32_t t = 0; t < tile.count; ++t) {
        // The sum of one expert with weight 1: the value itself, with NaN in its canonical form.
        constexpr float kOne = 1.0f;
        kernels_.combine(results, &t, &kOne, 1, nullptr, y_ + (first + t) * out_features_ + column,
                         std::min(kBlockRows, out_features_ - column));
      }
    }
  }
}

}  // namespace mote

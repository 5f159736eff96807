#include "matmul_run.h"

#include <algorithm>
#include <cstring>

#include "dispatch.h"
#include "layout.h"
#include "scratch.h"

namespace mote {
namespace {

constexpr uint32_t kCanonicalNan = 0x7fc00000;
constexpr size_t kWord = sizeof(int32_t);  // of inputs in a tile

}  // namespace

bool MatMulRun::scratch_size(const PackedMatrix& matrix, size_t num_tokens, size_t* bytes) {
  *bytes = 0;
  if (num_tokens == 0) return true;
  MatMulScratch plan;
  if (!plan_scratch(matrix, num_tokens, &plan)) return false;
  *bytes = plan.total_bytes;
  return true;
}

bool MatMulRun::compute(const PackedMatrix& matrix, const float* x, float* y, size_t num_tokens, void* scratch,
                        const ThreadPool& threads) {
  MatMulScratch plan;
  if (num_tokens == 0) return true;
  if (!plan_scratch(matrix, num_tokens, &plan)) return false;
  return MatMulRun(matrix, *active_isa().kernels, plan, scratch, threads).run(x, y, num_tokens);
}

MatMulRun::Shape MatMulRun::shape_of(const PackedMatrix& matrix) {
  const auto inputs = static_cast<size_t>(matrix.in_features);
  const auto group = static_cast<size_t>(matrix.group_size);
  Shape shape;
  shape.block.num_lines = num_lines(matrix.format, inputs);
  shape.block.lines_per_group = group == 0 ? shape.block.num_lines : group / line_inputs(matrix.format);
  shape.num_groups = group == 0 ? 0 : ceil_div(inputs, group);
  shape.scale_bytes =
      matrix.group_scales == nullptr ? 0 : std::max<size_t>(1, shape.num_groups) * kBlockRows * sizeof(uint16_t);
  shape.row_bytes = matrix.format == WeightFormat::kBf16
                        ? shape.block.num_lines * line_inputs(matrix.format) * sizeof(float)
                        : code_row_size(inputs);
  return shape;
}

bool MatMulRun::lay_out_scratch(const PackedMatrix& matrix, size_t token_capacity, MatMulScratch* plan) {
  const Shape shape = shape_of(matrix);
  Carver carver;
  plan->token_capacity = token_capacity;
  plan->rows = carver.reserve(token_capacity, 1, sizeof(QuantizedRow));
  plan->codes = carver.reserve(token_capacity, code_row_size(static_cast<size_t>(matrix.in_features)), sizeof(int8_t));
  plan->group_sums = carver.reserve(token_capacity, shape.num_groups, sizeof(int32_t));
  plan->tiles = carver.reserve(token_capacity, shape.row_bytes, 1);
  plan->tile_sums = carver.reserve(token_capacity, shape.num_groups, sizeof(int32_t));
  plan->total_bytes = carver.bytes();
  return carver.fits();
}

bool MatMulRun::plan_scratch(const PackedMatrix& matrix, size_t num_tokens, MatMulScratch* plan) {
  if (!lay_out_scratch(matrix, 1, plan)) return false;
  return lay_out_scratch(matrix, chunk_tokens(num_tokens, plan->total_bytes), plan);
}

MatMulRun::MatMulRun(const PackedMatrix& matrix, const KernelTable& kernels, const MatMulScratch& plan, void* scratch,
                     const ThreadPool& threads)
    : matrix_(matrix),
      format_(kernels.formats[static_cast<size_t>(matrix.format)]),
      kernels_(kernels),
      plan_(plan),
      threads_(threads),
      trace_(matrix.lines),
      in_features_(static_cast<size_t>(matrix.in_features)),
      out_features_(static_cast<size_t>(matrix.out_features)),
      shape_(shape_of(matrix)),
      rows_(at<QuantizedRow>(scratch, plan.rows)),
      codes_(at<int8_t>(scratch, plan.codes)),
      group_sums_(at<int32_t>(scratch, plan.group_sums)),
      tiles_(at<char>(scratch, plan.tiles)),
      tile_sums_(at<int32_t>(scratch, plan.tile_sums)) {}

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
  multiply_tasks_ = TaskCut(num_blocks(out_features_), shape_.block.num_lines * num_tiles_);
  return for_each<&MatMulRun::quantize_task>(this, threads_, ceil_div(num_tiles_, tiles_per_task_)) &&
         for_each<&MatMulRun::multiply_task>(this, threads_, multiply_tasks_.count());
}

/// Tiles of nearly equal size: the first `num_tokens % num_tiles` of them have one token more.
size_t MatMulRun::tile_begin(size_t tile) const {
  return tile * (num_tokens_ / num_tiles_) + std::min(tile, num_tokens_ % num_tiles_);
}

void MatMulRun::quantize_task(size_t task) {
  const size_t end = std::min(num_tiles_, (task + 1) * tiles_per_task_);
  const Span span(trace_, Phase::kQuantize, kNoExpert, tile_begin(end) - tile_begin(task * tiles_per_task_));
  for (size_t tile = task * tiles_per_task_; tile < end; ++tile) prepare_tile(tile);
}

/// Quantizes the rows of a tile, or only looks whether they are finite where the weights are floats, and interleaves them.
void MatMulRun::prepare_tile(size_t tile) {
  const size_t code_bytes = code_row_size(in_features_);
  const size_t first = tile_begin(tile);
  const size_t count = tile_begin(tile + 1) - first;
  const void* rows[kMaxTileTokens] = {};
  const void* sums[kMaxTileTokens] = {};
  for (size_t t = 0; t < count; ++t) {
    const float* x = x_ + (first + t) * in_features_;
    int8_t* codes = codes_ + (first + t) * code_bytes;
    int32_t* row_sums = shape_.num_groups == 0 ? nullptr : group_sums_ + (first + t) * shape_.num_groups;
    rows_[first + t] =
        kernels_.quantize_row(x, in_features_, static_cast<size_t>(matrix_.group_size), codes, row_sums);
    rows[t] = is_float() ? static_cast<const void*>(x) : codes;
    sums[t] = row_sums;
  }
  const size_t words = shape_.row_bytes / kWord;
  char* inputs = tiles_ + first * shape_.row_bytes;
  kernels_.interleave(rows, count, is_float() ? in_features_ : words, words, inputs);
  for (size_t t = 0; t < count && is_float(); ++t) {
    // One NaN makes all outputs of the row NaN, which is what a row that is not finite gives in every format.
    if (!rows_[first + t].finite) std::memcpy(inputs + t * kWord, &kCanonicalNan, kWord);
  }
  if (shape_.num_groups == 0) return;
  kernels_.interleave(sums, count, shape_.num_groups, shape_.num_groups, tile_sums_ + first * shape_.num_groups);
}

TokenTile MatMulRun::token_tile(size_t tile) const {
  const size_t first = tile_begin(tile);
  TokenTile out;
  out.count = tile_begin(tile + 1) - first;
  out.inputs = tiles_ + first * shape_.row_bytes;
  out.group_sums = tile_sums_ + first * shape_.num_groups;
  for (size_t t = 0; t < out.count; ++t) {
    out.d[t] = rows_[first + t].d;
    out.sum[t] = rows_[first + t].sum;
  }
  return out;
}

Block MatMulRun::block_of(size_t block) const {
  const uint8_t* lines = matrix_.lines + block * shape_.block.num_lines * kLineBytes;
  if (matrix_.group_scales == nullptr) return {lines, nullptr, matrix_.scale};
  return {lines, static_cast<const char*>(matrix_.group_scales) + block * shape_.scale_bytes, 0.0f};
}

/// Bytes of weights, scales and biases in some blocks.
size_t MatMulRun::stored_bytes(const Range& blocks) const {
  const size_t rows = std::min(out_features_, blocks.end * kBlockRows) - blocks.begin * kBlockRows;
  size_t bytes = (blocks.end - blocks.begin) * (shape_.block.num_lines * kLineBytes + shape_.scale_bytes);
  if (matrix_.bias != nullptr) bytes += rows * sizeof(float);
  // A ternary matrix has one scale, which goes to the first block.
  return bytes + (is_ternary() && blocks.begin == 0 ? sizeof(float) : 0);
}

void MatMulRun::multiply_task(size_t task) {
  const Range blocks = multiply_tasks_.range(task);
  const Phase phase = is_ternary() ? Phase::kMatMul : Phase::kLinear;
  const Span span(trace_, phase, kNoExpert, num_tokens_, stored_bytes(blocks));
  for (size_t i = 0; i < num_tiles_; ++i) {
    const TokenTile tile = token_tile(i);
    for (size_t block = blocks.begin; block < blocks.end; ++block) {
      float results[kMaxTileTokens * kBlockRows];
      format_.linear_block(shape_.block, block_of(block), tile, results);
      write_results(results, block, tile_begin(i), tile.count);
    }
  }
}

/// Adds the bias, and gives NaN its canonical form: the sum of one expert with weight 1, with the bias as the shared one.
void MatMulRun::write_results(const float* results, size_t block, size_t first_token, size_t count) {
  constexpr float kOne = 1.0f;
  const size_t column = block * kBlockRows;
  const size_t columns = std::min(kBlockRows, out_features_ - column);
  float bias[kBlockRows] = {};  // a copy, since the last block's may end early
  if (matrix_.bias != nullptr) {
    std::memcpy(bias, static_cast<const char*>(matrix_.bias) + column * sizeof(float), columns * sizeof(float));
  }
  for (uint32_t t = 0; t < count; ++t) {
    kernels_.combine(results, &t, &kOne, 1, matrix_.bias == nullptr ? nullptr : bias,
                     y_ + (first_token + t) * out_features_ + column, columns);
  }
}

}  // namespace mote

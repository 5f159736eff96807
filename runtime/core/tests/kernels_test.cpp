// What the layer alone cannot reach: single kernels and the limits of the integer sums, on every instruction set.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "layout.h"
#include "tensors.h"

namespace mote::test {
namespace {

constexpr WeightFormat kIntegerFormats[] = {WeightFormat::kTwoBit, WeightFormat::kOneSixBit, WeightFormat::kInt4,
                                            WeightFormat::kInt8};
constexpr WeightFormat kAllFormats[] = {WeightFormat::kTwoBit, WeightFormat::kOneSixBit, WeightFormat::kInt4,
                                        WeightFormat::kInt8, WeightFormat::kBf16};

const FormatKernels& kernels_of(const IsaEntry& isa, WeightFormat format) {
  return isa.kernels->formats[static_cast<size_t>(format)];
}

/// Rows of the widest layer, all bytes and all activations alike.
struct WidestRow {
  WidestRow(WeightFormat format, uint8_t byte, int8_t activation, size_t tokens)
      : num_lines(mote::num_lines(format, kMaxWidth)),
        lines(num_lines * kLineBytes, byte),
        codes(num_lines * line_inputs(format) * tokens, 0) {
    std::fill_n(codes.begin(), kMaxWidth * tokens, activation);
    tile.count = tokens;
    tile.inputs = codes.data();
    std::fill_n(tile.d, tokens, 1.0f);
    std::fill_n(tile.sum, tokens, static_cast<int32_t>(kMaxWidth) * activation);
    for (size_t r = 0; r < kBlockRows; ++r) scales[r] = bf16_bits(1.0f);
  }

  /// The exact sum, rounded once.
  float expected(WeightFormat format, int8_t activation) const {
    std::vector<int32_t> values(kMaxWidth);
    unpack(format, lines.data(), 1, kMaxWidth, values.data());
    int64_t sum = 0;
    for (const int32_t value : values) sum += value * activation;
    return static_cast<float>(sum);
  }

  size_t num_lines;
  std::vector<uint8_t> lines;
  std::vector<int8_t> codes;
  uint16_t scales[kBlockRows];
  TokenTile tile{};
};

/// On every ISA, for so many tokens or as many as its tiles have.
void expect_exact(WeightFormat format, uint8_t byte, int8_t activation, size_t tokens) {
  for (const IsaEntry& isa : supported_isas()) {
    const FormatKernels& kernels = kernels_of(isa, format);
    const WidestRow row(format, byte, activation, std::min(tokens, kernels.tile_tokens));
    const float expected = row.expected(format, activation);
    std::vector<float> result(kBlockRows * row.tile.count);
    kernels.linear_block({row.num_lines, row.num_lines}, {row.lines.data(), row.scales, 1.0f}, row.tile, result.data());
    for (const float value : result) {
      ASSERT_EQ(value, expected) << isa.name << " format " << static_cast<int>(format) << " byte " << int{byte}
                                 << " activation " << int{activation} << " tokens " << row.tile.count;
    }
  }
}

TEST(Kernels, WidestDotProductDoesNotOverflow) {
  for (const WeightFormat format : kIntegerFormats) {
    for (const int byte : {0x00, 0x01, 0x55, 0x79, 0x7f, 0x80, 0x88, 0xaa, 0xf2, 0xf3, 0xff}) {
      for (const int activation : {-128, -127, 127}) {
        // Quantized activations are never -128, which int8 on AVX2 relies upon.
        if (format == WeightFormat::kInt8 && activation == -128) continue;
        expect_exact(format, static_cast<uint8_t>(byte), static_cast<int8_t>(activation), 1);
      }
    }
  }
}

/// Other numbers of tokens take other ways through the products: pairs of tokens, planes that are multiplied where they stand.
TEST(Kernels, WidestDotProductOfSeveralTokensDoesNotOverflow) {
  for (const WeightFormat format : kIntegerFormats) {
    for (const int byte : {0x00, 0xff}) {
      for (const int activation : {-127, 127}) {
        for (const size_t tokens : {size_t{5}, size_t{8}, kMaxTileTokens}) {
          expect_exact(format, static_cast<uint8_t>(byte), static_cast<int8_t>(activation), tokens);
        }
      }
    }
  }
}

/// Two blocks of random lines, and the rows of inputs of as many tokens as a tile may have, not yet interleaved.
class RandomTile {
 public:
  static constexpr size_t kLines = 37;

  RandomTile(WeightFormat format, size_t group_inputs, Rng& rng)
      : format_(format), num_inputs_(kLines * line_inputs(format)), group_inputs_(group_inputs) {
    const int64_t groups = static_cast<int64_t>(num_groups());
    lines_ = format == WeightFormat::kBf16 ? Tensor::random_bf16_lines({2, kLines, 64}, rng)
                                           : Tensor::random_bytes({2, kLines, 64}, rng);
    scales_ = Tensor::random_bf16({2, groups, 16}, 0.0f, 0.1f, rng);
    codes_.resize(kMaxTileTokens * num_inputs_);
    // -127..127, like quantized activations.
    for (int8_t& code : codes_) code = static_cast<int8_t>(static_cast<int>(rng() % 255) - 127);
    floats_ = random_values(kMaxTileTokens * num_inputs_, rng);
  }

  BlockShape shape() const {
    return {kLines, group_inputs_ == 0 ? kLines : group_inputs_ / line_inputs(format_)};
  }
  Block block(size_t which) const {
    const size_t scale_bytes = num_groups() * kBlockRows * sizeof(uint16_t);
    return {lines_.data() + which * kLines * kLineBytes, scales_.data() + which * scale_bytes, 0.01f + 0.01f * which};
  }

  /// The tile of these tokens, whose inputs and group sums are kept until the next call.
  TokenTile tile(size_t first, size_t count) {
    TokenTile tile{};
    tile.count = count;
    const bool is_float = format_ == WeightFormat::kBf16;
    interleaved_.assign(is_float ? num_inputs_ * count * sizeof(float) : num_inputs_ * count, 0);
    group_sums_.assign(num_groups() * count, 0);
    for (size_t t = 0; t < count; ++t) {
      tile.d[t] = 0.25f * static_cast<float>(first + t + 1);
      for (size_t k = 0; k < num_inputs_; ++k) {
        const size_t source = (first + t) * num_inputs_ + k;
        if (is_float) {
          std::memcpy(interleaved_.data() + sizeof(float) * (k * count + t), &floats_[source], sizeof(float));
          continue;
        }
        interleaved_[4 * (k / 4 * count + t) + k % 4] = static_cast<uint8_t>(codes_[source]);
        tile.sum[t] += codes_[source];
        if (group_inputs_ != 0) group_sums_[k / group_inputs_ * count + t] += codes_[source];
      }
    }
    tile.inputs = interleaved_.data();
    tile.group_sums = group_sums_.data();
    return tile;
  }

 private:
  size_t num_groups() const { return group_inputs_ == 0 ? 1 : ceil_div(num_inputs_, group_inputs_); }

  WeightFormat format_;
  size_t num_inputs_, group_inputs_;
  Tensor lines_, scales_;
  std::vector<int8_t> codes_;
  std::vector<float> floats_;
  std::vector<uint8_t> interleaved_;
  std::vector<int32_t> group_sums_;
};

void expect_tiles_match_single_tokens(const IsaEntry& isa, WeightFormat format, size_t group_inputs, Rng& rng) {
  constexpr size_t kStride = 20, kRowBytes = kBlockRows * sizeof(float);
  const FormatKernels& kernels = kernels_of(isa, format);
  RandomTile random(format, group_inputs, rng);
  ASSERT_LE(kernels.tile_tokens, kMaxTileTokens) << isa.name;
  for (size_t count = 1; count <= kernels.tile_tokens; ++count) {
    std::vector<float> h(count * kStride), results(kBlockRows * count), alone(kBlockRows);
    TokenTile tile = random.tile(0, count);
    kernels.gate_up_block(random.shape(), random.block(0), random.block(1), tile, h.data(), kStride);
    kernels.linear_block(random.shape(), random.block(0), tile, results.data());
    for (size_t t = 0; t < count; ++t) {
      tile = random.tile(t, 1);
      kernels.gate_up_block(random.shape(), random.block(0), random.block(1), tile, alone.data(), kStride);
      ASSERT_EQ(std::memcmp(alone.data(), h.data() + t * kStride, kRowBytes), 0) << isa.name << " " << count;
      kernels.linear_block(random.shape(), random.block(0), tile, alone.data());
      ASSERT_EQ(std::memcmp(alone.data(), results.data() + kBlockRows * t, kRowBytes), 0) << isa.name << " " << count;
    }
  }
}

TEST(Kernels, TilesOfEverySizeGiveTheSameRows) {
  Rng rng(1);
  for (const IsaEntry& isa : supported_isas()) {
    for (const WeightFormat format : kAllFormats) expect_tiles_match_single_tokens(isa, format, 0, rng);
    for (const size_t group : {32, 64, 128, 256}) expect_tiles_match_single_tokens(isa, WeightFormat::kInt4, group, rng);
  }
}

TEST(Kernels, InterleavesWordsAndPadsWithZero) {
  Rng rng(3);
  for (const IsaEntry& isa : supported_isas()) {
    for (size_t count = 1; count <= kMaxTileTokens; ++count) {
      for (const size_t num_words : {1, 3, 16, 63, 64, 65, 130}) {
        for (const size_t padding : {0, 1, 5}) {
          const size_t padded_words = num_words + padding;
          std::vector<Tensor> rows;
          const void* addresses[kMaxTileTokens];
          for (size_t t = 0; t < count; ++t) {
            rows.push_back(Tensor::random_bytes({static_cast<int64_t>(num_words), 4}, rng));
            addresses[t] = rows[t].data();
          }
          Tensor out = Tensor::random_bytes({static_cast<int64_t>(padded_words * count), 4}, rng);
          isa.kernels->interleave(addresses, count, num_words, padded_words, out.data());
          for (size_t i = 0; i < padded_words * count; ++i) {
            uint8_t expected[4] = {};
            if (i / count < num_words) std::memcpy(expected, rows[i % count].data() + 4 * (i / count), 4);
            ASSERT_EQ(std::memcmp(out.data() + 4 * i, expected, 4), 0)
                << isa.name << " rows " << count << " words " << num_words << " + " << padding << " at " << i;
          }
        }
      }
    }
  }
}

void expect_quantized(const IsaEntry& isa, const std::vector<float>& v, size_t group, bool finite) {
  const std::string what = std::string(isa.name) + " n=" + std::to_string(v.size()) + " group " + std::to_string(group);
  std::vector<int8_t> q(code_row_size(v.size()), 99);
  std::vector<int32_t> sums(group == 0 ? 0 : ceil_div(v.size(), group), 77);
  const QuantizedRow row =
      isa.kernels->quantize_row(v.data(), v.size(), group, q.data(), group == 0 ? nullptr : sums.data());
  EXPECT_EQ(row.finite, finite) << what;
  EXPECT_EQ(std::isnan(row.d), !finite) << what;
  int32_t sum = 0;
  std::vector<int32_t> expected_sums(sums.size(), 0);
  for (size_t k = 0; k < q.size(); ++k) {
    ASSERT_NE(q[k], -128) << what;
    if (!finite || k >= v.size()) {
      ASSERT_EQ(q[k], 0) << what << " k=" << k;
    }
    sum += q[k];
    if (group != 0 && k < v.size()) expected_sums[k / group] += q[k];
  }
  EXPECT_EQ(row.sum, sum) << what;
  EXPECT_EQ(sums, expected_sums) << what;
}

TEST(Kernels, QuantizedRowsArePaddedWithZeroAndSummedByGroup) {
  Rng rng(2);
  for (const IsaEntry& isa : supported_isas()) {
    for (const size_t group : {0, 32, 64, 128, 256}) {
      for (size_t n = 1; n <= 300; n += n < 40 ? 1 : 13) {
        std::vector<float> v = random_values(n, rng);
        expect_quantized(isa, v, group, true);
        v[n - 1] = std::numeric_limits<float>::infinity();
        expect_quantized(isa, v, group, false);
        v[n / 2] = std::numeric_limits<float>::quiet_NaN();
        expect_quantized(isa, v, group, false);
      }
    }
  }
}

}  // namespace
}  // namespace mote::test

// What the layer alone cannot reach: the limits of the integer sums, on every instruction set.
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <vector>

#include "layer_fixture.h"
#include "layout.h"

namespace mote::test {
namespace {

/// A row of the widest layer, all codes and all activations alike.
struct WidestRow {
  WidestRow(uint8_t code, int8_t activation)
      : lines(kMaxWidth / kLineInputs * kLineBytes, static_cast<uint8_t>(code * 0x55)),
        codes(kMaxWidth, activation) {
    tile.count = 1;
    tile.q[0] = codes.data();
    tile.d[0] = 1.0f;
    tile.sum[0] = static_cast<int32_t>(kMaxWidth) * activation;
  }

  std::vector<uint8_t> lines;
  std::vector<int8_t> codes;
  TokenTile tile{};
};

TEST(Kernels, WidestDotProductDoesNotOverflow) {
  for (const int code : {0, 1, 2, 3}) {
    for (const int activation : {-128, 127}) {
      const WidestRow row(static_cast<uint8_t>(code), static_cast<int8_t>(activation));
      // A power of two times less than 2^24, so exact in float32.
      const float expected = static_cast<float>(code - 1) * static_cast<float>(activation) * kMaxWidth;
      for (const IsaEntry& isa : supported_isas()) {
        float result[16];
        isa.kernels->down_block(row.lines.data(), kMaxWidth / kLineInputs, row.tile, 1.0f, result);
        for (const float value : result) {
          ASSERT_EQ(value, expected) << isa.name << " code " << code << " activation " << activation;
        }
      }
    }
  }
}

TEST(Kernels, TilesOfEverySizeGiveTheSameRows) {
  Rng rng(1);
  constexpr size_t kLines = 23;
  std::vector<uint8_t> lines(2 * kLines * kLineBytes);
  for (uint8_t& byte : lines) byte = static_cast<uint8_t>(rng());
  std::vector<int8_t> codes(kMaxTileTokens * kLines * kLineInputs);
  for (int8_t& code : codes) code = static_cast<int8_t>(rng());
  TokenTile all{};
  for (size_t t = 0; t < kMaxTileTokens; ++t) {
    all.q[t] = codes.data() + t * kLines * kLineInputs;
    all.d[t] = 0.25f * static_cast<float>(t + 1);
    for (size_t k = 0; k < kLines * kLineInputs; ++k) all.sum[t] += all.q[t][k];
  }
  const float scale[2] = {0.01f, 0.02f};
  constexpr size_t kStride = 20;

  for (const IsaEntry& isa : supported_isas()) {
    for (size_t count = 1; count <= isa.kernels->tile_tokens; ++count) {
      TokenTile tile = all;
      tile.count = count;
      std::vector<float> h(count * kStride), down(16 * count), alone(16);
      isa.kernels->gate_up_block(lines.data(), kLines, tile, scale, h.data(), kStride);
      isa.kernels->down_block(lines.data(), kLines, tile, scale[0], down.data());
      for (size_t t = 0; t < count; ++t) {
        TokenTile one{1, {all.q[t]}, {all.d[t]}, {all.sum[t]}};
        isa.kernels->gate_up_block(lines.data(), kLines, one, scale, alone.data(), kStride);
        ASSERT_EQ(std::memcmp(alone.data(), h.data() + t * kStride, 64), 0) << isa.name << " " << count;
        isa.kernels->down_block(lines.data(), kLines, one, scale[0], alone.data());
        ASSERT_EQ(std::memcmp(alone.data(), down.data() + 16 * t, 64), 0) << isa.name << " " << count;
      }
    }
  }
}

TEST(Kernels, QuantizedRowsArePaddedWithZero) {
  Rng rng(2);
  for (const IsaEntry& isa : supported_isas()) {
    for (size_t n = 1; n <= 40; ++n) {
      std::vector<float> v = random_values(n, rng);
      std::vector<int8_t> q((n + 15) / 16 * 16, 99);
      for (const bool finite : {true, false}) {
        if (!finite) v[n - 1] = std::numeric_limits<float>::infinity();
        const QuantizedRow row = isa.kernels->quantize_row(v.data(), n, q.data());
        EXPECT_EQ(row.finite, finite);
        int32_t sum = 0;
        for (const int8_t code : q) sum += code;
        EXPECT_EQ(row.sum, sum);
        for (size_t k = finite ? n : 0; k < q.size(); ++k) EXPECT_EQ(q[k], 0) << isa.name << " n=" << n << " k=" << k;
      }
    }
  }
}

}  // namespace
}  // namespace mote::test

// The kernels of attention against the definition in double precision.
#include "attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

namespace mote::runner {
namespace {

using Floats = std::vector<float>;

Floats random_floats(size_t count, float scale, std::mt19937_64* rng) {
  std::normal_distribution<float> normal(0.0f, scale);
  Floats out(count);
  for (float& value : out) value = normal(*rng);
  return out;
}

Floats reference(const AttentionShape& s, const Floats& query, const Floats& keys, const Floats& values) {
  Floats out(query.size());
  for (size_t head = 0; head < s.query_heads; ++head) {
    const size_t key_head = head / (s.query_heads / s.key_heads);
    for (size_t i = 0; i < s.length; ++i) {
      const size_t count = s.start + (s.is_causal ? i + 1 : s.length);
      const float* q = query.data() + (i * s.query_heads + head) * s.head_size;
      std::vector<double> weights(count);
      for (size_t k = 0; k < count; ++k) {
        for (size_t d = 0; d < s.head_size; ++d) {
          weights[k] += static_cast<double>(q[d]) * keys[(k * s.key_heads + key_head) * s.head_size + d];
        }
        weights[k] *= s.scale;
      }
      const double peak = *std::max_element(weights.begin(), weights.end());
      double sum = 0;
      for (double& weight : weights) sum += weight = std::exp(weight - peak);
      for (size_t d = 0; d < s.head_size; ++d) {
        double value = 0;
        for (size_t k = 0; k < count; ++k) {
          value += weights[k] / sum * values[(k * s.key_heads + key_head) * s.head_size + d];
        }
        out[(i * s.query_heads + head) * s.head_size + d] = static_cast<float>(value);
      }
    }
  }
  return out;
}

constexpr size_t kVectors[] = {4, 8, 16};  // what the processor lacks is replaced by what it has

/// All rows, `rows_at_once` in a call.
void attend_all(const AttentionShape& s, const Floats& query, const Floats& keys, const Floats& values,
                size_t rows_at_once, size_t max_lanes, float* out) {
  const size_t rows = attention_rows(s);
  for (size_t begin = 0; begin < rows; begin += rows_at_once) {
    attend(s, query.data(), keys.data(), values.data(), out, begin, std::min(rows, begin + rows_at_once), max_lanes);
  }
}

void expect_definition(const AttentionShape& s, std::mt19937_64* rng) {
  const size_t context = s.start + s.length + 3;
  const Floats query = random_floats(s.length * s.query_heads * s.head_size, 1.0f, rng);
  Floats keys = random_floats(context * s.key_heads * s.head_size, 1.0f, rng);
  Floats values = random_floats(keys.size(), 1.0f, rng);
  const Floats expected = reference(s, query, keys, values);
  // What lies behind the last position must not be read.
  const size_t used = (s.start + s.length) * s.key_heads * s.head_size;
  std::fill(keys.begin() + static_cast<std::ptrdiff_t>(used), keys.end(), std::nanf(""));
  std::fill(values.begin() + static_cast<std::ptrdiff_t>(used), values.end(), std::nanf(""));
  // Scores are as large as the scale times the norms, and a softmax turns their absolute error into a relative one.
  const double tolerance = 1e-6 * (1 + s.scale * static_cast<double>(s.head_size));
  for (const size_t max_lanes : kVectors) {
    for (const size_t rows_at_once : {size_t{3}, attention_rows(s)}) {
      Floats out(query.size(), std::nanf(""));
      attend_all(s, query, keys, values, rows_at_once, max_lanes, out.data());
      for (size_t i = 0; i < out.size(); ++i) {
        ASSERT_NEAR(out[i], expected[i], tolerance)
            << "value " << i << ", vectors of " << max_lanes << ", " << rows_at_once << " rows at once, head size "
            << s.head_size << ", start " << s.start;
      }
    }
  }
}

TEST(Attention, AgreesWithItsDefinition) {
  std::mt19937_64 rng(1);
  const AttentionShape shapes[] = {
      {1, 1, 1, 1, 0, true, 1.0f},      {1, 4, 2, 32, 70, true, 0.2f},   {65, 4, 2, 32, 0, true, 0.2f},
      {7, 12, 2, 128, 131, true, 0.1f}, {3, 6, 3, 17, 63, false, 0.3f},  {130, 2, 2, 40, 1, true, 4.0f},
      {1, 8, 1, 64, 300, true, 30.0f},  {5, 3, 1, 80, 0, false, 0.001f}, {70, 3, 1, 3, 60, true, 0.5f},
  };
  for (const AttentionShape& s : shapes) expect_definition(s, &rng);
}

TEST(Attention, AgreesForEveryGroupAndRestOfAHead) {
  std::mt19937_64 rng(2);
  for (size_t group = 1; group <= 8; ++group) {
    for (const size_t head_size : {8, 20, 96, 100, 144}) {
      expect_definition({5, 2 * group, 2, head_size, 62, true, 0.1f}, &rng);
      expect_definition({1, 2 * group, 2, head_size, 127 + group, true, 0.1f}, &rng);
    }
  }
}

TEST(Attention, ChunksAndPiecesGiveTheSameBits) {
  std::mt19937_64 rng(3);
  const AttentionShape shapes[] = {
      {515, 4, 1, 32, 9, true, 0.2f}, {200, 6, 2, 37, 0, true, 0.2f}, {200, 2, 2, 128, 30, true, 0.1f}};
  for (const AttentionShape& whole : shapes) {
    const size_t row = whole.query_heads * whole.head_size;
    const Floats query = random_floats(whole.length * row, 1.0f, &rng);
    const Floats keys = random_floats((whole.start + whole.length) * whole.key_heads * whole.head_size, 1.0f, &rng);
    const Floats values = random_floats(keys.size(), 1.0f, &rng);
    for (const size_t max_lanes : kVectors) {
      Floats expected(query.size());
      attend_all(whole, query, keys, values, attention_rows(whole), max_lanes, expected.data());
      for (const size_t chunk : {1, 7, 64, 512}) {
        for (const size_t rows_at_once : {1, 5, 64}) {
          Floats out(query.size(), std::nanf(""));
          for (size_t begin = 0; begin < whole.length; begin += chunk) {
            AttentionShape s = whole;
            s.length = std::min(chunk, whole.length - begin);
            s.start += begin;
            const Floats piece(query.begin() + static_cast<std::ptrdiff_t>(begin * row),
                               query.begin() + static_cast<std::ptrdiff_t>((begin + s.length) * row));
            attend_all(s, piece, keys, values, rows_at_once, max_lanes, out.data() + begin * row);
          }
          ASSERT_EQ(std::memcmp(out.data(), expected.data(), out.size() * sizeof(float)), 0)
              << "chunks of " << chunk << ", " << rows_at_once << " rows at once, vectors of " << max_lanes
              << ", head size " << whole.head_size;
        }
      }
    }
  }
}

TEST(Attention, WhatIsNotANumberReachesOnlyRowsThatSeeIt) {
  const AttentionShape shape = {9, 3, 1, 20, 60, true, 0.1f};
  std::mt19937_64 rng(4);
  const Floats query = random_floats(shape.length * shape.query_heads * shape.head_size, 1.0f, &rng);
  // Positions of rows that are computed together with rows before them, as groups of 3 do not divide tiles.
  for (const size_t damaged : {62, 65}) {
    for (const bool in_keys : {true, false}) {
      for (const float damage : {std::nanf(""), INFINITY}) {
        Floats keys = random_floats((shape.start + shape.length) * shape.head_size, 1.0f, &rng);
        Floats values = random_floats(keys.size(), 1.0f, &rng);
        // All of a key, so that scores are infinite or NaN, whichever signs the query has.
        std::fill_n((in_keys ? keys : values).begin() + static_cast<std::ptrdiff_t>(damaged * shape.head_size),
                    shape.head_size, damage);
        for (const size_t max_lanes : kVectors) {
          Floats out(query.size());
          attend_all(shape, query, keys, values, attention_rows(shape), max_lanes, out.data());
          for (size_t i = 0; i < out.size(); ++i) {
            const size_t position = shape.start + i / (shape.query_heads * shape.head_size);
            ASSERT_EQ(std::isfinite(out[i]), position < damaged) << "value " << i << ", vectors of " << max_lanes;
          }
        }
      }
    }
  }
}

TEST(Attention, LargeScoresDoNotOverflow) {
  const AttentionShape shape = {1, 1, 1, 1, 2, true, 1.0f};
  const Floats query = {1e4f}, keys = {-1e4f, 1e4f, 0.0f}, values = {1.0f, 2.0f, 3.0f};
  Floats out(1);
  attend(shape, query.data(), keys.data(), values.data(), out.data(), 0, 1);
  EXPECT_EQ(out[0], 2.0f);
}

TEST(Attention, DamageIsNotHidden) {
  const AttentionShape shape = {1, 1, 1, 1, 2, true, 1.0f};
  for (const float damage : {std::nanf(""), INFINITY}) {
    for (size_t key = 0; key < 3; ++key) {
      Floats keys = {1.0f, 2.0f, 3.0f}, out(1);
      const Floats query = {1.0f}, values = {1.0f, 2.0f, 3.0f};
      keys[key] = damage;
      for (const size_t max_lanes : kVectors) {
        attend_all(shape, query, keys, values, 1, max_lanes, out.data());
        EXPECT_TRUE(std::isnan(out[0])) << damage << " in key " << key << ", vectors of " << max_lanes;
      }
    }
  }
}

}  // namespace
}  // namespace mote::runner

// One matrix of a linear layer, as its operator has checked it: what all of them are to the core.
#pragma once

#include <cstdint>

#include "mote/runtime.h"

namespace mote {

/// W [out_features, in_features] in the lines of docs/layout.md. Nothing of it needs to be aligned.
struct PackedMatrix {
  const uint8_t* lines = nullptr;
  const void* group_scales = nullptr;  // bfloat16 [ceil(N/16), groups, 16]; null for formats without groups
  const void* bias = nullptr;          // float32 [N], or null
  float scale = 0.0f;                  // of ternary matrices
  WeightFormat format = WeightFormat::kTwoBit;
  int64_t in_features = 0;
  int64_t out_features = 0;
  int64_t group_size = 0;  // inputs that share a scale; 0 where a row has one or none
};

}  // namespace mote

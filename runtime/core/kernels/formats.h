// What the kernels must know of each packed format at compile time. Constants only, as this is compiled for every ISA.
#pragma once

#include "mote/runtime.h"

namespace mote {

/// An integer format: a line is kPlanes planes of 64 codes, each 16 rows by 4 consecutive inputs.
/// kZero       the code that stands for 0
/// kMaxCode    the largest code, also in a damaged file
/// kGroups     whether scales are bfloat16, for groups of a row, instead of one float for the matrix
struct TwoBit {
  static constexpr WeightFormat kFormat = WeightFormat::kTwoBit;
  static constexpr int kPlanes = 4;
  static constexpr int kZero = 1;
  static constexpr int kMaxCode = 3;
  static constexpr bool kGroups = false;
};

struct OneSixBit {
  static constexpr WeightFormat kFormat = WeightFormat::kOneSixBit;
  static constexpr int kPlanes = 5;
  static constexpr int kZero = 1;
  static constexpr int kMaxCode = 2;
  static constexpr bool kGroups = false;
};

struct Int4 {
  static constexpr WeightFormat kFormat = WeightFormat::kInt4;
  static constexpr int kPlanes = 2;
  static constexpr int kZero = 8;
  static constexpr int kMaxCode = 15;
  static constexpr bool kGroups = true;
};

/// Signed codes; one group.
struct Int8 {
  static constexpr WeightFormat kFormat = WeightFormat::kInt8;
  static constexpr int kPlanes = 1;
  static constexpr int kZero = 0;
  static constexpr int kMaxCode = 127;
  static constexpr bool kGroups = true;
};

}  // namespace mote

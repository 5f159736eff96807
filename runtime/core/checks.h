// Checks of what a model says, for the operators' create(). Each failure is one sentence with the value found and the value
// expected. Internal to the core.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mote/runtime.h"
#include "mote/status.h"

namespace mote {

inline constexpr size_t kMaxTensorRank = 5;

/// A tensor's expected shape, its name for messages, and what its shape follows from.
struct ExpectedTensor {
  const char* name;
  const char* determined_by;
  size_t rank;
  size_t shape[kMaxTensorRank];
};

Status check_range(const char* name, int64_t found, int64_t low, int64_t high);

/// The only value of a string that this version knows.
Status check_word(const char* name, const char* found, const char* expected);

Status check_layout_version(int64_t found);

/// "2bit" or "1.6bit".
Status parse_packing(const char* found, WeightFormat* format);

/// "bf16", "int8" or "int4". False for another word.
bool find_full_format(const char* word, WeightFormat* format);

/// 32, 64, 128 or 256 inputs that share a scale in int4, else 0. `format_name` and `format_word` are what the model calls it.
Status check_group_size(const char* name, int64_t found, WeightFormat format, const char* format_name,
                        const char* format_word);

/// Rank, shape, that it fits this address space, and that there is data.
Status check_tensor(const TensorView& tensor, const ExpectedTensor& expected, size_t element_bytes);

/// A tensor that the model must not have.
Status check_absent(const char* name, const TensorView& tensor, const char* reason);

/// float32 values that must be finite and, if they are scales, not negative. They need not be aligned.
Status check_values(const char* name, const TensorView& tensor, size_t count, bool may_be_negative);

/// bfloat16 scales: finite and not negative.
Status check_bf16_scales(const char* name, const TensorView& tensor, size_t count);

}  // namespace mote

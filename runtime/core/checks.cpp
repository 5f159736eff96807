#include "checks.h"

#include <cmath>
#include <cstring>
#include <type_traits>

#include "layout.h"

namespace mote {
namespace {

template <class Value>
Value value_at(const TensorView& tensor, size_t i) {
  Value value;
  std::memcpy(&value, static_cast<const char*>(tensor.data) + i * sizeof(value), sizeof(value));
  return value;
}

/// The error of the first value that is not good. ExecuTorch has a layer checked in every run, so the values, of which scales of
/// groups are many, are looked through without a branch first, which compilers turn into vector instructions.
template <class Value, class IsGood, class Error>
Status check_each(const TensorView& tensor, size_t count, IsGood is_good, Error error) {
  using Flag = std::conditional_t<sizeof(Value) == sizeof(uint16_t), uint16_t, uint32_t>;  // as wide as a value
  Flag any_bad = 0;
  for (size_t i = 0; i < count; ++i) any_bad = static_cast<Flag>(any_bad | !is_good(value_at<Value>(tensor, i)));
  for (size_t i = 0; i < count && any_bad != 0; ++i) {
    const Value value = value_at<Value>(tensor, i);
    if (!is_good(value)) return error(i, value);
  }
  return Status::ok();
}

}  // namespace

Status check_range(const char* name, int64_t found, int64_t low, int64_t high) {
  if (found >= low && found <= high) return Status::ok();
  return Status::error("%s is %lld, but must be %lld to %lld", name, static_cast<long long>(found),
                       static_cast<long long>(low), static_cast<long long>(high));
}

Status check_word(const char* name, const char* found, const char* expected) {
  if (found == nullptr) return Status::error("%s is missing; this version of mote knows \"%s\"", name, expected);
  if (std::strcmp(found, expected) == 0) return Status::ok();
  return Status::error("%s is \"%.64s\", but this version of mote knows only \"%s\"", name, found, expected);
}

Status check_layout_version(int64_t found) {
  if (found == kLayoutVersion) return Status::ok();
  return Status::error("layout_version is %lld, but this version of mote reads %lld: export the model again",
                       static_cast<long long>(found), static_cast<long long>(kLayoutVersion));
}

Status parse_packing(const char* found, WeightFormat* format) {
  if (found == nullptr) return Status::error("packing is missing; this version of mote knows \"2bit\" and \"1.6bit\"");
  if (std::strcmp(found, "2bit") == 0) {
    *format = WeightFormat::kTwoBit;
  } else if (std::strcmp(found, "1.6bit") == 0) {
    *format = WeightFormat::kOneSixBit;
  } else {
    return Status::error("packing is \"%.64s\", but this version of mote knows only \"2bit\" and \"1.6bit\"", found);
  }
  return Status::ok();
}

bool find_full_format(const char* word, WeightFormat* format) {
  if (std::strcmp(word, "bf16") == 0) {
    *format = WeightFormat::kBf16;
  } else if (std::strcmp(word, "int8") == 0) {
    *format = WeightFormat::kInt8;
  } else if (std::strcmp(word, "int4") == 0) {
    *format = WeightFormat::kInt4;
  } else {
    return false;
  }
  return true;
}

Status check_group_size(const char* name, int64_t found, WeightFormat format, const char* format_name,
                        const char* format_word) {
  const auto group = static_cast<long long>(found);
  if (format == WeightFormat::kInt4) {
    if (group == 32 || group == 64 || group == 128 || group == 256) return Status::ok();
    return Status::error("%s is %lld, but must be 32, 64, 128 or 256 for int4", name, group);
  }
  if (group == 0) return Status::ok();
  return Status::error("%s is %lld, but must be 0 for %s %s", name, group, format_name, format_word);
}

Status check_tensor(const TensorView& tensor, const ExpectedTensor& expected, size_t element_bytes) {
  if (tensor.data == nullptr && tensor.shape == nullptr) return Status::error("%s is missing", expected.name);
  if (tensor.rank != expected.rank) {
    return Status::error("%s has rank %zu, but must have rank %zu", expected.name, tensor.rank, expected.rank);
  }
  if (tensor.shape == nullptr) return Status::error("%s has no shape; expected rank %zu", expected.name, expected.rank);
  size_t bytes = element_bytes;
  for (size_t i = 0; i < expected.rank; ++i) {
    if (tensor.shape[i] < 0 || static_cast<uint64_t>(tensor.shape[i]) != expected.shape[i]) {
      return Status::error("%s has size %lld in dimension %zu, but %s ask for %zu", expected.name,
                           static_cast<long long>(tensor.shape[i]), i, expected.determined_by, expected.shape[i]);
    }
    if (!checked_mul(bytes, expected.shape[i], &bytes) || bytes > PTRDIFF_MAX) {
      return Status::error("%s is larger than this machine's address space", expected.name);
    }
  }
  if (tensor.data == nullptr) return Status::error("%s has no data (a null pointer)", expected.name);
  return Status::ok();
}

Status check_absent(const char* name, const TensorView& tensor, const char* reason) {
  if (tensor.data == nullptr && tensor.shape == nullptr) return Status::ok();
  return Status::error("%s is given, but %s has none", name, reason);
}

Status check_values(const char* name, const TensorView& tensor, size_t count, bool may_be_negative) {
  return check_each<float>(
      tensor, count, [=](float value) { return std::isfinite(value) && (may_be_negative || value >= 0.0f); },
      [=](size_t i, float value) {
        return Status::error("%s has the value %g at index %zu, but must be finite%s", name, static_cast<double>(value),
                             i, may_be_negative ? "" : " and not negative");
      });
}

Status check_bf16_scales(const char* name, const TensorView& tensor, size_t count) {
  constexpr uint16_t kInfinity = 0x7f80;  // as integers, what is finite and has no sign is below it
  constexpr uint16_t kMinusZero = 0x8000;
  return check_each<uint16_t>(
      tensor, count, [](uint16_t bits) { return (bits < kInfinity) | (bits == kMinusZero); },
      [=](size_t i, uint16_t bits) {
        const uint32_t widened = static_cast<uint32_t>(bits) << 16;
        float value;
        std::memcpy(&value, &widened, sizeof(value));
        return Status::error("%s has the value %g at index %zu, but must be finite and not negative", name,
                             static_cast<double>(value), i);
      });
}

}  // namespace mote

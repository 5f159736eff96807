// A layer of any operator, as far as running it goes: what a plugin does with tokens is then written once for all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "mote/runtime.h"

namespace mote {

/// Holds a copy of a layer, which is a plain value, without its type.
class AnyLayer {
 public:
  AnyLayer() = default;

  /// The widths are those of a row of x and of a row of y.
  template <typename Layer>
  AnyLayer(const Layer& layer, int64_t input_width, int64_t output_width)
      : input_width_(input_width), output_width_(output_width) {
    static_assert(std::is_trivially_copyable_v<Layer> && sizeof(Layer) <= sizeof(layer_));
    static_assert(alignof(Layer) <= alignof(std::max_align_t));
    std::memcpy(layer_, static_cast<const void*>(&layer), sizeof(Layer));
    scratch_size_ = [](const void* self, size_t num_tokens, size_t* bytes) {
      return static_cast<const Layer*>(self)->scratch_size(num_tokens, bytes);
    };
    compute_ = [](const void* self, const float* x, float* y, size_t num_tokens, void* scratch,
                  const ThreadPool& threads) {
      return static_cast<const Layer*>(self)->compute(x, y, num_tokens, scratch, threads);
    };
  }

  int64_t input_width() const { return input_width_; }
  int64_t output_width() const { return output_width_; }

  /// These two are the layer's own.
  bool scratch_size(size_t num_tokens, size_t* bytes) const { return scratch_size_(layer_, num_tokens, bytes); }

  [[nodiscard]] bool compute(const float* x, float* y, size_t num_tokens, void* scratch,
                             const ThreadPool& threads) const {
    return compute_(layer_, x, y, num_tokens, scratch, threads);
  }

 private:
  alignas(std::max_align_t) unsigned char layer_[256] = {};
  int64_t input_width_ = 0;
  int64_t output_width_ = 0;
  bool (*scratch_size_)(const void* self, size_t num_tokens, size_t* bytes) = nullptr;
  bool (*compute_)(const void* self, const float* x, float* y, size_t num_tokens, void* scratch,
                   const ThreadPool& threads) = nullptr;
};

}  // namespace mote

// A prompt as the host prepared it: tokens and pixels, so that no tokenizer and no image library is needed here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "mote/status.h"

namespace mote::runner {

/// docs/runner.md has the file, field by field.
struct Prompt {
  static constexpr int64_t kNoImageToken = -1;

  std::vector<int64_t> ids;
  std::vector<int64_t> eos;
  std::vector<float> pixels;  // [num_images, channels, height, width]
  size_t num_images = 0;
  size_t channels = 0;
  size_t height = 0;
  size_t width = 0;
  int64_t image_token_id = kNoImageToken;
  size_t context_length = 0;

  size_t image_size() const { return channels * height * width; }
};

/// Checks everything that can be checked without the model; on failure *prompt is of no use.
Status parse_prompt(const std::vector<uint8_t>& content, Prompt* prompt);

Status read_prompt(const std::string& path, Prompt* prompt);

}  // namespace mote::runner

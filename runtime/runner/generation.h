// One answer: greedy decoding, and when each thing happened.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "memory_sampler.h"
#include "prompt.h"
#include "session.h"

namespace mote::runner {

/// Times in ms since the epoch. The names are those of ExecuTorch's LLM stats, and of the record.
struct Repetition {
  double inference_start_ms = 0;
  double token_encode_end_ms = 0;
  double image_encode_end_ms = 0;
  double prompt_eval_end_ms = 0;
  double first_token_ms = 0;
  double inference_end_ms = 0;
  double aggregate_sampling_time_ms = 0;
  size_t prompt_tokens = 0;
  size_t decode_steps = 0;
  std::vector<int64_t> token_ids;  // without the end-of-sequence token
  std::vector<double> token_ms;
};

/// Checks the prompt against the model's vocabulary.
Status check_prompt(const Prompt& prompt, const Session& session);

/// Answers the prompt with at most this many tokens, by the rules of mote_runtime.generation: the image token is never chosen, and
/// the token chosen last needs a place in the context before it is decoded.
Status generate(Session* session, const Prompt& prompt, size_t max_new_tokens, MemorySampler* memory, Repetition* out);

}  // namespace mote::runner

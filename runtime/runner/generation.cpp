#include "generation.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "check.h"
#include "clock.h"

namespace mote::runner {
namespace {

/// Of equal logits the lowest id.
Status choose(const Prompt& prompt, std::vector<float>* logits, int64_t* id) {
  if (prompt.image_token_id != Prompt::kNoImageToken) {
    (*logits)[static_cast<size_t>(prompt.image_token_id)] = -std::numeric_limits<float>::infinity();
  }
  size_t best = 0;
  for (size_t i = 0; i < logits->size(); ++i) {
    if (std::isnan((*logits)[i])) return Status::error("a logit is not a number: the model's weights are damaged");
    if ((*logits)[i] > (*logits)[best]) best = i;
  }
  if (!std::isfinite((*logits)[best])) {
    return Status::error("the model's greatest logit is %f, expected a finite number: its weights are damaged",
                         static_cast<double>((*logits)[best]));
  }
  *id = static_cast<int64_t>(best);
  return Status::ok();
}

Status prefill(Session* session, const Prompt& prompt, MemorySampler* memory, Repetition* out,
               std::vector<float>* logits) {
  std::vector<float> features, embeddings;
  session->reset();
  if (prompt.num_images > 0) {
    RETURN_IF_ERROR(session->encode_images(prompt.pixels.data(), prompt.num_images, &features));
    memory->sample();
  }
  out->image_encode_end_ms = now_ms();
  const auto places = static_cast<size_t>(std::count(prompt.ids.begin(), prompt.ids.end(), prompt.image_token_id));
  if (places * session->hidden_size() != features.size()) {
    return Status::error("the prompt has %zu image tokens, expected %zu for %zu images", places,
                         features.size() / session->hidden_size(), prompt.num_images);
  }
  RETURN_IF_ERROR(session->embed(prompt.ids, prompt.image_token_id, features, &embeddings));
  RETURN_IF_ERROR(session->decode(embeddings, logits));
  out->prompt_eval_end_ms = now_ms();
  memory->sample();
  return Status::ok();
}

}  // namespace

Status check_prompt(const Prompt& prompt, const Session& session) {
  const auto vocab = static_cast<int64_t>(session.vocab_size());
  const auto refuse = [vocab](const char* what, int64_t id) {
    return Status::error("%s %lld is not in the model's vocabulary of %lld", what, static_cast<long long>(id),
                         static_cast<long long>(vocab));
  };
  for (const int64_t id : prompt.ids) {
    if (id >= vocab) return refuse("token id", id);
  }
  for (const int64_t id : prompt.eos) {
    if (id >= vocab) return refuse("end-of-sequence id", id);
  }
  return prompt.image_token_id < vocab ? Status::ok() : refuse("image token id", prompt.image_token_id);
}

Status generate(Session* session, const Prompt& prompt, size_t max_new_tokens, MemorySampler* memory, Repetition* out) {
  *out = Repetition();
  out->prompt_tokens = prompt.ids.size();
  out->inference_start_ms = out->token_encode_end_ms = now_ms();  // the host has encoded the text
  std::vector<float> logits, embeddings;
  RETURN_IF_ERROR(prefill(session, prompt, memory, out, &logits));
  while (true) {
    int64_t id = 0;
    const double before = now_ms();
    RETURN_IF_ERROR(choose(prompt, &logits, &id));
    const double known = now_ms();
    out->aggregate_sampling_time_ms += known - before;
    if (std::find(prompt.eos.begin(), prompt.eos.end(), id) != prompt.eos.end()) break;
    if (out->token_ids.empty()) out->first_token_ms = known;
    out->token_ids.push_back(id);
    out->token_ms.push_back(known);
    if (out->token_ids.size() == max_new_tokens) break;
    if (prompt.ids.size() + out->token_ids.size() > prompt.context_length) break;
    ++out->decode_steps;
    RETURN_IF_ERROR(session->embed({id}, prompt.image_token_id, {}, &embeddings));
    RETURN_IF_ERROR(session->decode(embeddings, &logits));
  }
  out->inference_end_ms = now_ms();
  memory->sample();
  return Status::ok();
}

}  // namespace mote::runner

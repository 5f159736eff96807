#include "record.h"

#include <algorithm>
#include <cinttypes>
#include <cstdarg>
#include <cstdio>

#include "clock.h"

namespace mote::runner {
namespace {

#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
void append(std::string* text, const char* format, ...) {
  char buffer[512];
  va_list args;
  va_start(args, format);
  std::vsnprintf(buffer, sizeof(buffer), format, args);
  va_end(args);
  *text += buffer;
}

/// In quotes. What comes here is ours or a runtime's version; other characters than printable ones of ASCII are left out.
std::string quoted(const std::string& value) {
  std::string text = "\"";
  for (const char c : value) {
    if (c < ' ' || c > '~') continue;
    if (c == '"' || c == '\\') text += '\\';
    text += c;
  }
  return text + "\"";
}

/// The elements with commas in between.
template <class T, class Append>
void append_list(std::string* text, const std::vector<T>& list, Append append_one) {
  *text += "[";
  for (size_t i = 0; i < list.size(); ++i) {
    if (i > 0) *text += ", ";
    append_one(list[i]);
  }
  *text += "]";
}

double per_second(size_t count, double ms) { return ms > 0 ? static_cast<double>(count) * 1e3 / ms : 0.0; }

void append_repetition(std::string* text, const Repetition& r) {
  append(text, "\n  {\"inference_start_ms\": %.3f, \"token_encode_end_ms\": %.3f, \"image_encode_end_ms\": %.3f, ",
         r.inference_start_ms, r.token_encode_end_ms, r.image_encode_end_ms);
  append(text, "\"prompt_eval_end_ms\": %.3f, \"first_token_ms\": %.3f, \"inference_end_ms\": %.3f, ",
         r.prompt_eval_end_ms, r.first_token_ms, r.inference_end_ms);
  append(text, "\"aggregate_sampling_time_ms\": %.3f, \"prompt_tokens\": %zu, \"generated_tokens\": %zu, ",
         r.aggregate_sampling_time_ms, r.prompt_tokens, r.token_ids.size());
  append(text, "\"decode_steps\": %zu, \"prefill_token_per_sec\": %.3f, \"decode_token_per_sec\": %.3f, ",
         r.decode_steps, per_second(r.prompt_tokens, r.prompt_eval_end_ms - r.inference_start_ms),
         per_second(r.decode_steps, r.inference_end_ms - r.prompt_eval_end_ms));
  *text += "\"SCALING_FACTOR_UNITS_PER_SECOND\": 1000,\n   \"token_ids\": ";
  append_list(text, r.token_ids, [text](int64_t id) { append(text, "%" PRId64, id); });
  *text += ",\n   \"token_ms\": ";
  append_list(text, r.token_ms, [text](double ms) { append(text, "%.3f", ms); });
  *text += "}";
}

void append_memory(std::string* text, const std::vector<MemorySample>& samples) {
  uint64_t anonymous = 0, file = 0;
  for (const MemorySample& sample : samples) {
    anonymous = std::max(anonymous, sample.anonymous_bytes);
    file = std::max(file, sample.file_bytes);
  }
  *text += "{\"samples\": ";
  append_list(text, samples, [text](const MemorySample& sample) {
    append(text, "[%.3f, %" PRIu64 ", %" PRIu64 "]", sample.ms, sample.anonymous_bytes, sample.file_bytes);
  });
  append(text, ",\n  \"peak_anonymous_bytes\": %" PRIu64 ", \"peak_file_bytes\": %" PRIu64 "}", anonymous, file);
}

}  // namespace

std::string to_json(const Record& record) {
  std::string text = "{\"format\": \"mote-profile\", \"format_version\": 1, \"tool\": \"mote-runner " MOTE_VERSION "\",\n";
  text += " \"runtime\": " + quoted(record.runtime) + ", \"runtime_version\": " + quoted(record.runtime_version) +
          ", \"isa\": " + quoted(record.isa);
  append(&text, ", \"threads\": %d, \"cores\": ", record.threads);
  append_list(&text, record.cores, [&text](int core) { append(&text, "%d", core); });
  append(&text, ", \"warmup\": %zu,\n \"monotonic_to_epoch_ms\": %.3f, ", record.warmup, monotonic_to_epoch_ms());
  append(&text, "\"model_load_start_ms\": %.3f, \"model_load_end_ms\": %.3f,\n \"repetitions\": ",
         record.model_load_start_ms, record.model_load_end_ms);
  append_list(&text, record.repetitions, [&text](const Repetition& one) { append_repetition(&text, one); });
  text += ",\n \"memory\": ";
  append_memory(&text, record.memory);
  return text + "}\n";
}

}  // namespace mote::runner

#include "options.h"

#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <iterator>

#include "check.h"

namespace mote::runner {

const char* const kUsage =
    "mote-runner --model DIR --runtime onnxruntime|executorch --prompt FILE --output FILE.json\n"
    "\n"
    "Answers a prompt that the host prepared, and writes when each thing happened, and how much memory that took.\n"
    "\n"
    "  --model DIR            an export for the runtime\n"
    "  --prompt FILE          tokens and pixels, see docs/runner.md\n"
    "  --output FILE          the record, written when everything is done\n"
    "  --max-new-tokens N     end after this many tokens (128)\n"
    "  --threads N            of the runtime (as many as there are cores to run on)\n"
    "  --cores 0,1,...        run on these only\n"
    "  --warmup N             answers that are not measured (1)\n"
    "  --repetitions N        answers that are (5)\n"
    "  --runtime-library FILE ONNX Runtime (beside this program, then where the loader looks)\n"
    "  --plugin FILE          libmote_ort.so or libmote_executorch.so (beside this program, in ../lib, then where the loader looks)\n"
    "  --trace FILE           the operators' inner phases in the measured answers, as raw MoteTraceEvents\n"
    "  --runtime-trace FILE   the runtime's own profile of one further answer: JSON, of the decoder, and beside it FILE.embedding and\n"
    "                         FILE.vision (onnxruntime); an ETDump (executorch)\n"
    "  --version, --help\n";

namespace {

constexpr size_t kMaxThreads = 1024;
constexpr size_t kMaxRepetitions = 10000;
constexpr size_t kMaxTokens = 1 << 20;

Status parse_number(const char* option, const char* text, size_t least, size_t most, size_t* out) {
  char* end = nullptr;
  errno = 0;
  const unsigned long long value = text[0] >= '0' && text[0] <= '9' ? std::strtoull(text, &end, 10) : 0;
  if (end == nullptr || *end != '\0' || errno != 0 || value < least || value > most) {
    return Status::error("%s is \"%.60s\", expected a number from %zu to %zu", option, text, least, most);
  }
  *out = static_cast<size_t>(value);
  return Status::ok();
}

Status parse_cores(const char* text, std::vector<int>* cores) {
  const std::string list = text;
  for (size_t begin = 0; begin <= list.size();) {
    const size_t end = std::min(list.find(',', begin), list.size());
    size_t core = 0;
    RETURN_IF_ERROR(parse_number("--cores", list.substr(begin, end - begin).c_str(), 0, CPU_SETSIZE - 1, &core));
    cores->push_back(static_cast<int>(core));
    begin = end + 1;
  }
  return Status::ok();
}

Status parse_option(const std::string& name, const char* value, Options* options) {
  const struct {
    const char* name;
    std::string* out;
  } texts[] = {{"--model", &options->session.model_folder},
               {"--prompt", &options->prompt},
               {"--output", &options->output},
               {"--trace", &options->trace},
               {"--runtime-trace", &options->session.runtime_trace},
               {"--runtime-library", &options->session.runtime_library},
               {"--plugin", &options->session.plugin}};
  for (const auto& text : texts) {
    if (name != text.name) continue;
    if (*value == '\0') return Status::error("%s is empty", text.name);
    *text.out = value;
    return Status::ok();
  }
  if (name == "--max-new-tokens") return parse_number(name.c_str(), value, 1, kMaxTokens, &options->max_new_tokens);
  if (name == "--warmup") return parse_number(name.c_str(), value, 0, kMaxRepetitions, &options->warmup);
  if (name == "--repetitions") return parse_number(name.c_str(), value, 1, kMaxRepetitions, &options->repetitions);
  if (name == "--cores") return parse_cores(value, &options->cores);
  if (name == "--threads") {
    size_t threads = 0;
    RETURN_IF_ERROR(parse_number(name.c_str(), value, 1, kMaxThreads, &threads));
    options->session.threads = static_cast<int>(threads);
    return Status::ok();
  }
  if (name == "--runtime") {
    options->runtime = find_runtime(value);
    if (options->runtime != nullptr) return Status::ok();
    return Status::error("--runtime is \"%.60s\", expected %s", value, runtime_names().c_str());
  }
  return Status::error("%.60s is no option", name.c_str());
}

}  // namespace

Status parse_options(int argc, char** argv, Options* options) {
  options->session.threads = 0;  // not said
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--help" || name == "--version") {
      (name == "--help" ? options->help : options->version) = true;
      return Status::ok();
    }
    if (i + 1 == argc) return Status::error("%.60s is no option, or has no value", name.c_str());
    RETURN_IF_ERROR(parse_option(name, argv[++i], options));
  }
  if (options->runtime == nullptr) return Status::error("--runtime is missing, expected %s", runtime_names().c_str());
  if (options->session.model_folder.empty()) return Status::error("--model is missing");
  if (options->prompt.empty()) return Status::error("--prompt is missing");
  if (options->output.empty()) return Status::error("--output is missing");
  return Status::ok();
}

}  // namespace mote::runner

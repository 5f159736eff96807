// Measures answers of an exported model on this device: load, warm up, measure, and write the record.
#include <sched.h>

#include <cstdio>
#include <exception>

#include "check.h"
#include "clock.h"
#include "file.h"
#include "generation.h"
#include "inner_trace.h"
#include "mote/runtime.h"
#include "options.h"
#include "record.h"

namespace mote::runner {
namespace {

constexpr int kFailure = 1;
constexpr int kUsageError = 2;

/// Before any thread starts, since threads inherit the cores of the one that starts them.
Status choose_cores(const std::vector<int>& wanted, std::vector<int>* cores) {
  cpu_set_t set;
  if (!wanted.empty()) {
    CPU_ZERO(&set);
    for (const int core : wanted) CPU_SET(core, &set);
    if (sched_setaffinity(0, sizeof(set), &set) != 0) {
      return Status::error("the system does not let this process run on the cores of --cores");
    }
  }
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return Status::error("the system does not say its cores");
  for (const int core : wanted) {  // the system leaves out silently what it does not have
    if (!CPU_ISSET(core, &set)) return Status::error("core %d of --cores does not exist or may not be used", core);
  }
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &set)) cores->push_back(core);
  }
  return Status::ok();
}

Status open_session(const Runtime& runtime, const SessionOptions& options, std::unique_ptr<Session>* session) {
  RETURN_IF_ERROR(runtime.create(session));
  return (*session)->open(options);
}

Status measure(const Options& options, Session* session, const Prompt& prompt, MemorySampler* memory, Record* record) {
  Repetition repetition;
  for (size_t i = 0; i < options.warmup; ++i) {
    RETURN_IF_ERROR(generate(session, prompt, options.max_new_tokens, memory, &repetition));
  }
  InnerTrace trace;
  if (!options.trace.empty()) {
    RETURN_IF_ERROR(trace.attach(options.session.plugin));
    RETURN_IF_ERROR(trace.start());
  }
  for (size_t i = 0; i < options.repetitions; ++i) {
    RETURN_IF_ERROR(generate(session, prompt, options.max_new_tokens, memory, &repetition));
    record->repetitions.push_back(repetition);
  }
  memory->stop();  // before the trace is copied
  return options.trace.empty() ? Status::ok() : trace.stop_and_write(options.trace);
}

/// In a session of its own, because the runtimes decide on profiling when they load a model.
Status write_runtime_trace(const Options& options, const SessionOptions& settings, const Prompt& prompt,
                           MemorySampler* memory) {
  std::unique_ptr<Session> session;
  Repetition ignored;
  RETURN_IF_ERROR(open_session(*options.runtime, settings, &session));
  RETURN_IF_ERROR(generate(session.get(), prompt, options.max_new_tokens, memory, &ignored));
  return session->finish_runtime_trace();
}

Status run(const Options& command) {
  Options options = command;
  Prompt prompt;
  RETURN_IF_ERROR(read_prompt(options.prompt, &prompt));
  // Not only after minutes of measuring.
  for (const std::string& path : {options.output, options.trace, options.session.runtime_trace}) {
    if (!path.empty()) RETURN_IF_ERROR(check_writable(path));
  }
  Record record;
  RETURN_IF_ERROR(choose_cores(options.cores, &record.cores));
  SessionOptions& settings = options.session;
  if (settings.threads == 0) settings.threads = static_cast<int>(record.cores.size());
  settings.plugin = plugin_path(*options.runtime, settings);
  settings.context_length = prompt.context_length;
  settings.takes_images = prompt.num_images > 0;
  if (settings.takes_images) {
    settings.channels = prompt.channels;
    settings.height = prompt.height;
    settings.width = prompt.width;
  }
  SessionOptions traced = settings;
  settings.runtime_trace.clear();

  MemorySampler memory;
  std::unique_ptr<Session> session;
  record.model_load_start_ms = now_ms();
  RETURN_IF_ERROR(open_session(*options.runtime, settings, &session));
  record.model_load_end_ms = now_ms();
  memory.sample();
  RETURN_IF_ERROR(check_prompt(prompt, *session));
  RETURN_IF_ERROR(measure(options, session.get(), prompt, &memory, &record));

  record.runtime = options.runtime->name;
  record.runtime_version = session->runtime_version();
  record.isa = isa_name();  // the plugin's core chooses like ours
  record.threads = settings.threads;
  record.warmup = options.warmup;
  record.memory = memory.samples();
  session.reset();
  if (!traced.runtime_trace.empty()) RETURN_IF_ERROR(write_runtime_trace(options, traced, prompt, &memory));
  const std::string json = to_json(record);
  return write_file(options.output, json.data(), json.size());
}

int main_with(int argc, char** argv) {
  Options options;
  if (const Status status = parse_options(argc, argv, &options); !status.is_ok()) {
    std::fprintf(stderr, "mote-runner: %s; see --help\n", status.message());
    return kUsageError;
  }
  if (options.help || options.version) {
    std::fputs(options.help ? kUsage : "mote-runner " MOTE_VERSION "\n", stdout);
    return 0;
  }
  if (const Status status = run(options); !status.is_ok()) {
    std::fprintf(stderr, "mote-runner: %s\n", status.message());
    return kFailure;
  }
  return 0;
}

}  // namespace
}  // namespace mote::runner

int main(int argc, char** argv) {
  try {
    return mote::runner::main_with(argc, argv);
  } catch (const std::exception& error) {  // the standard library's: no memory
    std::fprintf(stderr, "mote-runner: the process failed: %s\n", error.what());
    return mote::runner::kFailure;
  }
}

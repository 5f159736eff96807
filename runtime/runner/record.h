// What was measured, as JSON: docs/runner.md has the fields.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "generation.h"
#include "memory_sampler.h"

namespace mote::runner {

struct Record {
  std::string runtime;
  std::string runtime_version;
  std::string isa;
  int threads = 0;
  std::vector<int> cores;
  size_t warmup = 0;
  double model_load_start_ms = 0;
  double model_load_end_ms = 0;
  std::vector<Repetition> repetitions;
  std::vector<MemorySample> memory;
};

std::string to_json(const Record& record);

}  // namespace mote::runner

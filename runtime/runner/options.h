// The command line.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "mote/status.h"
#include "session.h"

namespace mote::runner {

struct Options {
  SessionOptions session;
  const Runtime* runtime = nullptr;
  std::string prompt;
  std::string output;
  std::string trace;  // empty: none
  size_t max_new_tokens = 128;
  size_t warmup = 1;
  size_t repetitions = 5;
  std::vector<int> cores;  // empty: as the system has it
  bool help = false;
  bool version = false;
};

extern const char* const kUsage;

/// An error is one of usage.
Status parse_options(int argc, char** argv, Options* options);

}  // namespace mote::runner

// The inner phases of our operators, recorded by the plugin that the session has loaded (mote/trace.h).
#pragma once

#include <cstdint>
#include <string>

#include "mote/status.h"
#include "mote/trace.h"

namespace mote::runner {

class InnerTrace {
 public:
  /// Of a library that is loaded already.
  Status attach(const std::string& plugin);
  Status start();

  /// Stops, and writes the events, as they are in memory, to a file. An error if some did not fit.
  Status stop_and_write(const std::string& path);

 private:
  int (*start_)(uint64_t) = nullptr;
  uint64_t (*stop_)(uint64_t*) = nullptr;
  uint64_t (*read_)(MoteTraceEvent*, uint64_t, uint64_t) = nullptr;
};

}  // namespace mote::runner

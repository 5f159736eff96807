#include "inner_trace.h"

#include <dlfcn.h>

#include <vector>

#include "file.h"
#include "mote/trace.h"

namespace mote::runner {
namespace {

constexpr uint64_t kMaxEvents = uint64_t{1} << 22;  // 256 MiB, touched as events arrive

}  // namespace

Status InnerTrace::attach(const std::string& plugin) {
  void* library = dlopen(plugin.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
  if (library == nullptr) return Status::error("%.250s was not loaded", plugin.c_str());
  start_ = reinterpret_cast<decltype(start_)>(dlsym(library, "mote_trace_start"));
  stop_ = reinterpret_cast<decltype(stop_)>(dlsym(library, "mote_trace_stop"));
  read_ = reinterpret_cast<decltype(read_)>(dlsym(library, "mote_trace_read"));
  if (start_ != nullptr && stop_ != nullptr && read_ != nullptr) return Status::ok();
  return Status::error("%.200s cannot record its phases: it is of an older mote, build it anew", plugin.c_str());
}

Status InnerTrace::start() {
  return start_(kMaxEvents) == 0 ? Status::ok()
                                 : Status::error("no memory for a trace of %llu events",
                                                 static_cast<unsigned long long>(kMaxEvents));
}

Status InnerTrace::stop_and_write(const std::string& path) {
  uint64_t dropped = 0;
  std::vector<MoteTraceEvent> events(stop_(&dropped));
  if (dropped > 0) {
    return Status::error("%llu events did not fit the trace: ask for fewer repetitions or tokens",
                         static_cast<unsigned long long>(dropped));
  }
  read_(events.data(), 0, events.size());
  return write_file(path, events.data(), events.size() * sizeof(MoteTraceEvent));
}

}  // namespace mote::runner

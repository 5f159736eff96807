// libmote_jni.so: memory for the KV cache, and the plugin's record of which expert was chosen for which token (mote/trace.h).
// Needs nothing but libc and libdl, so that it builds wherever the plugin does.
#include <dlfcn.h>
#include <jni.h>
#include <limits.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include "mote/trace.h"

#define MOTE_JNI(type, name) extern "C" JNIEXPORT type JNICALL Java_org_mote_engine_MoteJni_##name

namespace {

/// What Kotlin reads of the events: which expert a layer chose for a token of a call, or (rank kWholeCall) how many tokens the call had.
struct Route {
  int64_t layer;
  uint32_t call, token, rank, expert;
};
static_assert(sizeof(Route) == 24);
constexpr uint32_t kWholeCall = UINT32_MAX;

/// The functions of the plugin that is loaded; Kotlin holds the handle of its library.
template <class Function>
Function* find(jlong library, const char* name) {
  return library == 0 ? nullptr : reinterpret_cast<Function*>(dlsym(reinterpret_cast<void*>(library), name));
}

/// The number of a phase, or -1 for a plugin that knows none of this name.
int phase_of(jlong library, const char* wanted) {
  auto* phase_name = find<decltype(mote_trace_phase_name)>(library, "mote_trace_phase_name");
  if (phase_name == nullptr) return -1;
  for (uint16_t phase = 0; phase < UINT16_MAX; ++phase) {
    const char* name = phase_name(phase);
    if (name == nullptr) return -1;
    if (strcmp(name, wanted) == 0) return phase;
  }
  return -1;
}

}  // namespace

/// Zeroed memory that takes no room before it is written to. Null if there is none, or for more than a buffer can hold.
MOTE_JNI(jobject, allocate)(JNIEnv* env, jclass, jlong bytes) {
  if (bytes <= 0 || bytes > INT32_MAX) return nullptr;
  void* memory = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  jobject buffer = env->NewDirectByteBuffer(memory, bytes);
  if (buffer == nullptr) munmap(memory, static_cast<size_t>(bytes));
  return buffer;
}

/// Gives the pages of a buffer of `allocate` back to the system; it reads as zeros afterwards.
MOTE_JNI(void, discard)(JNIEnv* env, jclass, jobject buffer) {
  void* memory = buffer == nullptr ? nullptr : env->GetDirectBufferAddress(buffer);
  if (memory != nullptr) madvise(memory, static_cast<size_t>(env->GetDirectBufferCapacity(buffer)), MADV_DONTNEED);
}

/// Ends the life of a buffer of `allocate`, which nobody may touch again.
MOTE_JNI(void, release)(JNIEnv* env, jclass, jobject buffer) {
  void* memory = buffer == nullptr ? nullptr : env->GetDirectBufferAddress(buffer);
  if (memory != nullptr) munmap(memory, static_cast<size_t>(env->GetDirectBufferCapacity(buffer)));
}

/// A handle of the plugin that the runtime has loaded, of this path; 0 if it has not, or if it does not record choices.
MOTE_JNI(jlong, openPlugin)(JNIEnv* env, jclass, jbyteArray path) {
  char name[PATH_MAX];
  const jsize length = path == nullptr ? 0 : env->GetArrayLength(path);
  if (length <= 0 || static_cast<size_t>(length) >= sizeof(name)) return 0;
  env->GetByteArrayRegion(path, 0, length, reinterpret_cast<jbyte*>(name));
  name[length] = '\0';
  void* library = dlopen(name, RTLD_NOW | RTLD_NOLOAD);
  if (library == nullptr) return 0;
  const auto handle = static_cast<jlong>(reinterpret_cast<intptr_t>(library));
  const bool records = find<decltype(mote_trace_start)>(handle, "mote_trace_start") != nullptr &&
                       find<decltype(mote_trace_stop)>(handle, "mote_trace_stop") != nullptr &&
                       find<decltype(mote_trace_read)>(handle, "mote_trace_read") != nullptr && phase_of(handle, "route") >= 0;
  if (records) return handle;
  dlclose(library);
  return 0;
}

/// Also frees what was recorded, which a start without room does.
MOTE_JNI(void, closePlugin)(JNIEnv*, jclass, jlong library) {
  if (library == 0) return;
  auto* start = find<decltype(mote_trace_start)>(library, "mote_trace_start");
  if (start != nullptr) start(0);
  dlclose(reinterpret_cast<void*>(library));
}

/// Whether a recording of up to `capacity` events has begun.
MOTE_JNI(jboolean, startRecording)(JNIEnv*, jclass, jlong library, jlong capacity) {
  auto* start = find<decltype(mote_trace_start)>(library, "mote_trace_start");
  return start != nullptr && capacity > 0 && start(static_cast<uint64_t>(capacity)) == 0 ? JNI_TRUE : JNI_FALSE;
}

/// The number of events recorded, -1 if some were dropped.
MOTE_JNI(jlong, stopRecording)(JNIEnv*, jclass, jlong library) {
  auto* stop = find<decltype(mote_trace_stop)>(library, "mote_trace_stop");
  if (stop == nullptr) return -1;
  uint64_t dropped = 0;
  const uint64_t recorded = stop(&dropped);
  return dropped > 0 || recorded > INT64_MAX ? -1 : static_cast<jlong>(recorded);
}

/// Writes to `out` what the events from number `first` on say of routes, as many events as `out` has room for. The number of routes
/// written, -1 for a buffer that is none.
MOTE_JNI(jint, readRoutes)(JNIEnv* env, jclass, jlong library, jlong first, jobject out) {
  auto* read = find<decltype(mote_trace_read)>(library, "mote_trace_read");
  auto* memory = static_cast<char*>(out == nullptr ? nullptr : env->GetDirectBufferAddress(out));
  if (read == nullptr || memory == nullptr || first < 0) return -1;
  const uint64_t capacity = static_cast<uint64_t>(env->GetDirectBufferCapacity(out)) / sizeof(Route);
  const int route = phase_of(library, "route"), layer = phase_of(library, "layer");
  constexpr uint64_t kChunk = 64;
  MoteTraceEvent events[kChunk];
  jint count = 0;
  for (uint64_t done = 0; done < capacity; done += kChunk) {
    const uint64_t wanted = capacity - done < kChunk ? capacity - done : kChunk;
    const uint64_t copied = read(events, static_cast<uint64_t>(first) + done, wanted);
    for (uint64_t i = 0; i < copied; ++i) {
      const MoteTraceEvent& event = events[i];
      if (event.phase != route && event.phase != layer) continue;
      const bool is_call = event.phase == layer;
      const Route found = {static_cast<int64_t>(event.layer), event.call, is_call ? event.tokens : event.token,
                           is_call ? kWholeCall : event.rank, event.expert};
      memcpy(memory + static_cast<size_t>(count++) * sizeof(found), &found, sizeof(found));
    }
    if (copied < wanted) break;
  }
  return count;
}

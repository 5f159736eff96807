// All that the headers of libc++ ask of its library, where neither exceptions nor streams are used: memory, and an end with a message.
#include <android/log.h>
#include <stdlib.h>

#include <new>

namespace std {
const nothrow_t nothrow{};

inline namespace __1 {
[[noreturn]] void __libcpp_verbose_abort(const char* format, ...) {
  __android_log_print(ANDROID_LOG_FATAL, "mote", "%s", format);
  abort();
}
}  // namespace __1
}  // namespace std

namespace {
void* allocate(size_t size) { return malloc(size == 0 ? 1 : size); }
}  // namespace

void* operator new(size_t size) {
  void* memory = allocate(size);
  if (memory == nullptr) abort();  // there are no exceptions
  return memory;
}
void* operator new[](size_t size) { return operator new(size); }
void* operator new(size_t size, const std::nothrow_t&) noexcept { return allocate(size); }
void* operator new[](size_t size, const std::nothrow_t&) noexcept { return allocate(size); }
void operator delete(void* memory) noexcept { free(memory); }
void operator delete[](void* memory) noexcept { free(memory); }
void operator delete(void* memory, size_t) noexcept { free(memory); }
void operator delete[](void* memory, size_t) noexcept { free(memory); }

extern "C" [[noreturn]] void __cxa_pure_virtual() { abort(); }

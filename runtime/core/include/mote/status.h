// Errors as values: no exceptions and no allocation, because they cross a C ABI.
#pragma once

#include <cstdarg>
#include <cstdio>

namespace mote {

/// Success, or one sentence that says what was found, what was expected and what to do.
class [[nodiscard]] Status {
 public:
  static Status ok() { return Status(); }

#if defined(__GNUC__)
  __attribute__((format(printf, 1, 2)))
#endif
  static Status error(const char* format, ...) {
    Status status;
    status.ok_ = false;
    va_list args;
    va_start(args, format);
    std::vsnprintf(status.message_, sizeof(status.message_), format, args);
    va_end(args);
    return status;
  }

  bool is_ok() const { return ok_; }
  const char* message() const { return message_; }

 private:
  bool ok_ = true;
  char message_[320] = {};
};

}  // namespace mote

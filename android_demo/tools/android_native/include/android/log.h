// The two declarations of the NDK's header that are used here.
#pragma once

enum { ANDROID_LOG_ERROR = 6, ANDROID_LOG_FATAL = 7 };

extern "C" int __android_log_print(int priority, const char* tag, const char* format, ...) __attribute__((__format__(printf, 3, 4)));

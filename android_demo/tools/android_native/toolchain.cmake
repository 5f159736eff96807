# Cross-compiles for Android without the NDK, with Debian's Clang 19 and the folder that natives.py prepares: headers, stubs of the system's
# libraries, and the little of a C++ library that code without exceptions needs. A user's build takes the NDK's toolchain file instead.
#   MOTE_ANDROID_ABI      arm64-v8a or x86_64
#   MOTE_ANDROID_SYSROOT  include/ and lib/
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES MOTE_ANDROID_ABI MOTE_ANDROID_SYSROOT MOTE_ANDROID_API)
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)

# To CMake a system named Android is one with an NDK or an SDK.
set(CMAKE_SYSTEM_NAME Linux)
set(ANDROID TRUE)
set(ANDROID_ABI ${MOTE_ANDROID_ABI})
if(MOTE_ANDROID_ABI STREQUAL "arm64-v8a")
  set(CMAKE_SYSTEM_PROCESSOR aarch64)
  # Without calls to a library for atomics; with landing pads and signed return addresses, which older processors ignore.
  set(flags "-mno-outline-atomics -mbranch-protection=standard")
  # Not pac-plt: neither bionic's loader nor glibc's signs the addresses that such calls would authenticate.
  set(link_flags "-Wl,-z,force-bti")
  set(builtins)
elseif(MOTE_ANDROID_ABI STREQUAL "x86_64")
  set(CMAKE_SYSTEM_PROCESSOR x86_64)
  set(flags "-msse4.2 -mpopcnt")  # what every 64-bit Android on x86 has
  set(link_flags)
  # What __builtin_cpu_supports reads.
  set(builtins "/usr/lib/llvm-19/lib/clang/19/lib/linux/libclang_rt.builtins-x86_64.a")
else()
  message(FATAL_ERROR "MOTE_ANDROID_ABI is \"${MOTE_ANDROID_ABI}\", expected arm64-v8a or x86_64")
endif()
set(target ${CMAKE_SYSTEM_PROCESSOR}-linux-android${MOTE_ANDROID_API})

# No stack protector: its canary is in a slot of bionic's thread block, which glibc, where the same file is tested, has for something else.
set(CMAKE_CXX_COMPILER clang++-19)
set(CMAKE_CXX_COMPILER_TARGET ${target})
set(CMAKE_CXX_FLAGS_INIT "${flags} -fno-exceptions -fno-rtti -fno-threadsafe-statics -ffunction-sections -fdata-sections \
-nostdlibinc -nostdinc++ -D_LIBCPP_HAS_NO_LOCALIZATION -isystem /usr/lib/llvm-19/include/c++/v1 \
-isystem ${MOTE_ANDROID_SYSROOT}/include")
set(link_flags "${link_flags} -nostdlib -fuse-ld=lld-19 -Wno-unused-command-line-argument -L${MOTE_ANDROID_SYSROOT}/lib \
-Wl,-z,max-page-size=16384,-z,relro,-z,now,-z,noexecstack,--build-id=sha1,--strip-all,--no-undefined,--gc-sections,--hash-style=both,--as-needed")
set(CMAKE_MODULE_LINKER_FLAGS_INIT "${link_flags}")
set(CMAKE_SHARED_LINKER_FLAGS_INIT "${link_flags}")
set(CMAKE_CXX_STANDARD_LIBRARIES_INIT "${MOTE_ANDROID_SYSROOT}/lib/cxx.o ${builtins} -llog -ldl -lm -lc")

set(CMAKE_FIND_ROOT_PATH ${MOTE_ANDROID_SYSROOT})
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)

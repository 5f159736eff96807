#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

#include "kernels/tables.h"
#include "mote/runtime.h"

namespace mote {
namespace {

bool always() { return true; }

#if defined(__x86_64__)
// __builtin_cpu_supports reads CPUID and XGETBV: it is false where the operating system does not save the registers.
bool cpu_has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2");
}

#if defined(MOTE_HAS_AVXVNNI)
bool cpu_has_avxvnni() {
  // Compilers know this one's name only since gcc 13 and clang 19: leaf 7, sub-leaf 1, EAX bit 4. The registers are AVX2's.
  constexpr unsigned kAvxVnniBit = 1u << 4;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return cpu_has_avx2() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & kAvxVnniBit) != 0;
}
#endif

bool cpu_has_avx512vnni() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

bool cpu_has_avx512vbmi() { return cpu_has_avx512vnni() && __builtin_cpu_supports("avx512vbmi"); }
#elif defined(__aarch64__)
// Bits of Linux' interface, which older headers lack.
bool cpu_has_dotprod() {
  constexpr unsigned long kAsimdDotprodBit = 1ul << 20;
  return (getauxval(AT_HWCAP) & kAsimdDotprodBit) != 0;
}

bool cpu_has_i8mm() {
  constexpr unsigned long kI8mmBit = 1ul << 13;
  return cpu_has_dotprod() && (getauxval(AT_HWCAP2) & kI8mmBit) != 0;
}
#endif

/// The registry, slowest first. A new ISA adds its line here.
constexpr IsaEntry kEntries[] = {
    {"scalar", &scalar_kernels, always},
#if defined(__x86_64__)
    {"avx2", &avx2_kernels, cpu_has_avx2},
#if defined(MOTE_HAS_AVXVNNI)
    {"avxvnni", &avxvnni_kernels, cpu_has_avxvnni},
#endif
    {"avx512vnni", &avx512vnni_kernels, cpu_has_avx512vnni},
    {"avx512vbmi", &avx512vbmi_kernels, cpu_has_avx512vbmi},
#elif defined(__aarch64__)
    {"neon", &neon_kernels, always},
    {"neon_dotprod", &neon_dotprod_kernels, cpu_has_dotprod},
    {"neon_i8mm", &neon_i8mm_kernels, cpu_has_i8mm},
#endif
};
constexpr size_t kNumEntries = sizeof(kEntries) / sizeof(kEntries[0]);

constexpr bool equal(const char* a, const char* b) {
  while (*a != '\0' && *a == *b) ++a, ++b;
  return *a == *b;
}

constexpr bool names_are_unique() {
  for (size_t i = 0; i < kNumEntries; ++i) {
    for (size_t j = 0; j < i; ++j) {
      if (equal(kEntries[i].name, kEntries[j].name)) return false;
    }
  }
  return true;
}
static_assert(names_are_unique(), "two instruction sets are registered under the same name");

}  // namespace

const IsaEntry* isa_entries(size_t* count) {
  *count = kNumEntries;
  return kEntries;
}

const IsaEntry& choose_isa(const char* requested) {
  const IsaEntry* best = &kEntries[0];
  for (const IsaEntry& entry : kEntries) {
    if (!entry.is_supported()) continue;
    if (requested != nullptr && std::strcmp(requested, entry.name) == 0) return entry;
    best = &entry;
  }
  return *best;
}

const IsaEntry& active_isa() {
  // Not a local static object: its lock would be all that the plugins take from the C++ runtime library. Threads that meet
  // here choose the same entry.
  static std::atomic<const IsaEntry*> chosen{nullptr};
  const IsaEntry* entry = chosen.load(std::memory_order_relaxed);
  if (entry == nullptr) {
    entry = &choose_isa(std::getenv("MOTE_ISA"));
    chosen.store(entry, std::memory_order_relaxed);
  }
  return *entry;
}

const char* isa_name() { return active_isa().name; }

}  // namespace mote

// What this machine can do at most, as JSON: bytes read from DRAM a second, and multiply-adds a second without any memory,
// by number of threads. Independent of the core, so that the core is judged by a limit that it had no part in.
//
//     c++ -O3 -std=c++17 -pthread limits.cpp -o limits && ./limits
//
// `./limits dram THREADS` takes a fifth of a second and says what DRAM gives at this moment: the median of what is read, not the
// best. On a virtual machine the two differ by a factor of two.
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

/// Far beyond any L3, and read piece by piece: a piece takes some milliseconds, which is short enough that a busy machine
/// leaves some of them alone, and the fastest counts. Each thread reads a part of the piece.
constexpr size_t kBufferBytes = size_t{1} << 30;
constexpr size_t kPieceBytes = size_t{1} << 27;
constexpr int kPasses = 5;
/// Of the short measurement, whose buffer is smaller, since filling it takes time too.
constexpr size_t kMomentBytes = size_t{1} << 28;
constexpr size_t kMomentPieceBytes = size_t{1} << 24;
constexpr double kMomentSeconds = 0.1;
constexpr size_t kMomentAhead = 8192;
constexpr int64_t kPeakIterations = 2'000'000;
constexpr int kPeakRepeats = 200;
/// Enough independent sums to cover four cycles of latency on two units, and a few more.
constexpr int kAccumulators = 12;

/// The sums stay in registers only if no index is left.
#define UNROLL _Pragma("GCC unroll 16")

using Clock = std::chrono::steady_clock;

/// Results go here, so that no loop can be removed.
std::atomic<uint64_t> g_sink{0};

/// Hides a value from the compiler, which could otherwise see that a loop repeats itself. No function: clang would compile
/// one for the machine without the extensions of its caller.
#if defined(__x86_64__)
#define KEEP(value) asm volatile("" : "+v"(value))
#else
#define KEEP(value) asm volatile("" : "+w"(value))
#endif

struct Peak {
  const char* isa;
  int64_t (*run)(int64_t iterations);  // returns multiply-adds
};

struct Reader {
  const char* isa;
  /// Reads whole lines; `ahead` bytes of software prefetch, 0: none.
  void (*run)(const uint8_t* data, size_t bytes, size_t ahead);
};

#if defined(__x86_64__)

__attribute__((target("avx512f"))) void read_avx512(const uint8_t* data, size_t bytes, size_t ahead) {
  __m512i sum[8] = {};
  for (size_t i = 0; i + 512 <= bytes; i += 512) {
    UNROLL
    for (size_t j = 0; j < 8; ++j) {
      if (ahead) _mm_prefetch(reinterpret_cast<const char*>(data + i + 64 * j + ahead), _MM_HINT_T0);
      sum[j] = _mm512_xor_si512(sum[j], _mm512_loadu_si512(data + i + 64 * j));
    }
  }
  __m512i all = sum[0];
  for (int j = 1; j < 8; ++j) all = _mm512_xor_si512(all, sum[j]);
  g_sink += static_cast<uint64_t>(_mm512_reduce_add_epi64(all));
}

__attribute__((target("avx2"))) void read_avx2(const uint8_t* data, size_t bytes, size_t ahead) {
  __m256i sum[8] = {};
  for (size_t i = 0; i + 256 <= bytes; i += 256) {
    UNROLL
    for (size_t j = 0; j < 8; ++j) {
      if (ahead && j % 2 == 0) _mm_prefetch(reinterpret_cast<const char*>(data + i + 32 * j + ahead), _MM_HINT_T0);
      sum[j] = _mm256_xor_si256(sum[j], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data + i + 32 * j)));
    }
  }
  __m256i all = sum[0];
  for (int j = 1; j < 8; ++j) all = _mm256_xor_si256(all, sum[j]);
  g_sink += static_cast<uint64_t>(_mm256_extract_epi64(all, 0));
}

__attribute__((target("avx512f,avx512vnni"))) int64_t dot_avx512vnni(int64_t iterations) {
  __m512i sum[kAccumulators] = {};
  for (__m512i& s : sum) KEEP(s);  // else they are equal, and computed once
  __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-5);
  for (int64_t i = 0; i < iterations; ++i) {
    UNROLL
    for (__m512i& s : sum) s = _mm512_dpbusd_epi32(s, a, b);
    KEEP(a);
  }
  for (__m512i& s : sum) g_sink += static_cast<uint64_t>(_mm512_reduce_add_epi32(s));
  return iterations * kAccumulators * 64;
}

#if defined(__clang__) || __GNUC__ >= 11
#define HAS_AVXVNNI 1
__attribute__((target("avx2,avxvnni"))) int64_t dot_avxvnni(int64_t iterations) {
  __m256i sum[kAccumulators] = {};
  for (__m256i& s : sum) KEEP(s);  // else they are equal, and computed once
  __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(-5);
  for (int64_t i = 0; i < iterations; ++i) {
    UNROLL
    for (__m256i& s : sum) s = _mm256_dpbusd_avx_epi32(s, a, b);
    KEEP(a);
  }
  for (__m256i& s : sum) g_sink += static_cast<uint64_t>(_mm256_extract_epi32(s, 0));
  return iterations * kAccumulators * 32;
}
#endif

__attribute__((target("avx2"))) int64_t dot_avx2(int64_t iterations) {
  __m256i sum[kAccumulators] = {};
  for (__m256i& s : sum) KEEP(s);  // else they are equal, and computed once
  __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(-5);
  for (int64_t i = 0; i < iterations; ++i) {
    UNROLL
    for (__m256i& s : sum) {
      KEEP(a);  // else the product would be taken out of the loop
      s = _mm256_add_epi16(s, _mm256_maddubs_epi16(a, b));
    }
  }
  for (__m256i& s : sum) g_sink += static_cast<uint64_t>(_mm256_extract_epi32(s, 0));
  return iterations * kAccumulators * 32;
}

__attribute__((target("avx512f"))) int64_t fma_avx512(int64_t iterations) {
  __m512 sum[kAccumulators] = {};
  for (__m512& s : sum) KEEP(s);  // else they are equal, and computed once
  __m512 a = _mm512_set1_ps(1.0e-3f), b = _mm512_set1_ps(0.999f);
  for (int64_t i = 0; i < iterations; ++i) {
    UNROLL
    for (__m512& s : sum) s = _mm512_fmadd_ps(s, b, a);
    KEEP(a);
  }
  for (__m512& s : sum) g_sink += static_cast<uint64_t>(_mm512_reduce_add_ps(s));
  return iterations * kAccumulators * 16;
}

__attribute__((target("avx2,fma"))) int64_t fma_avx2(int64_t iterations) {
  __m256 sum[kAccumulators] = {};
  for (__m256& s : sum) KEEP(s);  // else they are equal, and computed once
  __m256 a = _mm256_set1_ps(1.0e-3f), b = _mm256_set1_ps(0.999f);
  for (int64_t i = 0; i < iterations; ++i) {
    UNROLL
    for (__m256& s : sum) s = _mm256_fmadd_ps(s, b, a);
    KEEP(a);
  }
  for (__m256& s : sum) g_sink += static_cast<uint64_t>(_mm256_cvtss_f32(s));
  return iterations * kAccumulators * 8;
}

Reader reader() {
  if (__builtin_cpu_supports("avx512f")) return {"avx512f", read_avx512};
  return {"avx2", read_avx2};
}
Peak integer_peak() {
  if (__builtin_cpu_supports("avx512vnni")) return {"avx512vnni", dot_avx512vnni};
#ifdef HAS_AVXVNNI
  unsigned a = 0, b = 0, c = 0, d = 0;  // compilers do not agree on a name for it
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1)) return {"avxvnni", dot_avxvnni};
#endif
  return {"avx2", dot_avx2};
}
Peak float_peak() {
  if (__builtin_cpu_supports("avx512f")) return {"avx512f", fma_avx512};
  return {"avx2", fma_avx2};
}

#elif defined(__aarch64__)

void read_neon(const uint8_t* data, size_t bytes, size_t ahead) {
  uint8x16_t sum[8] = {};
  for (size_t i = 0; i + 128 <= bytes; i += 128) {
    if (ahead) {
      __builtin_prefetch(data + i + ahead);
      __builtin_prefetch(data + i + 64 + ahead);
    }
    UNROLL
    for (size_t j = 0; j < 8; ++j) sum[j] = veorq_u8(sum[j], vld1q_u8(data + i + 16 * j));
  }
  uint8x16_t all = sum[0];
  for (int j = 1; j < 8; ++j) all = veorq_u8(all, sum[j]);
  g_sink += vaddvq_u8(all);
}

__attribute__((target("arch=armv8.2-a+dotprod"))) int64_t dot_sdot(int64_t iterations) {
  int32x4_t sum[kAccumulators] = {};
  for (int32x4_t& s : sum) KEEP(s);  // else they are equal, and computed once
  int8x16_t a = vdupq_n_s8(3), b = vdupq_n_s8(-5);
  for (int64_t i = 0; i < iterations; ++i) {
    UNROLL
    for (int32x4_t& s : sum) s = vdotq_s32(s, a, b);
    KEEP(a);
  }
  for (int32x4_t& s : sum) g_sink += static_cast<uint64_t>(vaddvq_s32(s));
  return iterations * kAccumulators * 16;
}

int64_t fma_neon(int64_t iterations) {
  float32x4_t sum[kAccumulators] = {};
  for (float32x4_t& s : sum) KEEP(s);  // else they are equal, and computed once
  float32x4_t a = vdupq_n_f32(1.0e-3f), b = vdupq_n_f32(0.999f);
  for (int64_t i = 0; i < iterations; ++i) {
    UNROLL
    for (float32x4_t& s : sum) s = vfmaq_f32(a, s, b);
    KEEP(a);
  }
  for (float32x4_t& s : sum) g_sink += static_cast<uint64_t>(vaddvq_f32(s));
  return iterations * kAccumulators * 4;
}

Reader reader() { return {"neon", read_neon}; }
/// Every 64-bit ARM that this project is for has sdot; without it the program ends here.
Peak integer_peak() { return {"sdot", dot_sdot}; }
Peak float_peak() { return {"neon", fma_neon}; }

#else
#error "no loops for this machine yet"
#endif

/// Runs `work(thread)` on that many threads, started together; returns seconds from the start to the last one's end.
template <class Work>
double seconds(size_t threads, Work work) {
  std::atomic<size_t> ready{0};
  std::atomic<bool> go{false};
  std::vector<std::thread> others;
  for (size_t i = 1; i < threads; ++i) {
    others.emplace_back([&, i] {
      ++ready;
      while (!go) {
      }
      work(i);
    });
  }
  while (ready != threads - 1) {
  }
  const Clock::time_point start = Clock::now();
  go = true;
  work(0);
  for (std::thread& thread : others) thread.join();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double best_bandwidth(const uint8_t* data, size_t threads, size_t ahead) {
  const Reader read = reader();
  const size_t part = kPieceBytes / threads / 4096 * 4096;
  double best = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    for (size_t piece = 0; piece + kPieceBytes <= kBufferBytes; piece += kPieceBytes) {
      const double time = seconds(threads, [&](size_t i) { read.run(data + piece + i * part, part, ahead); });
      best = std::max(best, static_cast<double>(part * threads) / time);
    }
  }
  return best;
}

double best_peak(const Peak& peak, size_t threads) {
  double best = 0;
  for (int repeat = 0; repeat < kPeakRepeats; ++repeat) {
    std::atomic<int64_t> done{0};
    const double time = seconds(threads, [&](size_t) { done += peak.run(kPeakIterations); });
    best = std::max(best, static_cast<double>(done) / time);
  }
  return best;
}

uint8_t* buffer(size_t size, bool huge_pages) {
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
#ifdef MADV_HUGEPAGE
  madvise(memory, size, huge_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#endif
  std::memset(memory, 1, size);
  return static_cast<uint8_t*>(memory);
}

/// Median bandwidth of pieces, with pages of the size that mapped files have.
int print_bandwidth_of_the_moment(size_t threads) {
  const Reader read = reader();
  const uint8_t* data = buffer(kMomentBytes, false);
  if (!data || threads < 1) return 1;
  const size_t part = kMomentPieceBytes / threads / 4096 * 4096;
  // The threads stay for all pieces and take turns by spinning, as those of a thread pool do.
  std::vector<double> found;
  std::atomic<size_t> round{0}, done{0};
  std::atomic<bool> stop{false};
  const auto piece_of = [&](size_t i) { return data + i * kMomentPieceBytes % kMomentBytes; };
  std::vector<std::thread> others;
  for (size_t t = 1; t < threads; ++t) {
    others.emplace_back([&, t] {
      for (size_t seen = 0;;) {
        while (round == seen && !stop) {
        }
        if (stop) return;
        seen = round;
        read.run(piece_of(seen) + t * part, part, kMomentAhead);
        ++done;
      }
    });
  }
  const Clock::time_point begin = Clock::now();
  for (size_t i = 1; std::chrono::duration<double>(Clock::now() - begin).count() < kMomentSeconds; ++i) {
    const Clock::time_point start = Clock::now();
    done = 0;
    round = i;
    read.run(piece_of(i), part, kMomentAhead);
    while (done != threads - 1) {
    }
    found.push_back(static_cast<double>(part * threads) / std::chrono::duration<double>(Clock::now() - start).count());
  }
  stop = true;
  for (std::thread& thread : others) thread.join();
  std::nth_element(found.begin(), found.begin() + static_cast<std::ptrdiff_t>(found.size() / 2), found.end());
  std::printf("%.4e\n", found[found.size() / 2]);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 3 && std::strcmp(argv[1], "dram") == 0) {
    return print_bandwidth_of_the_moment(std::strtoul(argv[2], nullptr, 10));
  }
  const size_t thread_counts[] = {1, 2};
  double bandwidth[2] = {};
  std::string variants;
  for (const bool huge : {false, true}) {
    uint8_t* data = buffer(kBufferBytes, huge);
    if (!data) return 1;
    for (const size_t ahead : {size_t{0}, size_t{1024}, size_t{4096}, size_t{8192}}) {
      for (const size_t threads : thread_counts) {
        const double value = best_bandwidth(data, threads, ahead);
        bandwidth[threads - 1] = std::max(bandwidth[threads - 1], value);
        char line[128];
        std::snprintf(line, sizeof line, "%s{\"huge_pages\": %s, \"prefetch\": %zu, \"threads\": %zu, \"bytes_s\": %.4e}",
                      variants.empty() ? "" : ", ", huge ? "true" : "false", ahead, threads, value);
        variants += line;
      }
    }
    munmap(data, kBufferBytes);
  }
  const Peak integer = integer_peak(), floating = float_peak();
  std::printf("{\"dram_bytes_s\": {\"1\": %.4e, \"2\": %.4e},\n", bandwidth[0], bandwidth[1]);
  std::printf(" \"integer_mul_adds_s\": {\"1\": %.4e, \"2\": %.4e},\n", best_peak(integer, 1), best_peak(integer, 2));
  std::printf(" \"float_mul_adds_s\": {\"1\": %.4e, \"2\": %.4e},\n", best_peak(floating, 1), best_peak(floating, 2));
  std::printf(" \"reader\": \"%s\", \"integer_isa\": \"%s\", \"float_isa\": \"%s\",\n", reader().isa, integer.isa, floating.isa);
  std::printf(" \"dram_variants\": [%s]}\n", variants.c_str());
  return 0;
}

// AVX-512 with VNNI and VBMI (Ice Lake, Zen 4): a table of 128 bytes in two registers takes five trits apart.
#include "kernels/avx512_lanes.h"
#include "kernels/tables.h"

namespace mote {
namespace {

/// Four trits of u < 81 in the form of a byte of 2bit. Above, as far as damaged bytes reach, all are 2.
struct FourTrits {
  alignas(64) uint8_t byte[128] = {};

  constexpr FourTrits() {
    for (int u = 0; u < 128; ++u) {
      const int v = u < 81 ? u : 80;
      byte[u] = static_cast<uint8_t>(v % 3 | v / 3 % 3 << 2 | v / 9 % 3 << 4 | v / 27 << 6);
    }
  }
};
constexpr FourTrits kFourTrits;

struct Unpack : UnpackBits {
  using UnpackBits::unpack;

  static void unpack(OneSixBit, __m512i codes, __m512i (&planes)[5]) {
    const __m512i below_81 = remainder(codes, 81);
    // 81 * c has c in its lowest two bits. Bytes above 242 have c = 2, and what remains of them is above 80.
    planes[4] = _mm512_and_si512(_mm512_sub_epi8(codes, below_81), _mm512_set1_epi8(3));
    const __m512i low = _mm512_load_si512(kFourTrits.byte);
    const __m512i high = _mm512_load_si512(kFourTrits.byte + 64);
    __m512i four[4];
    unpack(TwoBit(), _mm512_permutex2var_epi8(low, below_81, high), four);
    for (int plane = 0; plane < 4; ++plane) planes[plane] = four[plane];
  }
};

}  // namespace

extern const KernelTable avx512vbmi_kernels = LayerKernels<Avx512<Unpack>>::table();

}  // namespace mote

// AVX-512 with VNNI (Cascade Lake): five trits are taken apart by arithmetic.
#include "kernels/avx512_lanes.h"
#include "kernels/tables.h"

namespace mote {
namespace {

struct Unpack : UnpackBits {
  using UnpackBits::unpack;

  static void unpack(OneSixBit, __m512i codes, __m512i (&planes)[5]) {
    // 81 * c has c in its lowest two bits. 27 * c, 9 * c, and what is left, 3 * c1 + c0, differ in the nibble that vpshufb takes.
    const __m512i from_27 = table(0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0);
    const __m512i from_9 = table(0, 0, 2, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0);
    const __m512i high_of_9 = table(0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0);
    const __m512i low_of_9 = table(0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0);
    const __m512i v = _mm512_min_epu8(codes, _mm512_set1_epi8(static_cast<char>(242)));
    const __m512i below_81 = remainder(v, 81);
    const __m512i below_27 = remainder(below_81, 27);
    const __m512i below_9 = remainder(below_27, 9);
    planes[4] = _mm512_and_si512(_mm512_sub_epi8(v, below_81), _mm512_set1_epi8(3));
    planes[3] = _mm512_shuffle_epi8(from_27, _mm512_sub_epi8(below_81, below_27));
    planes[2] = _mm512_shuffle_epi8(from_9, _mm512_sub_epi8(below_27, below_9));
    planes[1] = _mm512_shuffle_epi8(high_of_9, below_9);
    planes[0] = _mm512_shuffle_epi8(low_of_9, below_9);
  }

  template <class... Bytes>
  static __m512i table(Bytes... bytes) {
    return _mm512_broadcast_i32x4(_mm_setr_epi8(static_cast<char>(bytes)...));
  }
};

}  // namespace

extern const KernelTable avx512vnni_kernels = LayerKernels<Avx512<Unpack>>::table();

}  // namespace mote

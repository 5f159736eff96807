// ARM with the dot product instructions (ARMv8.2 with FEAT_DotProd: Cortex-A55, A76 and newer).
#include "kernels/neon_sdot.h"
#include "kernels/tables.h"

namespace mote {
namespace {

struct NeonDotprod {
  using Float = FloatLanes;
  using Int = IntLanes;
  static constexpr int kTileTokens = 12;
  static constexpr int kFloatTileTokens = 2;

  template <class Format>
  static constexpr int32_t code_offset() {
    return 0;
  }

  template <class Format, int T>
  static void dot(const uint8_t* lines, size_t num_lines, const int8_t* inputs, Int (&acc)[T]) {
    dot_by_registers<Sdot, Format, T>(lines, num_lines, inputs, acc);
  }
};

}  // namespace

extern const KernelTable neon_dotprod_kernels = LayerKernels<NeonDotprod>::table();

}  // namespace mote

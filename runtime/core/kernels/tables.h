// One line for each ISA file. Which of them a machine can run is decided in dispatch.cpp.
#pragma once

#include "kernels/kernels.h"

namespace mote {

extern const KernelTable scalar_kernels;
extern const KernelTable avx2_kernels;
extern const KernelTable avxvnni_kernels;
extern const KernelTable avx512vnni_kernels;
extern const KernelTable avx512vbmi_kernels;
extern const KernelTable neon_kernels;
extern const KernelTable neon_dotprod_kernels;
extern const KernelTable neon_i8mm_kernels;

}  // namespace mote

// Which kernels run. Internal to the core and its tests.
#pragma once

#include <cstddef>

#include "kernels/kernels.h"

namespace mote {

/// One compiled-in instruction set.
struct IsaEntry {
  const char* name;
  const KernelTable* kernels;
  bool (*is_supported)();
};

/// All that were compiled in, slowest first, whether or not this CPU has them.
const IsaEntry* isa_entries(size_t* count);

/// The entry that MOTE_ISA asks for if this CPU has it, else the fastest one it has. `requested` may be null.
const IsaEntry& choose_isa(const char* requested);

/// The choice for this process, made at the first call.
const IsaEntry& active_isa();

}  // namespace mote

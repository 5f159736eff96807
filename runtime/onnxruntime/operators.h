// What this plugin registers. Each operator is in the file of its name.
#pragma once

#include "host.h"

namespace mote::ort {

extern const Operator kTernaryMoE;
extern const Operator kTernaryMatMul;
extern const Operator kQuantizedMatMul;

}  // namespace mote::ort

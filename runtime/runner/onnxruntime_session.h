#pragma once

#include "session.h"

namespace mote::runner {

Status create_onnxruntime_session(std::unique_ptr<Session>* session);

}  // namespace mote::runner

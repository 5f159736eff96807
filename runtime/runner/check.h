// Handing on errors.
#pragma once

#include "mote/status.h"

#define RETURN_IF_ERROR(expression)                                            \
  do {                                                                         \
    if (mote::Status status_ = (expression); !status_.is_ok()) return status_; \
  } while (false)

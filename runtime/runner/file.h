// Files: read whole, written whole or not at all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "mote/status.h"

namespace mote::runner {

/// The content of a regular file of at most this size.
Status read_file(const std::string& path, uint64_t max_bytes, std::vector<uint8_t>* content);

/// Writes beside the file, then renames: it is complete, or as it was before.
Status write_file(const std::string& path, const void* data, size_t size);

/// Gives a finished file its name; where that fails, it is removed.
Status publish_file(const std::string& unfinished, const std::string& path);

/// Whether write_file could do so, as far as one can tell without writing.
Status check_writable(const std::string& path);

bool is_file(const std::string& path);

/// The folder of this executable.
std::string program_folder();

/// The first of `folders` (relative to the program's) that has the file, or its bare name, for the loader to search.
std::string find_library(const std::vector<std::string>& folders, const std::string& name);

}  // namespace mote::runner

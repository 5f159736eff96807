// Reader of tests/vectors/layout_*_v1.json, which the Python tests read as well.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace mote::test {

struct LayoutCase {
  std::string name;
  size_t rows = 0;
  size_t cols = 0;
  std::vector<int32_t> values;  // [rows, cols]
  std::vector<uint8_t> packed;
};

/// False, with a message, for whatever is not exactly such a file of this packing.
bool read_layout_vectors(const std::string& path, const std::string& packing, std::vector<LayoutCase>* cases,
                         std::string* error);

}  // namespace mote::test

// Reader of tests/vectors/layout_2bit_v1.json, which the Python tests read as well.
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
  std::vector<int8_t> ternary;  // [rows, cols]
  std::vector<uint8_t> packed;
};

bool layout_vectors_exist(const std::string& path);

/// False, with a message, for whatever is not exactly such a file.
bool read_layout_vectors(const std::string& path, std::vector<LayoutCase>* cases, std::string* error);

}  // namespace mote::test

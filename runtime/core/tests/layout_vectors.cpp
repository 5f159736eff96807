#include "layout_vectors.h"

#include <cctype>
#include <fstream>
#include <functional>
#include <iterator>

namespace mote::test {
namespace {

/// The part of JSON that the file needs: objects, arrays, integers and strings without escapes.
class Parser {
 public:
  explicit Parser(std::string text) : text_(std::move(text)) {}

  /// Calls `field` with each key, whose value it must read.
  void object(const std::function<void(const std::string&)>& field) {
    list('{', '}', [&] {
      const std::string key = string();
      expect(':');
      field(key);
    });
  }

  void array(const std::function<void()>& element) { list('[', ']', element); }

  std::string string() {
    expect('"');
    std::string out;
    while (ok() && at_ < text_.size() && text_[at_] != '"') {
      if (text_[at_] == '\\') fail("escape sequences are not read");
      out += text_[at_++];
    }
    expect('"');
    return out;
  }

  int64_t integer() {
    skip_space();
    const size_t begin = at_;
    if (at_ < text_.size() && text_[at_] == '-') ++at_;
    while (at_ < text_.size() && std::isdigit(static_cast<unsigned char>(text_[at_]))) ++at_;
    const std::string digits = text_.substr(begin, at_ - begin);
    if (digits.empty() || digits == "-" || digits.size() > 9) {
      fail("expected an integer");
      return 0;
    }
    return std::stoll(digits);
  }

  void end() {
    skip_space();
    if (at_ != text_.size()) fail("expected the end");
  }

  void fail(const std::string& what) {
    if (ok()) error_ = what + " at byte " + std::to_string(at_);
  }
  bool ok() const { return error_.empty(); }
  const std::string& error() const { return error_; }

 private:
  void list(char open, char close, const std::function<void()>& element) {
    expect(open);
    if (accept(close)) return;
    do {
      element();
    } while (ok() && accept(','));
    expect(close);
  }

  bool accept(char c) {
    skip_space();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  void expect(char c) {
    if (!accept(c)) fail(std::string("expected '") + c + "'");
  }

  void skip_space() {
    while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_]))) ++at_;
  }

  std::string text_;
  size_t at_ = 0;
  std::string error_;
};

std::vector<uint8_t> from_hex(const std::string& hex, Parser& parser) {
  if (hex.size() % 2 != 0 || hex.find_first_not_of("0123456789abcdef") != std::string::npos) {
    parser.fail("packed_hex must be pairs of lower-case hexadecimal digits");
    return {};
  }
  std::vector<uint8_t> out;
  for (size_t i = 0; i < hex.size(); i += 2) {
    out.push_back(static_cast<uint8_t>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  }
  return out;
}

LayoutCase read_case(Parser& parser, const std::string& key_of_values) {
  LayoutCase out;
  parser.object([&](const std::string& key) {
    if (key == "name") {
      out.name = parser.string();
    } else if (key == "rows") {
      out.rows = static_cast<size_t>(parser.integer());
    } else if (key == "cols") {
      out.cols = static_cast<size_t>(parser.integer());
    } else if (key == "packed_hex") {
      out.packed = from_hex(parser.string(), parser);
    } else if (key == key_of_values) {
      parser.array([&] { out.values.push_back(static_cast<int32_t>(parser.integer())); });
    } else {
      parser.fail("unknown key \"" + key + "\"");
    }
  });
  if (out.values.size() != out.rows * out.cols) parser.fail("case " + out.name + " has not rows * cols values");
  return out;
}

}  // namespace

bool read_layout_vectors(const std::string& path, const std::string& packing, std::vector<LayoutCase>* cases,
                         std::string* error) {
  std::ifstream file(path, std::ios::binary);
  const std::string key_of_values = packing == "2bit" || packing == "1.6bit" ? "ternary" : "codes";
  Parser parser(std::string(std::istreambuf_iterator<char>(file), {}));
  parser.object([&](const std::string& key) {
    if (key == "layout_version") {
      if (parser.integer() != 1) parser.fail("expected layout_version 1");
    } else if (key == "packing") {
      if (parser.string() != packing) parser.fail("expected packing " + packing);
    } else if (key == "cases") {
      parser.array([&] { cases->push_back(read_case(parser, key_of_values)); });
    } else {
      parser.fail("unknown key \"" + key + "\"");
    }
  });
  parser.end();
  *error = parser.error();
  return parser.ok();
}

}  // namespace mote::test

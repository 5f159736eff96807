// Prompt files that are damaged in every way are refused, or read as what they say.
#include "prompt.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

namespace mote::runner {
namespace {

using Bytes = std::vector<uint8_t>;

template <class T>
void append(Bytes* bytes, const T& value) {
  const auto* begin = reinterpret_cast<const uint8_t*>(&value);
  bytes->insert(bytes->end(), begin, begin + sizeof(T));
}

struct Fields {
  uint32_t num_ids = 5, num_eos = 2, num_images = 1, channels = 3, height = 2, width = 4, image_token_id = 7, context = 16;
};

Bytes make_file(const Fields& f) {
  Bytes bytes = {'M', 'O', 'T', 'E', 'P', 'R', 'M', '1'};
  for (const uint32_t value :
       {f.num_ids, f.num_eos, f.num_images, f.channels, f.height, f.width, f.image_token_id, f.context}) {
    append(&bytes, value);
  }
  for (int64_t i = 0; i < 5; ++i) append(&bytes, i);
  for (int64_t i = 0; i < 2; ++i) append(&bytes, 100 + i);
  for (int i = 0; i < 24; ++i) append(&bytes, static_cast<float>(i));
  return bytes;
}

std::string refusal(const Bytes& bytes) {
  Prompt prompt;
  const Status status = parse_prompt(bytes, &prompt);
  return status.is_ok() ? "" : status.message();
}

TEST(Prompt, ReadsWhatWasWritten) {
  Prompt prompt;
  ASSERT_TRUE(parse_prompt(make_file({}), &prompt).is_ok());
  EXPECT_EQ(prompt.ids, (std::vector<int64_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(prompt.eos, (std::vector<int64_t>{100, 101}));
  ASSERT_EQ(prompt.pixels.size(), 24u);
  EXPECT_EQ(prompt.pixels[23], 23.0f);
  EXPECT_EQ(prompt.image_token_id, 7);
  EXPECT_EQ(prompt.context_length, 16u);
}

TEST(Prompt, SaysWhatIsWrong) {
  const auto with = [](auto change) {
    Fields fields;
    change(fields);
    return refusal(make_file(fields));
  };
  EXPECT_NE(with([](Fields& f) { f.num_ids = 0; }).find("0 tokens"), std::string::npos);
  EXPECT_NE(with([](Fields& f) { f.num_ids = 17; }).find("17 tokens"), std::string::npos);
  EXPECT_NE(with([](Fields& f) { f.context = 0; }).find("context_length is 0"), std::string::npos);
  EXPECT_NE(with([](Fields& f) { f.context = UINT32_MAX; }).find("context_length is 4294967295"), std::string::npos);
  EXPECT_NE(with([](Fields& f) { f.height = 0; }).find("3 by 0 by 4"), std::string::npos);
  EXPECT_NE(with([](Fields& f) { f.image_token_id = UINT32_MAX; }).find("no image token"), std::string::npos);
  EXPECT_NE(with([](Fields& f) { f.image_token_id = 1u << 31; }).find("image_token_id"), std::string::npos);
  EXPECT_NE(with([](Fields& f) { f.num_eos = 1; }).find("192 bytes, but its header says 184"), std::string::npos);
  EXPECT_NE(with([](Fields& f) { f.num_images = f.channels = f.height = f.width = UINT32_MAX; }).find("damaged"),
            std::string::npos);
  EXPECT_NE(with([](Fields& f) { f.num_eos = UINT32_MAX; }).find("damaged"), std::string::npos);

  Bytes bytes = make_file({});
  bytes[0] = 'X';
  EXPECT_NE(refusal(bytes).find("MOTEPRM1"), std::string::npos);
  for (const int64_t id : {int64_t{-1}, int64_t{1} << 40}) {
    bytes = make_file({});
    std::memcpy(bytes.data() + 40, &id, sizeof(id));
    EXPECT_NE(refusal(bytes).find("token id " + std::to_string(id)), std::string::npos);
  }
  bytes = make_file({});
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(bytes.data() + bytes.size() - 4, &nan, sizeof(nan));
  EXPECT_NE(refusal(bytes).find("pixel"), std::string::npos);
}

TEST(Prompt, RefusesEveryOtherLength) {
  Bytes bytes = make_file({});
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_NE(refusal(Bytes(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size))), "") << size;
  }
  bytes.push_back(0);
  EXPECT_NE(refusal(bytes), "");
}

TEST(Prompt, TakesAnyBytes) {
  std::mt19937_64 rng(1);
  size_t accepted = 0;
  for (int round = 0; round < 20000; ++round) {
    Bytes bytes = make_file({});
    for (size_t i = 0, count = 1 + rng() % 4; i < count; ++i) {
      // Half of the damage is in the header, where it can do most.
      bytes[rng() % (rng() % 2 == 0 ? 40 : bytes.size())] = static_cast<uint8_t>(rng());
    }
    if (rng() % 8 == 0) bytes.resize(rng() % (bytes.size() + 64));
    Prompt prompt;
    if (!parse_prompt(bytes, &prompt).is_ok()) continue;
    ++accepted;
    EXPECT_EQ(prompt.pixels.size(), prompt.num_images * prompt.image_size());
    EXPECT_LE(prompt.ids.size(), prompt.context_length);
    for (const int64_t id : prompt.ids) EXPECT_GE(id, 0);
  }
  EXPECT_GT(accepted, 0u);
}

}  // namespace
}  // namespace mote::runner

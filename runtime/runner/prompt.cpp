#include "prompt.h"

#include <cmath>
#include <cstring>

#include "check.h"
#include "file.h"

namespace mote::runner {
namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the file is little endian, and read as it is");

constexpr char kMagic[8] = {'M', 'O', 'T', 'E', 'P', 'R', 'M', '1'};
constexpr uint32_t kNoImageTokenInFile = 0xFFFFFFFF;
constexpr uint64_t kMaxFileBytes = uint64_t{1} << 30;
constexpr uint32_t kMaxContext = 1 << 20;
constexpr int64_t kMaxId = INT32_MAX;

struct Header {
  char magic[8];
  uint32_t num_ids, num_eos, num_images, channels, height, width, image_token_id, context_length;
};
static_assert(sizeof(Header) == 40);

/// *total += a * b * c * d; false beyond the largest file, long before anything overflows.
bool add_product(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t* total) {
  uint64_t product = 1;
  for (const uint64_t factor : {a, b, c, d}) {
    if (factor != 0 && product > kMaxFileBytes / factor) return false;
    product *= factor;
  }
  *total += product;
  return *total <= kMaxFileBytes;
}

Status check_header(const Header& header) {
  if (std::memcmp(header.magic, kMagic, sizeof(kMagic)) != 0) {
    return Status::error("the file does not begin with MOTEPRM1: it is no prompt that mote-profile wrote");
  }
  if (header.context_length < 1 || header.context_length > kMaxContext) {
    return Status::error("context_length is %u, expected 1 to %u", header.context_length, kMaxContext);
  }
  if (header.num_ids < 1 || header.num_ids > header.context_length) {
    return Status::error("the prompt has %u tokens, expected 1 to the context length %u", header.num_ids,
                         header.context_length);
  }
  if (header.num_images > 0 && (header.channels < 1 || header.height < 1 || header.width < 1)) {
    return Status::error("the images are %u by %u by %u, expected at least 1 in each dimension", header.channels,
                         header.height, header.width);
  }
  if (header.num_images > 0 && header.image_token_id == kNoImageTokenInFile) {
    return Status::error("the prompt has %u images, but no image token", header.num_images);
  }
  if (header.image_token_id != kNoImageTokenInFile && header.image_token_id > kMaxId) {
    return Status::error("image_token_id is %u, expected at most %lld", header.image_token_id,
                         static_cast<long long>(kMaxId));
  }
  return Status::ok();
}

Status check_size(const Header& header, size_t found) {
  uint64_t expected = sizeof(Header);
  const bool fits = add_product(header.num_ids, sizeof(int64_t), 1, 1, &expected) &&
                    add_product(header.num_eos, sizeof(int64_t), 1, 1, &expected) &&
                    (header.num_images == 0 ||
                     add_product(header.num_images, sizeof(float) * uint64_t{header.channels}, header.height,
                                 header.width, &expected));
  if (!fits) {
    return Status::error("the numbers in the prompt's header ask for more than %llu bytes: it is damaged",
                         static_cast<unsigned long long>(kMaxFileBytes));
  }
  if (expected != found) {
    return Status::error("the prompt has %zu bytes, but its header says %llu: it is damaged", found,
                         static_cast<unsigned long long>(expected));
  }
  return Status::ok();
}

Status check_ids(const char* what, const std::vector<int64_t>& ids) {
  for (const int64_t id : ids) {
    if (id < 0 || id > kMaxId) {
      return Status::error("%s %lld is not in 0 to %lld", what, static_cast<long long>(id),
                           static_cast<long long>(kMaxId));
    }
  }
  return Status::ok();
}

template <class T>
const uint8_t* take(const uint8_t* next, size_t count, std::vector<T>* out) {
  out->resize(count);
  if (count > 0) std::memcpy(out->data(), next, count * sizeof(T));
  return next + count * sizeof(T);
}

}  // namespace

Status parse_prompt(const std::vector<uint8_t>& content, Prompt* prompt) {
  Header header;
  if (content.size() < sizeof(header)) {
    return Status::error("the prompt has %zu bytes, expected at least %zu", content.size(), sizeof(header));
  }
  std::memcpy(&header, content.data(), sizeof(header));
  RETURN_IF_ERROR(check_header(header));
  RETURN_IF_ERROR(check_size(header, content.size()));

  prompt->num_images = header.num_images;
  prompt->channels = header.channels;
  prompt->height = header.height;
  prompt->width = header.width;
  prompt->context_length = header.context_length;
  prompt->image_token_id =
      header.image_token_id == kNoImageTokenInFile ? Prompt::kNoImageToken : int64_t{header.image_token_id};
  const uint8_t* next = content.data() + sizeof(header);
  next = take(next, header.num_ids, &prompt->ids);
  next = take(next, header.num_eos, &prompt->eos);
  take(next, header.num_images == 0 ? 0 : header.num_images * prompt->image_size(), &prompt->pixels);
  RETURN_IF_ERROR(check_ids("token id", prompt->ids));
  RETURN_IF_ERROR(check_ids("end-of-sequence id", prompt->eos));
  for (const float pixel : prompt->pixels) {
    if (!std::isfinite(pixel)) return Status::error("a pixel is %f, expected a finite number", static_cast<double>(pixel));
  }
  return Status::ok();
}

Status read_prompt(const std::string& path, Prompt* prompt) {
  std::vector<uint8_t> content;
  RETURN_IF_ERROR(read_file(path, kMaxFileBytes, &content));
  return parse_prompt(content, prompt);
}

}  // namespace mote::runner

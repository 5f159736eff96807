// libmote_executorch_jni.so: the ExecuTorch session of runtime/runner for Kotlin. Every function returns null, or the sentence that says
// what went wrong as UTF-8; no C++ exception leaves it. What Kotlin passes is checked, because memory is what a mistake would cost.
#include <jni.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "check.h"
#include "session.h"

/// executorch_session.cpp
extern "C" mote::runner::Session* mote_create_executorch_session();

#define MOTE_JNI(type, name) extern "C" JNIEXPORT type JNICALL Java_org_mote_engine_ExecuTorchJni_##name

namespace {

using mote::Status;
using mote::runner::Session;
using mote::runner::SessionOptions;

/// What a handle of Kotlin points to.
struct Model {
  std::unique_ptr<Session> session;
  size_t image_size = 0;  // values of one image, 0 if it takes none
  std::vector<float> features, embeddings, logits;
};

jbyteArray to_java(JNIEnv* env, const char* text) {
  const auto length = static_cast<jsize>(std::char_traits<char>::length(text));
  jbyteArray bytes = env->NewByteArray(length);
  if (bytes != nullptr) env->SetByteArrayRegion(bytes, 0, length, reinterpret_cast<const jbyte*>(text));
  return bytes;
}

/// Runs what may fail or throw.
template <class Function>
jbyteArray guarded(JNIEnv* env, Function function) {
  try {
    const Status status = function();
    return status.is_ok() ? nullptr : to_java(env, status.message());
  } catch (const std::bad_alloc&) {
    return to_java(env, "there is not enough memory for this model; close other apps or take a smaller one");
  } catch (const std::exception& error) {
    return to_java(env, error.what());
  } catch (...) {
    return to_java(env, "executorch failed for an unknown reason");
  }
}

Status find_model(jlong handle, Model** model) {
  *model = reinterpret_cast<Model*>(handle);
  return *model == nullptr ? Status::error("the model is closed; open it again") : Status::ok();
}

std::string to_string(JNIEnv* env, jbyteArray bytes) {
  std::string text(bytes == nullptr ? 0 : static_cast<size_t>(env->GetArrayLength(bytes)), '\0');
  if (!text.empty()) {
    env->GetByteArrayRegion(bytes, 0, static_cast<jsize>(text.size()), reinterpret_cast<jbyte*>(text.data()));
  }
  return text;
}

/// A direct buffer of floats. Its size must be the one given.
Status floats_of(JNIEnv* env, jobject buffer, size_t size, const char* what, float** values) {
  *values = buffer == nullptr ? nullptr : static_cast<float*>(env->GetDirectBufferAddress(buffer));
  const jlong capacity = *values == nullptr ? 0 : env->GetDirectBufferCapacity(buffer);
  if (*values == nullptr || reinterpret_cast<uintptr_t>(*values) % alignof(float) != 0) {
    return Status::error("%s is no direct buffer of floats", what);
  }
  if (static_cast<size_t>(capacity) == size) return Status::ok();
  return Status::error("%s holds %lld values, expected %zu", what, static_cast<long long>(capacity), size);
}

}  // namespace

/// `out` becomes [handle, hidden_size, vocab_size]. `sizes` is [threads, context_length, channels, height, width]; 0 threads are as
/// many as ExecuTorch likes, and 0 channels say that the model takes no image. An empty plugin: the model needs none.
MOTE_JNI(jbyteArray, open)
(JNIEnv* env, jclass, jbyteArray folder, jbyteArray plugin, jintArray sizes, jlongArray out) {
  return guarded(env, [&] {
    jint size[5] = {};
    if (sizes == nullptr || env->GetArrayLength(sizes) != 5 || out == nullptr || env->GetArrayLength(out) != 3) {
      return Status::error("a model is opened with five sizes and three results");
    }
    env->GetIntArrayRegion(sizes, 0, 5, size);
    if (*std::min_element(size, size + 5) < 0) return Status::error("a size of the model is negative");
    SessionOptions options;
    options.model_folder = to_string(env, folder);
    options.plugin = to_string(env, plugin);
    options.threads = size[0];
    options.context_length = static_cast<size_t>(size[1]);
    options.channels = static_cast<size_t>(size[2]);
    options.height = static_cast<size_t>(size[3]);
    options.width = static_cast<size_t>(size[4]);
    auto model = std::make_unique<Model>();
    model->image_size = options.channels * options.height * options.width;
    options.takes_images = model->image_size > 0;
    model->session.reset(mote_create_executorch_session());
    RETURN_IF_ERROR(model->session->open(options));
    const jlong results[] = {0, static_cast<jlong>(model->session->hidden_size()),
                             static_cast<jlong>(model->session->vocab_size())};
    env->SetLongArrayRegion(out, 0, 3, results);
    const auto handle = static_cast<jlong>(reinterpret_cast<intptr_t>(model.release()));
    env->SetLongArrayRegion(out, 0, 1, &handle);
    return Status::ok();
  });
}

MOTE_JNI(jbyteArray, version)(JNIEnv* env, jclass) { return to_java(env, MOTE_EXECUTORCH_VERSION); }

/// Pixels float32 [count, channels, height, width] to features float32 [rows, hidden_size].
MOTE_JNI(jbyteArray, encodeImages)(JNIEnv* env, jclass, jlong handle, jobject pixels, jint count, jobject features) {
  return guarded(env, [&] {
    Model* model = nullptr;
    float *in = nullptr, *out = nullptr;
    RETURN_IF_ERROR(find_model(handle, &model));
    if (model->image_size == 0 || count < 1) return Status::error("this model takes no images");
    RETURN_IF_ERROR(floats_of(env, pixels, model->image_size * static_cast<size_t>(count), "pixel_values", &in));
    RETURN_IF_ERROR(model->session->encode_images(in, static_cast<size_t>(count), &model->features));
    RETURN_IF_ERROR(floats_of(env, features, model->features.size(), "the buffer for features", &out));
    std::copy(model->features.begin(), model->features.end(), out);
    return Status::ok();
  });
}

/// Appends tokens to the sequence; logits float32 [vocab_size] of the last one. The image tokens among them take the rows of
/// `features`, which is null without any.
MOTE_JNI(jbyteArray, prefill)
(JNIEnv* env, jclass, jlong handle, jlongArray token_ids, jlong image_token_id, jobject features, jobject logits) {
  return guarded(env, [&] {
    Model* model = nullptr;
    float* values = nullptr;
    RETURN_IF_ERROR(find_model(handle, &model));
    const size_t hidden = model->session->hidden_size(), vocab = model->session->vocab_size();
    std::vector<int64_t> ids(token_ids == nullptr ? 0 : static_cast<size_t>(env->GetArrayLength(token_ids)));
    if (ids.empty()) return Status::error("there are no tokens; expected at least 1");
    static_assert(sizeof(jlong) == sizeof(int64_t));
    env->GetLongArrayRegion(token_ids, 0, static_cast<jsize>(ids.size()), reinterpret_cast<jlong*>(ids.data()));
    for (const int64_t id : ids) {
      if (id < 0 || id >= static_cast<int64_t>(vocab)) {
        return Status::error("token id %lld is not in the vocabulary of %zu", static_cast<long long>(id), vocab);
      }
    }
    model->features.clear();
    if (features != nullptr) {
      const auto rows = static_cast<size_t>(std::count(ids.begin(), ids.end(), image_token_id));
      RETURN_IF_ERROR(floats_of(env, features, rows * hidden, "the buffer of features", &values));
      model->features.assign(values, values + rows * hidden);
    }
    RETURN_IF_ERROR(model->session->embed(ids, image_token_id, model->features, &model->embeddings));
    RETURN_IF_ERROR(model->session->decode(model->embeddings, &model->logits));
    RETURN_IF_ERROR(floats_of(env, logits, model->logits.size(), "the buffer for logits", &values));
    std::copy(model->logits.begin(), model->logits.end(), values);
    return Status::ok();
  });
}

MOTE_JNI(void, reset)(JNIEnv*, jclass, jlong handle) {
  if (handle != 0) reinterpret_cast<Model*>(handle)->session->reset();
}

/// Gives back what the next call makes anew.
MOTE_JNI(void, trim)(JNIEnv*, jclass, jlong handle) {
  if (handle == 0) return;
  auto* model = reinterpret_cast<Model*>(handle);
  for (std::vector<float>* values : {&model->features, &model->embeddings, &model->logits}) std::vector<float>().swap(*values);
}

MOTE_JNI(void, close)(JNIEnv*, jclass, jlong handle) { delete reinterpret_cast<Model*>(handle); }

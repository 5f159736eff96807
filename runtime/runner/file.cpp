#include "file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstring>

#include "check.h"

namespace mote::runner {
namespace {

Status cannot(const char* what, const std::string& path) {
  return Status::error("%.200s cannot be %s: %s", path.c_str(), what, std::strerror(errno));
}

Status read_all(int file, const std::string& path, std::vector<uint8_t>* content) {
  for (size_t done = 0; done < content->size();) {
    const ssize_t count = read(file, content->data() + done, content->size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return cannot("read", path);
    if (count == 0) return Status::error("%.200s became shorter while it was read", path.c_str());
    done += static_cast<size_t>(count);
  }
  return Status::ok();
}

Status write_all(int file, const std::string& path, const void* data, size_t size) {
  for (size_t done = 0; done < size;) {
    const ssize_t count = write(file, static_cast<const char*>(data) + done, size - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return cannot("written", path);
    done += static_cast<size_t>(count);
  }
  return Status::ok();
}

}  // namespace

Status read_file(const std::string& path, uint64_t max_bytes, std::vector<uint8_t>* content) {
  struct stat info {};
  // Not blocking, because a pipe without a writer would be waited for.
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) return cannot("read", path);
  Status status = Status::ok();
  if (fstat(file, &info) != 0) {
    status = cannot("read", path);
  } else if (!S_ISREG(info.st_mode)) {
    status = Status::error("%.200s is not a file", path.c_str());
  } else if (static_cast<uint64_t>(info.st_size) > max_bytes) {
    status = Status::error("%.200s has %lld bytes, expected at most %llu", path.c_str(),
                           static_cast<long long>(info.st_size), static_cast<unsigned long long>(max_bytes));
  } else {
    content->resize(static_cast<size_t>(info.st_size));
    status = read_all(file, path, content);
  }
  close(file);
  return status;
}

Status write_file(const std::string& path, const void* data, size_t size) {
  const std::string unfinished = path + ".unfinished-" + std::to_string(getpid());
  unlink(unfinished.c_str());  // of a process that had our number and was killed: in containers numbers soon repeat
  const int file = open(unfinished.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (file < 0) return cannot("written", path);
  Status status = write_all(file, path, data, size);
  if (close(file) != 0 && status.is_ok()) status = cannot("written", path);
  if (status.is_ok()) return publish_file(unfinished, path);
  unlink(unfinished.c_str());
  return status;
}

Status publish_file(const std::string& unfinished, const std::string& path) {
  if (std::rename(unfinished.c_str(), path.c_str()) == 0) return Status::ok();
  const Status status = cannot("written", path);
  unlink(unfinished.c_str());
  return status;
}

Status check_writable(const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) == 0 && !S_ISREG(info.st_mode)) {  // a device would be replaced
    return Status::error("%.250s cannot be written: it is there, and not a file", path.c_str());
  }
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  return access(folder.c_str(), W_OK | X_OK) == 0 ? Status::ok() : cannot("written", path);
}

bool is_file(const std::string& path) {
  struct stat info {};
  return stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode);
}

std::string program_folder() {
  char path[PATH_MAX] = {};
  const ssize_t length = readlink("/proc/self/exe", path, sizeof(path) - 1);
  const std::string program(path, length > 0 ? static_cast<size_t>(length) : 0);
  const size_t slash = program.rfind('/');
  return slash == std::string::npos ? "." : program.substr(0, slash);
}

std::string find_library(const std::vector<std::string>& folders, const std::string& name) {
  for (const std::string& folder : folders) {
    std::string path = program_folder() + "/" + folder + "/" + name;
    if (is_file(path)) return path;
  }
  return name;
}

}  // namespace mote::runner

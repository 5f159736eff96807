// Files are written whole or not at all.
#include "file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <string>

namespace mote::runner {
namespace {

namespace fs = std::filesystem;

class File : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(fs::create_directory(folder_)); }
  void TearDown() override { fs::remove_all(folder_); }

  Status write(const std::string& name, const std::string& text) const {
    return write_file(folder_ / name, text.data(), text.size());
  }
  std::string content(const std::string& name) const {
    std::vector<uint8_t> bytes;
    const Status status = read_file(folder_ / name, 100, &bytes);
    return status.is_ok() ? std::string(bytes.begin(), bytes.end()) : status.message();
  }
  size_t num_entries() const {
    return static_cast<size_t>(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()));
  }

  const fs::path folder_ = fs::temp_directory_path() / ("mote-file-test-" + std::to_string(getpid()));
};

TEST_F(File, ReplacesWhatWasThere) {
  ASSERT_TRUE(write("a", "one").is_ok());
  ASSERT_TRUE(write("a", "").is_ok());
  EXPECT_EQ(content("a"), "");
  ASSERT_TRUE(write("a", "three").is_ok());
  EXPECT_EQ(content("a"), "three");
  EXPECT_EQ(num_entries(), 1u);
}

TEST_F(File, WhatAKilledProcessOfOurNumberLeftIsReplaced) {
  const std::string left = "a.unfinished-" + std::to_string(getpid());
  ASSERT_TRUE(write(left, "half").is_ok());
  ASSERT_TRUE(write("a", "whole").is_ok());
  EXPECT_EQ(content("a"), "whole");
  EXPECT_EQ(num_entries(), 1u);
}

TEST_F(File, NothingStaysOfWhatCannotBeWritten) {
  fs::create_directory(folder_ / "a");
  EXPECT_NE(std::string(write("a", "text").message()).find("Is a directory"), std::string::npos);
  EXPECT_EQ(num_entries(), 1u);
  EXPECT_NE(std::string(write("none/a", "text").message()).find("No such file"), std::string::npos);
}

TEST_F(File, ReadsOnlyFilesOfTheirSize) {
  ASSERT_TRUE(write("a", std::string(101, 'x')).is_ok());
  EXPECT_NE(content("a").find("has 101 bytes, expected at most 100"), std::string::npos);
  EXPECT_NE(content(".").find("is not a file"), std::string::npos);
  ASSERT_EQ(mkfifo((folder_ / "pipe").c_str(), 0600), 0);
  EXPECT_NE(content("pipe").find("is not a file"), std::string::npos);
}

}  // namespace
}  // namespace mote::runner

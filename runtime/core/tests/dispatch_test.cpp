#include "dispatch.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "tensors.h"

namespace mote::test {
namespace {

TEST(Dispatch, ScalarIsAlwaysThere) {
  ASSERT_FALSE(supported_isas().empty());
  EXPECT_STREQ(supported_isas().front().name, "scalar");
}

TEST(Dispatch, TakesTheLastSupportedEntryUnlessAsked) {
  EXPECT_STREQ(choose_isa(nullptr).name, supported_isas().back().name);
  for (const IsaEntry& isa : supported_isas()) EXPECT_STREQ(choose_isa(isa.name).name, isa.name);
}

TEST(Dispatch, RefusesNamesItCannotRun) {
  for (const char* name : {"", "sse2", "AVX2", "avx2 ", "SCALAR"}) {
    EXPECT_STREQ(choose_isa(name).name, supported_isas().back().name) << name;
  }
}

TEST(Dispatch, ChoiceOfTheProcessFollowsTheEnvironment) {
  EXPECT_STREQ(isa_name(), choose_isa(std::getenv("MOTE_ISA")).name);
}

}  // namespace
}  // namespace mote::test

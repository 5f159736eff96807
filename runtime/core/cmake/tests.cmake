include(GoogleTest)

# Registers every test of an executable with ctest under a prefix. Tests are listed when ctest runs, not when the
# executable is linked: a sanitizer may need what ctest was started with (setarch -R, see the Makefile) to start at all.
# The target `mote_tests` is all that ctest needs, without the plugins and programs that the tests do not load.
function(mote_discover_tests target prefix)
  if(NOT TARGET mote_tests)
    add_custom_target(mote_tests)
  endif()
  add_dependencies(mote_tests ${target})
  gtest_discover_tests(${target} TEST_PREFIX ${prefix} DISCOVERY_MODE PRE_TEST DISCOVERY_TIMEOUT 60)
endfunction()

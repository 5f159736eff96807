include(GoogleTest)

# Registers every test of an executable with ctest under a prefix. Tests are listed when ctest runs, not when the
# executable is linked: a sanitizer may need what ctest was started with (setarch -R, see the Makefile) to start at all.
# The target `mote_tests` is all that ctest needs, without the plugins and programs that the tests do not load.
# Compiling tests takes longer than running them, as it is the core and the reference that compute; and a sanitizer sees the more, the
# less is optimized.
function(mote_discover_tests target prefix)
  get_target_property(tests ${target} SOURCES)
  list(FILTER tests INCLUDE REGEX "_test\\.cpp$")
  set(level -O1)
  if(MOTE_SANITIZE)
    set(level -O0)
  endif()
  set_property(SOURCE ${tests} APPEND PROPERTY COMPILE_OPTIONS $<$<NOT:$<CONFIG:Debug>>:${level}>)
  if(NOT TARGET mote_tests)
    add_custom_target(mote_tests)
  endif()
  add_dependencies(mote_tests ${target})
  gtest_discover_tests(${target} TEST_PREFIX ${prefix} DISCOVERY_MODE PRE_TEST DISCOVERY_TIMEOUT 60)
endfunction()

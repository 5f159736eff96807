# A shared library that a runtime loads, of the sources that follow its name: self-contained, nothing visible but what
# exports.map in its folder names.
function(mote_add_plugin name)
  add_library(${name} MODULE ${ARGN})
  target_link_libraries(${name} PRIVATE mote_core)
  set_target_properties(${name} PROPERTIES
    CXX_EXTENSIONS OFF
    CXX_VISIBILITY_PRESET hidden
    VISIBILITY_INLINES_HIDDEN ON
    LINK_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/exports.map)
  target_compile_options(${name} PRIVATE -fno-exceptions -fno-rtti -Wall -Wextra -Wshadow)
  target_link_options(${name} PRIVATE
    -static-libgcc
    -static-libstdc++
    "LINKER:--version-script=${CMAKE_CURRENT_SOURCE_DIR}/exports.map"
    LINKER:--gc-sections
    # Newer Android devices have pages of 16 KB.
    LINKER:-z,max-page-size=16384
    # The runtimes keep pointers into the plugin for longer than they keep the library open.
    LINKER:-z,nodelete)
  if(NOT MOTE_SANITIZE)  # whose functions are in the executable
    target_link_options(${name} PRIVATE LINKER:--no-undefined)
  endif()
  install(TARGETS ${name} LIBRARY DESTINATION lib COMPONENT plugins)
endfunction()

# Fails if the object file of an ISA exports anything but its table, or if there is no such file. A weak symbol there (an inline function, a template
# instantiation with external linkage) could replace the same function of portable code at link time, and then crash on
# a machine without the ISA.
#   cmake -DNM=nm -DOBJECTS=a.o;b.o -P check_symbols.cmake
set(num_checked 0)
foreach(object IN LISTS OBJECTS)
  if(NOT object MATCHES "/kernels/")
    continue()
  endif()
  execute_process(COMMAND ${NM} --extern-only --defined-only ${object} OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX REPLACE "\n$" "" symbols "${symbols}")
  string(REPLACE "\n" ";" symbols "${symbols}")
  foreach(symbol IN LISTS symbols)
    if(NOT symbol MATCHES " [DR] _ZN4mote[0-9]+[a-z0-9_]+_kernelsE$")
      message(SEND_ERROR "${object} exports \"${symbol}\"")
    endif()
  endforeach()
  message(STATUS "${object}: ${symbols}")
  math(EXPR num_checked "${num_checked} + 1")
endforeach()
if(num_checked EQUAL 0)
  message(FATAL_ERROR "no object file of an ISA among \"${OBJECTS}\": nothing was checked")
endif()

# Fails if the object file of an ISA exports anything but its table. A weak symbol there (an inline function, a template
# instantiation with external linkage) could replace the same function of portable code at link time, and then crash on
# a machine without the ISA.
#   cmake -DNM=nm -DOBJECTS=a.o;b.o -P check_symbols.cmake
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
endforeach()

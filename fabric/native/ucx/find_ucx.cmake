# FABRIC_UCX_ROOT: the folder of the package `libucx` (include/, lib/) of the interpreter that builds; empty without it.
# -DFABRIC_UCX=OFF leaves the link out; -DFABRIC_UCX_ROOT=… takes another installation.
option(FABRIC_UCX "build the ucx link where its library is found" ON)
set(FABRIC_UCX_ROOT "" CACHE PATH "UCX installation with include/ and lib/")
if(NOT FABRIC_UCX)
  set(FABRIC_UCX_ROOT "")
elseif(NOT FABRIC_UCX_ROOT)
  if(SKBUILD)
    find_package(Python 3.11 REQUIRED COMPONENTS Interpreter Development.Module)
  else()
    find_package(Python 3.11 COMPONENTS Interpreter)
  endif()
  if(Python_EXECUTABLE)
    execute_process(
      COMMAND ${Python_EXECUTABLE} -c "from importlib.util import find_spec
spec = find_spec('libucx')
print(spec.submodule_search_locations[0] if spec else '', end='')"
      OUTPUT_VARIABLE FABRIC_UCX_FOUND ERROR_QUIET)
    if(EXISTS "${FABRIC_UCX_FOUND}/include/ucp/api/ucp.h")
      set(FABRIC_UCX_ROOT "${FABRIC_UCX_FOUND}")
    endif()
  endif()
endif()
if(FABRIC_UCX_ROOT)
  message(STATUS "ucx link: ${FABRIC_UCX_ROOT}")
else()
  message(STATUS "ucx link: not built (no package libucx; pip install libucx-cu12)")
endif()
file(GLOB FABRIC_UCX_SOURCES CONFIGURE_DEPENDS ucx/*.cpp)
set(FABRIC_UCX_SHARED links/frame.cpp core/crc32c.cpp core/memory.cpp)  # what the link needs of the core

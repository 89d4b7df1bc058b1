# find_package(gnnquant CONFIG REQUIRED) gives the target gnnquant::runtime: the headers of gnnquant's C++ runtime, and
# the TVM runtime of the installed wheels, apache-tvm and apache-tvm-ffi.
#
# GNNQUANT_PYTHON   the interpreter that has these wheels (default: the Python3 that CMake finds)

if(NOT GNNQUANT_PYTHON)
  find_package(Python3 COMPONENTS Interpreter REQUIRED)
  set(GNNQUANT_PYTHON "${Python3_EXECUTABLE}")
endif()

foreach(package tvm tvm_ffi)
  # looks for the package without importing it
  execute_process(
    COMMAND "${GNNQUANT_PYTHON}" -c
            "import importlib.util as u; print(u.find_spec('${package}').submodule_search_locations[0], end='')"
    OUTPUT_VARIABLE gnnquant_${package}
    RESULT_VARIABLE gnnquant_failed
    ERROR_QUIET)
  if(gnnquant_failed)
    set(gnnquant_FOUND FALSE)
    set(gnnquant_NOT_FOUND_MESSAGE
        "${GNNQUANT_PYTHON} has no package '${package}': run pip install apache-tvm there, or set GNNQUANT_PYTHON")
    return()
  endif()
endforeach()

if(NOT TARGET gnnquant::runtime)
  find_package(Threads REQUIRED)
  add_library(gnnquant::tvm_ffi SHARED IMPORTED)
  set_target_properties(gnnquant::tvm_ffi PROPERTIES
    IMPORTED_LOCATION "${gnnquant_tvm_ffi}/lib/libtvm_ffi.so"
    INTERFACE_INCLUDE_DIRECTORIES "${gnnquant_tvm_ffi}/include")
  add_library(gnnquant::tvm_runtime SHARED IMPORTED)
  set_target_properties(gnnquant::tvm_runtime PROPERTIES
    IMPORTED_LOCATION "${gnnquant_tvm}/lib/libtvm_runtime.so"
    INTERFACE_INCLUDE_DIRECTORIES "${gnnquant_tvm}/include"
    INTERFACE_LINK_LIBRARIES gnnquant::tvm_ffi)
  add_library(gnnquant::runtime INTERFACE IMPORTED)
  set_target_properties(gnnquant::runtime PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${CMAKE_CURRENT_LIST_DIR}/../include"
    INTERFACE_COMPILE_FEATURES cxx_std_17
    INTERFACE_LINK_LIBRARIES "gnnquant::tvm_runtime;gnnquant::tvm_ffi;Threads::Threads;${CMAKE_DL_LIBS}")
endif()

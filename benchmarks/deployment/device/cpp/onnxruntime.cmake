# SPDX-License-Identifier: Apache-2.0
cmake_minimum_required(VERSION 3.16)
project(predict LANGUAGES CXX)

set(ONNXRUNTIME_ROOT "" CACHE PATH "an unpacked release of ONNX Runtime; else the installed one, else that of Python")

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release)
endif()

add_executable(predict main.cpp engine.cpp preprocess.cpp)
target_compile_features(predict PRIVATE cxx_std_17)
if(NOT MSVC)
  target_compile_options(predict PRIVATE -Wall -Wextra -ffp-contract=off)  # round each operation, as numpy does
endif()

if(NOT ONNXRUNTIME_ROOT)
  find_package(onnxruntime CONFIG QUIET)
endif()
if(TARGET onnxruntime::onnxruntime)
  target_link_libraries(predict PRIVATE onnxruntime::onnxruntime)
else()
  if(ONNXRUNTIME_ROOT)
    set(folder ${ONNXRUNTIME_ROOT}/lib)
  else()
    find_package(Python3 REQUIRED COMPONENTS Interpreter)
    set(where "import importlib.util as u; print(u.find_spec('onnxruntime').submodule_search_locations[0])")
    execute_process(COMMAND ${Python3_EXECUTABLE} -c "${where}"
                    OUTPUT_VARIABLE package OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    set(folder ${package}/capi)
  endif()
  file(GLOB libraries ${folder}/libonnxruntime.so* ${folder}/libonnxruntime*.dylib ${folder}/onnxruntime.lib)
  if(NOT libraries)
    message(FATAL_ERROR "no ONNX Runtime in ${folder}: pip install onnxruntime, or give -DONNXRUNTIME_ROOT=FOLDER")
  endif()
  list(GET libraries 0 library)
  message(STATUS "ONNX Runtime: ${library}")
  target_link_libraries(predict PRIVATE ${library})
  # Python's package has the library without its headers, and without the link by which a program finds it.
  find_path(headers onnxruntime_c_api.h NO_DEFAULT_PATH NO_CMAKE_FIND_ROOT_PATH
            HINTS ${ONNXRUNTIME_ROOT}/include ${CMAKE_CURRENT_SOURCE_DIR}/reduced
            PATH_SUFFIXES onnxruntime onnxruntime/core/session)
  target_include_directories(predict PRIVATE ${headers})
  if(NOT ONNXRUNTIME_ROOT AND UNIX AND NOT APPLE)
    file(CREATE_LINK ${library} ${CMAKE_BINARY_DIR}/libonnxruntime.so.1 SYMBOLIC)
    set_target_properties(predict PROPERTIES BUILD_RPATH ${CMAKE_BINARY_DIR})
  endif()
endif()

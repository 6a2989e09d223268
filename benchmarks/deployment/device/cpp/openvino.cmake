# SPDX-License-Identifier: Apache-2.0
cmake_minimum_required(VERSION 3.16)
project(predict LANGUAGES CXX)

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release)
endif()

add_executable(predict main.cpp engine.cpp preprocess.cpp)
target_compile_features(predict PRIVATE cxx_std_17)
if(NOT MSVC)
  target_compile_options(predict PRIVATE -Wall -Wextra -ffp-contract=off)  # round each operation, as numpy does
endif()

# The installed library, or that of Python's package.
find_package(OpenVINO QUIET COMPONENTS Runtime)
if(NOT OpenVINO_FOUND)
  find_package(Python3 REQUIRED COMPONENTS Interpreter)
  set(where "import importlib.util as u; print(u.find_spec('openvino').submodule_search_locations[0])")
  execute_process(COMMAND ${Python3_EXECUTABLE} -c "${where}"
                  OUTPUT_VARIABLE package OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  find_package(OpenVINO REQUIRED COMPONENTS Runtime PATHS ${package}/cmake NO_DEFAULT_PATH)
endif()
target_link_libraries(predict PRIVATE openvino::runtime)

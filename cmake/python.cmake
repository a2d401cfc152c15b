# The two modules of the Python package. Both link libsparsecore, which lies beside them, so that a forced
# instruction set is read once. setup.py passes the include and library folders of Python, pybind11 and torch.

# _C: pybind11 + numpy, no torch.
add_library(_C MODULE csrc/python/module.cpp)
target_include_directories(_C SYSTEM PRIVATE ${SPARSECORE_PYTHON_INCLUDE} ${SPARSECORE_PYBIND11_INCLUDE})
target_compile_definitions(
  _C PRIVATE SPARSECORE_VERSION="${SPARSECORE_VERSION}"
             SPARSECORE_COMPILER="${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}"
             SPARSECORE_CUDA=0)
target_compile_options(_C PRIVATE -fvisibility=hidden)
set_target_properties(_C PROPERTIES SUFFIX ${SPARSECORE_PYTHON_SUFFIX})

# _ops: LibTorch's stable ABI of torch 2.10 and later, no Python.
file(GLOB SPARSECORE_TORCH_SOURCES CONFIGURE_DEPENDS csrc/torch/*.cpp)
add_library(_ops MODULE ${SPARSECORE_TORCH_SOURCES})
target_include_directories(_ops PRIVATE csrc)
target_include_directories(_ops SYSTEM PRIVATE ${SPARSECORE_TORCH_INCLUDE})
target_compile_definitions(_ops PRIVATE TORCH_STABLE_ONLY TORCH_TARGET_VERSION=0x020a000000000000)
target_link_directories(_ops PRIVATE ${SPARSECORE_TORCH_LIBRARY_DIR})
target_link_libraries(_ops PRIVATE torch_cpu)

foreach(module _C _ops)
  target_link_libraries(${module} PRIVATE sparsecore)
  set_target_properties(${module} PROPERTIES PREFIX "")
endforeach()
set_target_properties(_C _ops sparsecore PROPERTIES BUILD_RPATH "$ORIGIN" INSTALL_RPATH "$ORIGIN"
                                                    BUILD_WITH_INSTALL_RPATH ON)
install(TARGETS _C _ops sparsecore LIBRARY DESTINATION .)

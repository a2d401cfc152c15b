# The two modules of the Python package. Both link libsparsecore, which lies beside them, so that a forced
# instruction set is read once. setup.py passes the include and library folders of Python, pybind11 and torch.

# _C: pybind11 + numpy, no torch.
add_library(_C MODULE csrc/python/module.cpp)
target_include_directories(_C SYSTEM PRIVATE ${SPARSECORE_PYTHON_INCLUDE} ${SPARSECORE_PYBIND11_INCLUDE})
target_compile_definitions(
  _C PRIVATE SPARSECORE_VERSION="${SPARSECORE_VERSION}"
             SPARSECORE_COMPILER="${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}"
             SPARSECORE_CUDA=$<BOOL:${SPARSECORE_CUDA_TORCH}>)
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

# The CUDA back end: kernels, and the operations on CUDA tensors, which become a part of _ops beside a torch with CUDA.
# Beside any other torch both are compiled, as a check, and linked into nothing.
if(SPARSECORE_CUDA)
  enable_language(CUDA)
  file(GLOB SPARSECORE_CUDA_SOURCES CONFIGURE_DEPENDS csrc/cuda/*.cu)
  add_library(sparsecore_cuda OBJECT ${SPARSECORE_CUDA_SOURCES})
  set_target_properties(sparsecore_cuda PROPERTIES CUDA_STANDARD 20 CUDA_ARCHITECTURES "80-real;90a-real;90-virtual")
  target_include_directories(sparsecore_cuda PRIVATE csrc csrc/include)

  file(GLOB SPARSECORE_TORCH_CUDA_SOURCES CONFIGURE_DEPENDS csrc/torch/cuda/*.cpp)
  add_library(sparsecore_torch_cuda OBJECT ${SPARSECORE_TORCH_CUDA_SOURCES})
  target_include_directories(sparsecore_torch_cuda PRIVATE csrc csrc/include)
  target_include_directories(sparsecore_torch_cuda SYSTEM PRIVATE ${SPARSECORE_TORCH_INCLUDE})
  target_compile_definitions(sparsecore_torch_cuda PRIVATE TORCH_STABLE_ONLY TORCH_TARGET_VERSION=0x020a000000000000
                                                           USE_CUDA)
  if(SPARSECORE_CUDA_TORCH)
    find_package(CUDAToolkit REQUIRED)
    target_link_libraries(_ops PRIVATE sparsecore_cuda sparsecore_torch_cuda torch_cuda CUDA::cudart_static)
  endif()
endif()

foreach(module _C _ops)
  target_link_libraries(${module} PRIVATE sparsecore)
  set_target_properties(${module} PROPERTIES PREFIX "")
endforeach()
set_target_properties(_C _ops sparsecore PROPERTIES BUILD_RPATH "$ORIGIN" INSTALL_RPATH "$ORIGIN"
                                                    BUILD_WITH_INSTALL_RPATH ON)
install(TARGETS _C _ops sparsecore LIBRARY DESTINATION .)

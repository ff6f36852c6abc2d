# The kernels, apart from their Python bindings: one static library that the extension module and the sanitizer
# driver link. Each `<family>/kernels.cpp` is compiled once per instruction set into a namespace of that name;
# `<family>/dispatch.cpp` picks one of them at run time (see cpu.h).
set(CSRC ${CMAKE_CURRENT_LIST_DIR})
set(ROWWISE_FLAGS -O3 -ffp-contract=off -fno-math-errno -fno-trapping-math -Wall -Wextra -Wno-psabi
    -Wno-unknown-pragmas)

add_library(rowwise_kernels STATIC ${CSRC}/cpu.cpp)
target_include_directories(rowwise_kernels PUBLIC ${CSRC})
target_compile_options(rowwise_kernels PRIVATE ${ROWWISE_FLAGS})
if(OpenMP_CXX_FOUND)
  target_link_libraries(rowwise_kernels PUBLIC OpenMP::OpenMP_CXX)
endif()

set(ROWWISE_ISAS baseline)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  list(APPEND ROWWISE_ISAS avx2 avx512)
  target_compile_definitions(rowwise_kernels PRIVATE ROWWISE_X86=1)
endif()
set(ROWWISE_FLAGS_baseline "")
set(ROWWISE_FLAGS_avx2 -march=x86-64-v3)
set(ROWWISE_FLAGS_avx512 -march=x86-64-v4 -mprefer-vector-width=512)

# rowwise_family(embedding): csrc/embedding/dispatch.cpp once, csrc/embedding/kernels.cpp once per instruction set.
function(rowwise_family family)
  target_sources(rowwise_kernels PRIVATE ${CSRC}/${family}/dispatch.cpp)
  foreach(isa IN LISTS ROWWISE_ISAS)
    add_library(rowwise_${family}_${isa} OBJECT ${CSRC}/${family}/kernels.cpp)
    target_include_directories(rowwise_${family}_${isa} PRIVATE ${CSRC})
    target_compile_options(rowwise_${family}_${isa} PRIVATE ${ROWWISE_FLAGS} ${ROWWISE_FLAGS_${isa}})
    target_compile_definitions(rowwise_${family}_${isa} PRIVATE ROWWISE_ISA=${isa})
    if(OpenMP_CXX_FOUND)
      target_link_libraries(rowwise_${family}_${isa} PRIVATE OpenMP::OpenMP_CXX)
    endif()
    target_sources(rowwise_kernels PRIVATE $<TARGET_OBJECTS:rowwise_${family}_${isa}>)
  endforeach()
endfunction()

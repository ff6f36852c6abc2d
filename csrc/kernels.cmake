# The kernels, apart from their Python bindings: one static library that the extension module and the sanitizer
# driver link. Each `<family>/kernels.cpp` is compiled once per instruction set into a namespace of that name;
# `<family>/dispatch.cpp` picks one of them at run time (see cpu.h).

# The kernels are written with the vector extensions of GCC and Clang. Under another compiler the build stops here,
# and the package installs without kernels.
include(CheckCXXSourceCompiles)
check_cxx_source_compiles("
  typedef float Lanes __attribute__((vector_size(16)));
  typedef int Ints __attribute__((vector_size(16)));
  int main() { Lanes x = Lanes{} + 1.0f; return __builtin_convertvector(x, Ints)[0] - 1; }
" ROWWISE_VECTOR_EXTENSIONS)
if(NOT ROWWISE_VECTOR_EXTENSIONS)
  message(FATAL_ERROR "The kernels need the vector extensions of GCC 9 or Clang 12; ${CMAKE_CXX_COMPILER_ID} "
                      "${CMAKE_CXX_COMPILER_VERSION} has none. The package works without them.")
endif()

set(CSRC ${CMAKE_CURRENT_LIST_DIR})
set(ROWWISE_FLAGS -O3 -ffp-contract=off -fno-math-errno -fno-trapping-math -Wall -Wextra -Wno-unknown-pragmas)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  list(APPEND ROWWISE_FLAGS -Wno-psabi -Wno-maybe-uninitialized)  # the latter: its own headers of intrinsics trip over it
endif()
set(ROWWISE_BINDINGS)
if(ROWWISE_SANITIZE)
  set(ROWWISE_SANITIZERS -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
  list(APPEND ROWWISE_FLAGS ${ROWWISE_SANITIZERS})
endif()

# The instruction sets: the compiler's default, and beyond it on x86 the levels v3 and v4 of its psABI.
set(ROWWISE_ISAS baseline)
set(ROWWISE_FLAGS_baseline "")
set(ROWWISE_FLAGS_avx2 -march=x86-64-v3)
set(ROWWISE_FLAGS_avx512 -march=x86-64-v4 -mprefer-vector-width=512)
check_cxx_source_compiles("
  #if !defined(__x86_64__)
  #error not x86-64
  #endif
  int main() { return 0; }
" ROWWISE_TARGET_X86)
if(ROWWISE_TARGET_X86)
  set(CMAKE_REQUIRED_FLAGS "-march=x86-64-v4 -mprefer-vector-width=512")
  check_cxx_source_compiles("int main() { return 0; }" ROWWISE_X86_LEVELS)
  unset(CMAKE_REQUIRED_FLAGS)
endif()

if(ROWWISE_SANITIZE)
  set(ROWWISE_SCRATCH ${CSRC}/sanitize/scratch.cpp)
else()
  set(ROWWISE_SCRATCH ${CSRC}/scratch.cpp)
endif()
add_library(rowwise_kernels STATIC ${CSRC}/cpu.cpp ${CSRC}/memory.cpp ${CSRC}/pieces.cpp ${ROWWISE_SCRATCH})
target_include_directories(rowwise_kernels PUBLIC ${CSRC})
target_compile_options(rowwise_kernels PRIVATE ${ROWWISE_FLAGS})
if(ROWWISE_X86_LEVELS)
  list(APPEND ROWWISE_ISAS avx2 avx512)
  target_compile_definitions(rowwise_kernels PUBLIC ROWWISE_X86=1)
endif()
if(OpenMP_CXX_FOUND)
  target_link_libraries(rowwise_kernels PUBLIC OpenMP::OpenMP_CXX)
endif()

# rowwise_family(embedding): csrc/embedding/dispatch.cpp once, csrc/embedding/kernels.cpp once per instruction set,
# csrc/embedding/bindings.cpp into the extension module.
macro(rowwise_family family)
  list(APPEND ROWWISE_BINDINGS ${CSRC}/${family}/bindings.cpp)
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
endmacro()


rowwise_family(embedding)
rowwise_family(hash_collision)
rowwise_family(interaction)
rowwise_family(jagged)
rowwise_family(linear)
rowwise_family(metrics)
rowwise_family(quant)

# Nothing to gain from an instruction set in these: no arithmetic, or none that there are vector instructions for.
foreach(family IN ITEMS hashing permute routing signals)
  target_sources(rowwise_kernels PRIVATE ${CSRC}/${family}/${family}.cpp)
  list(APPEND ROWWISE_BINDINGS ${CSRC}/${family}/bindings.cpp)
endforeach()
target_sources(rowwise_kernels PRIVATE ${CSRC}/collision/collision.cpp ${CSRC}/routing/blocks.cpp)
list(APPEND ROWWISE_BINDINGS ${CSRC}/collision/bindings.cpp)

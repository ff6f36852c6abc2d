# The sanitizer driver: csrc/sanitize/*.cpp, one file per family, with the kernels, without Python.
file(GLOB ROWWISE_DRIVER CONFIGURE_DEPENDS ${CSRC}/sanitize/*.cpp)
list(REMOVE_ITEM ROWWISE_DRIVER ${CSRC}/sanitize/scratch.cpp)  # part of the kernels
add_executable(rowwise_sanitize ${ROWWISE_DRIVER})
target_link_libraries(rowwise_sanitize PRIVATE rowwise_kernels)
target_compile_options(rowwise_sanitize PRIVATE ${ROWWISE_SANITIZERS} -Wall -Wextra)
target_link_options(rowwise_sanitize PRIVATE -fsanitize=address,undefined)

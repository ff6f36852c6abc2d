// Which instruction set the kernels use on this processor.
#pragma once

namespace rowwise {

enum class Isa { baseline = 0, avx2 = 1, avx512 = 2 };

// The best set this processor and operating system support, found once. The environment variable ROWWISE_ISA
// (baseline, avx2, avx512) lowers it, for tests; a set that the processor lacks is never chosen. Throws
// std::invalid_argument for another value.
Isa isa();

const char* isa_name();

}  // namespace rowwise

// Compiled once per instruction set, into the namespace of its name. Everything included here lives in that namespace
// and no standard container is used: a function shared between the copies would run whichever instructions the linker
// kept.
#include "embedding/embedding.h"

#include <new>

#include "embedding/backward.h"
#include "embedding/choose.h"
#include "embedding/forward.h"
#include "embedding/split_update.h"
#include "embedding/weights_backward.h"

namespace rowwise {
namespace ROWWISE_ISA {

const EmbeddingKernels kEmbedding = {&forward,    &choose_rows, &backward,   &weights_backward,
                                     &plan_split, &run_split,   &offsets_fit};

}  // namespace ROWWISE_ISA
}  // namespace rowwise

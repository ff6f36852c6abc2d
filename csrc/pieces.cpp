#include "pieces.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace rowwise {

int all_threads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

void run_pieces(int threads, int64_t count, void (*piece)(const void*, int64_t, int), const void* body) {
#ifdef _OPENMP
  if (threads > 1 && count > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t i = 0; i < count; ++i) piece(body, i, omp_get_thread_num());
    return;
  }
#else
  (void)threads;
#endif
  for (int64_t i = 0; i < count; ++i) piece(body, i, 0);
}

}  // namespace rowwise

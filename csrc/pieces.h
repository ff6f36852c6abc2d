// Work shared among threads, in pieces: whoever has done one takes the next. A piece should be long enough that taking it
// costs nothing and short enough that nobody waits long for the last one, about 50 to 200 us. Nothing may depend on which
// thread does which piece, but for memory that a thread uses for one piece after another.
#pragma once

#include <cstdint>

namespace rowwise {

constexpr int64_t kPieceBytes = int64_t{1} << 20;  // read or written
constexpr int64_t kSmallWork = int64_t{1} << 17;   // less than this in all takes no longer than to wake a thread

// As many threads as PyTorch uses.
int all_threads();

// See in_pieces.
void run_pieces(int threads, int64_t count, void (*piece)(const void* body, int64_t i, int thread), const void* body);

// Calls body(i, thread) for each i of [0, count), on up to `threads` threads, numbered from 0. Pass the threads there are,
// or one: OpenMP ends those that a smaller team has no use for, and has to start them anew for the next.
template <class Body>
inline __attribute__((always_inline)) void in_pieces(int threads, int64_t count, const Body& body) {
  run_pieces(
      threads, count,
      [](const void* b, int64_t i, int thread) { (*static_cast<const Body*>(b))(i, thread); }, &body);
}

// Calls body(begin, end, thread) for ranges that make up [0, count), of items that move about `bytes` each.
template <class Body>
inline __attribute__((always_inline)) void in_ranges(int threads, int64_t count, int64_t bytes, const Body& body) {
  const int64_t size = bytes < 1 ? kPieceBytes : bytes < kPieceBytes ? kPieceBytes / bytes : 1;
  in_pieces(threads, count / size + (count % size != 0), [&](int64_t i, int thread) {
    body(i * size, count - i * size < size ? count : i * size + size, thread);
  });
}

}  // namespace rowwise

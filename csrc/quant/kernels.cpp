// Compiled once per instruction set, into the namespace of its name; see embedding/kernels.cpp.
#include "quant/quant.h"

#include <new>

#include "embedding/forward.h"
#include "quant/quantize.h"
#include "quant/rows.h"

namespace rowwise {
namespace ROWWISE_ISA {

static Failure quant_forward(const Batch& batch, const RowLayout* layouts, int64_t* out_of_range) {
  const Ranges ranges(batch, [&](const Slot& slot) { return layouts[slot.table].row_bytes + batch.tables[slot.table].dim; });
  const int64_t room = ranges.most_positions() + kMostAhead;
  Scratch memory(static_cast<size_t>(ranges.threads() * room) * sizeof(int64_t));
  int64_t* at = reinterpret_cast<int64_t*>(memory.data());
  return ranges.run(out_of_range, [&](const Range& range, int thread, Outcome& outcome) {
    check_bags(batch, range, outcome);
    const RowLayout& layout = layouts[batch.slots[range.slot].table];
    const Chosen chosen = choose(batch, range, layout.row_bytes, at + thread * room, outcome);
    with_reader(layout.format, [&](auto reader) { pool<typename decltype(reader)::type>(batch, range, chosen); });
  });
}

const QuantKernels kQuant = {&quant_forward, &quantize, &dequantize};

}  // namespace ROWWISE_ISA
}  // namespace rowwise

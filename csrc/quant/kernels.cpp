// Compiled once per instruction set, into the namespace of its name; see embedding/kernels.cpp.
#include "quant/quant.h"

#include <new>

#include "embedding/forward.h"
#include "quant/quantize.h"
#include "quant/rows.h"

namespace rowwise {
namespace ROWWISE_ISA {

// See PlainTables, of which this has the methods.
struct CodedTables {
  const Batch& batch;
  const RowLayout* layouts;

  int64_t row_bytes(int64_t t) const { return layouts[t].row_bytes; }
  int64_t work(int64_t t) const { return layouts[t].row_bytes + batch.tables[t].dim; }
  void pool_range(const Range& range, const Chosen& chosen) const {
    with_reader(layouts[batch.slots[range.slot].table].format,
                [&](auto reader) { pool<typename decltype(reader)::type>(batch, range, chosen); });
  }
};

static Failure quant_forward(const Batch& batch, const RowLayout* layouts, int64_t* out_of_range) {
  return look_up(batch, out_of_range, CodedTables{batch, layouts});
}

const QuantKernels kQuant = {&quant_forward, &quantize, &dequantize};

}  // namespace ROWWISE_ISA
}  // namespace rowwise

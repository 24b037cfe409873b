#include "traffic.h"

#include "program.h"

namespace obert {
namespace {

template <class T>
size_t bytes(const std::vector<T>& v) {
  return v.size() * sizeof(T);
}

size_t bytes_of(const Product& p) {
  const SparseInt8Storage& i = p.int8;
  const SparseFloatStorage& f = p.real;
  return bytes(i.start) + bytes(i.index) + bytes(i.value) + bytes(i.row_blocks) + bytes(i.order) + bytes(i.whole) +
         bytes(i.tiles.stream) + bytes(f.start) + bytes(f.index) + bytes(f.value) + bytes(f.order);
}

}  // namespace

Traffic traffic_of(const Program& program) {
  Traffic t;
  for (const Step& s : program.steps) {
    if (s.kind != StepKind::kProduct || s.picked) continue;
    t.weights += bytes_of(program.products[s.product]);
    for (const Slice* slice : {&s.x, &s.residual, &s.factor, &s.out, &s.quantized}) {
      if (!slice->used()) continue;
      const bool quantized = program.buffers[slice->buffer].quantized;
      t.activations += static_cast<size_t>(slice->width) * kPanel * (quantized ? 1 : sizeof(float));
    }
  }
  return t;
}

bool panels_apart(const Traffic& traffic, size_t panels, size_t threads) {
  const bool even = panels % threads == 0 || threads % panels == 0;
  return even && traffic.weights <= traffic.activations * panels;
}

}  // namespace obert

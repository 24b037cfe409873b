// What products move, and when threads take panels of their own.
#include "../../src/program/program.h"
#include "../../src/program/traffic.h"
#include "../check.h"

using namespace obert;

namespace {

void check_counts() {
  Program p;
  p.buffers = {{64, true, 0, 0}, {96, false, 0, 0}};
  p.products.resize(2);
  p.products[0].int8.value.resize(100);
  p.products[0].int8.index.resize(25);
  p.products[1].int8.tiles.stream.resize(3);   // lines of 64 bytes
  Step s;
  s.kind = StepKind::kProduct;
  s.product = 0;
  s.x = {0, 0, 64};
  s.out = {1, 0, 32};
  Step other = s;
  other.product = 1;
  other.residual = {1, 32, 64};
  Step norm;
  norm.kind = StepKind::kLayerNorm;
  norm.x = {1, 0, 96};
  p.steps = {s, norm, other};
  const Traffic t = traffic_of(p);
  CHECK(t.weights == 100 + 25 + 3 * 64, "%zu bytes of weights", t.weights);
  const size_t first = 64 * kPanel + 32 * kPanel * 4, second = first + 64 * kPanel * 4;
  CHECK(t.activations == first + second, "%zu bytes of activations", t.activations);
}

void check_choice() {
  const Traffic few{1000, 500}, many{1001, 500};
  CHECK(panels_apart(few, 2, 2) && panels_apart(few, 4, 2) && panels_apart(few, 2, 4), "panels and threads that go up");
  CHECK(!panels_apart(few, 3, 2) && !panels_apart(few, 2, 3), "panels and threads that do not");
  CHECK(!panels_apart(many, 2, 2) && panels_apart(many, 4, 2), "weights against activations");
  CHECK(!panels_apart(few, 1, 2) && panels_apart({500, 500}, 1, 2), "one panel: every thread has all of it");
}

}  // namespace

int main() {
  check_counts();
  check_choice();
  return check::report("traffic");
}

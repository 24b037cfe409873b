// Every kernel body, in the order they need each other. Include after simd_<isa>.h,
// dot_<isa>.h and how rows pass: multiply_rows.h, which dot_run.h belongs to, or multiply_couples.h.
#pragma once
#include "maths.h"
#include "gelu.h"
#include "quantize.h"
#include "multiply_int8.h"
#include "multiply_float.h"
#include "finish.h"
#include "layer_norm.h"
#include "rotary.h"
#include "attention.h"
#include "transpose.h"
#include "relative_scores.h"
#include "rows.h"
#include "tables.h"

#define OBERT_KERNEL_TABLE(isa)                                                                     \
  Kernels {                                                                                         \
    isa, kPacking, multiply_int8, multiply_float, finish_int8, finish_float, layer_norm, rotate,    \
        attention, attention_scratch, relative_scores, relative_scratch, import_float,              \
        import_uint8, export_float, export_uint8, gather_row                                        \
  }

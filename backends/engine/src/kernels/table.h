// The table of one instruction set, from the bodies in this folder. Include last in <isa>.cc.
#pragma once
#include "tables.h"

#define OBERT_KERNEL_TABLE(isa)                                                                      \
  Kernels {                                                                                          \
    isa, multiply_int8, multiply_float, finish_int8, finish_float, layer_norm, attention,            \
        attention_scratch, import_float, import_uint8, export_float, export_uint8                    \
  }

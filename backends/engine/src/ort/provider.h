// The execution provider: what ONNX Runtime asks of it, in its own terms.
#pragma once
#include "abi.h"

namespace obert::ort {

constexpr const char* kProviderName = "ObertExecutionProvider";

EpFactory* create_factory();
void release_factory(EpFactory* factory) noexcept;

}  // namespace obert::ort

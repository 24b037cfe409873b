// What a session left to ONNX Runtime, and why, for people and for tests.
#pragma once
#include <string>

#include "../graph/match.h"

namespace obert::ort {

// Appends one line of JSON to the file: the instruction set, nodes and claimed nodes, the number of
// parts, and {node, op, reason} of each product, softmax and normalisation that stays outside.
// Throws std::runtime_error when the file cannot be written.
void append_report(const std::string& file, const obert::Graph& graph, const Claims& claims, const char* isa);

}  // namespace obert::ort

#include "report.h"

#include <cstdio>
#include <fstream>
#include <set>
#include <stdexcept>

namespace obert::ort {
namespace {

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (unsigned char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += static_cast<char>(c);
    } else if (c < 0x20) {
      char code[8];
      std::snprintf(code, sizeof code, "\\u%04x", c);
      out += code;
    } else {
      out += static_cast<char>(c);
    }
  }
  return out + '"';
}

}  // namespace

void append_report(const std::string& file, const obert::Graph& graph, const Claims& claims, const char* isa) {
  size_t claimed = 0;
  for (const Part& part : claims.parts) claimed += part.size();
  std::string line = "{\"isa\": " + quoted(isa) + ", \"nodes\": " + std::to_string(graph.nodes.size()) +
                     ", \"claimed\": " + std::to_string(claimed) + ", \"parts\": " + std::to_string(claims.parts.size()) +
                     ", \"skips\": [";
  bool first = true;
  std::set<int> said;
  for (const Skip& skip : claims.skips) {
    if (!said.insert(skip.node).second) continue;
    const obert::Node& n = graph.nodes[skip.node];
    std::string output = n.outputs.empty() || n.outputs[0] < 0 ? "" : graph.values[n.outputs[0]].name;
    line += std::string(first ? "" : ", ") + "{\"value\": " + quoted(output) + ", \"op\": " + quoted(n.op) +
            ", \"reason\": " + quoted(skip.reason) + "}";
    first = false;
  }
  line += "]}\n";
  std::ofstream out(file, std::ios::app);
  out << line;
  out.flush();
  if (!out) throw std::runtime_error("option 'report': expected a file that can be written, found '" + file + "'");
}

}  // namespace obert::ort

#include "provider.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <unordered_map>
#include <unordered_set>

#include "../graph/match.h"
#include "../program/lower.h"
#include "report.h"
#include "read_graph.h"

#ifndef OBERT_ENGINE_VERSION
#define OBERT_ENGINE_VERSION "0.0.0"
#endif

namespace obert::ort {
namespace {

// Runs `body`; what it throws becomes a status.
template <class F>
Status* guarded(const F& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const std::bad_alloc&) {
    return api.CreateStatus(kFail, "obert engine: expected enough memory, found too little");
  } catch (const std::exception& e) {
    try {
      return api.CreateStatus(kFail, (std::string("obert engine: ") + e.what()).c_str());
    } catch (...) {
      return api.CreateStatus(kFail, "obert engine: failed");
    }
  } catch (...) {
    return api.CreateStatus(kFail, "obert engine: failed");
  }
}

// Inputs, outputs and threads of one call, as ONNX Runtime hands them over.
class Call final : public Caller {
 public:
  Call(KernelContext* context, const std::vector<int>& places) : context_(context), places_(places) {}

  Tensor input(int index) override {
    const Value* value = nullptr;
    check(api.KernelContext_GetInput(context_, static_cast<size_t>(places_[index]), &value));
    if (!value) throw std::runtime_error("an input is missing");
    TensorView t = view_of(value);
    return {static_cast<Type>(t.type), t.data, t.shape};
  }
  void* output(int index, const std::vector<int64_t>& shape) override {
    Value* value = nullptr;
    check(api.KernelContext_GetOutput(context_, static_cast<size_t>(index), shape.data(), shape.size(), &value));
    void* data = nullptr;
    check(api.GetTensorMutableData(value, &data));
    return data;
  }
  void parallel(size_t count, void (*task)(void*, size_t), void* context) override {
    check(api.KernelContext_ParallelFor(context_, task, count, 0, context));
  }

 private:
  KernelContext* context_;
  const std::vector<int>& places_;
};

// One fused node.
struct Compiled : NodeComputeInfo {
  Executor executor;
  std::vector<int> places;   // place of each input of the program among those of the fused node

  Compiled(Program program, int threads, std::vector<int> input_places)
      : NodeComputeInfo{}, executor(std::move(program), threads), places(std::move(input_places)) {
    version = kOldestApi;
    CreateState = [](NodeComputeInfo* self, NodeComputeContext*, void** state) noexcept -> Status* {
      *state = self;
      return nullptr;
    };
    Compute = [](NodeComputeInfo*, void* state, KernelContext* context) noexcept -> Status* {
      return guarded([&] {
        auto* self = static_cast<Compiled*>(state);
        Call call(context, self->places);
        self->executor.run(call);
      });
    };
    ReleaseState = [](NodeComputeInfo*, void*) noexcept {};
  }
};

struct Options {
  int threads = 1;
  bool integer_attention = false;
  bool all_or_none = false;   // nothing is claimed where constants want folding
  std::string report;   // file to append a line of JSON to for each session; empty: none
};

std::string config(const SessionOptions* options, const char* key) {
  std::string full = std::string("ep.obertexecutionprovider.") + key;
  int found = 0;
  check(api.HasSessionConfigEntry(options, full.c_str(), &found));
  if (!found) return {};
  size_t size = 0;
  if (Status* s = api.GetSessionConfigEntry(options, full.c_str(), nullptr, &size)) api.ReleaseStatus(s);
  std::string text(size, '\0');
  check(api.GetSessionConfigEntry(options, full.c_str(), text.data(), &size));
  text.resize(std::strlen(text.c_str()));
  return text;
}

Options read_options(const SessionOptions* session) {
  Options o;
  std::string threads = config(session, "threads");
  if (threads.empty()) {
    o.threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  } else {
    char* end = nullptr;
    long n = std::strtol(threads.c_str(), &end, 10);
    if (*end || n < 1 || n > 4096)
      throw std::runtime_error("option 'threads': expected a number from 1 to 4096, found '" + threads + "'");
    o.threads = static_cast<int>(n);
  }
  o.report = config(session, "report");
  std::string attention = config(session, "attention");
  if (!attention.empty() && attention != "float" && attention != "int16")
    throw std::runtime_error("option 'attention': expected float or int16, found '" + attention + "'");
  o.integer_attention = attention == "int16";
  std::string unfolded = config(session, "unfolded");
  if (!unfolded.empty() && unfolded != "claim" && unfolded != "leave")
    throw std::runtime_error("option 'unfolded': expected claim or leave, found '" + unfolded + "'");
  o.all_or_none = unfolded == "leave";
  return o;
}

const Kernels* best_kernels() {
  KernelSet set = available_kernels();
  if (set.count == 0)
    throw std::runtime_error("OBERT_FORCE_ISA: expected an instruction set that this library and processor have");
  return set.tables[0];
}

struct Provider : Ep {
  Options options;
  const Kernels* kernels;

  explicit Provider(Options o) : Ep{}, options(std::move(o)), kernels(best_kernels()) {
    version = kOldestApi;
    GetName = [](const Ep*) noexcept { return kProviderName; };
    GetCapability = [](Ep* self, const Graph* graph, GraphSupport* support) noexcept -> Status* {
      return guarded([&] { static_cast<Provider*>(self)->choose(graph, support); });
    };
    Compile = [](Ep* self, const Graph** graphs, const Node** fused, size_t count, NodeComputeInfo** infos,
                 Node**) noexcept -> Status* {
      return guarded([&] {
        // Handed over when all are there: ONNX Runtime releases none of a call that failed.
        std::vector<std::unique_ptr<Compiled>> made;
        made.reserve(count);
        for (size_t i = 0; i < count; ++i) made.push_back(static_cast<Provider*>(self)->compile(graphs[i], fused[i]));
        for (size_t i = 0; i < count; ++i) infos[i] = made[i].release();
      });
    };
    ReleaseNodeComputeInfos = [](Ep*, NodeComputeInfo** infos, size_t count) noexcept {
      for (size_t i = 0; i < count; ++i) delete static_cast<Compiled*>(infos[i]);
    };
  }

  // From the last look at the whole graph; a second look at the same graph leaves the same.
  Reshapes reshapes;

  void choose(const Graph* from, GraphSupport* support) {
    ReadGraph read = read_graph(from);
    Claims claims = claim(read.graph);
    reshapes.insert(claims.reshapes.begin(), claims.reshapes.end());
    NodeFusionOptions fusion{kOldestApi, true};
    for (const Part& part : claims.parts) {
      if (options.all_or_none && claims.wants_folding) break;
      std::vector<const Node*> nodes;
      for (int n : part) nodes.push_back(read.handles[n]);
      check(ep_functions->AddNodesToFuse(support, nodes.data(), nodes.size(), &fusion));
    }
    if (!options.report.empty()) append_report(options.report, read.graph, claims, kernels->name);
  }

  std::unique_ptr<Compiled> compile(const Graph* from, const Node* fused) const {
    ReadGraph read = read_graph(from);
    Match m = match(read.graph, reshapes);
    for (size_t n = 0; n < m.claimed.size(); ++n)
      if (!m.claimed[n]) throw std::runtime_error("op '" + read.graph.nodes[n].op + "' was claimed and does not match again");
    Signature signature;
    std::vector<int> places;
    int place = 0;
    for (const ValueInfo* info : inputs_of(fused)) {
      auto found = info ? read.value_of.find(name_of(info)) : read.value_of.end();
      if (found != read.value_of.end()) {
        signature.inputs.push_back(found->second);
        places.push_back(place);
      }
      ++place;
    }
    for (const ValueInfo* info : outputs_of(fused)) {
      auto found = info ? read.value_of.find(name_of(info)) : read.value_of.end();
      if (found == read.value_of.end()) throw std::runtime_error("an output of a fused node is not in its graph");
      signature.outputs.push_back(found->second);
    }
    Program program = lower(read.graph, m, signature, kernels);
    program.integer_attention = options.integer_attention;
    return std::make_unique<Compiled>(std::move(program), options.threads, places);
  }
};

struct Factory : EpFactory {
  Factory() : EpFactory{} {
    version = kOldestApi;
    GetName = [](const EpFactory*) noexcept { return kProviderName; };
    GetVendor = [](const EpFactory*) noexcept { return "obert_compiler"; };
    GetVendorId = [](const EpFactory*) noexcept -> uint32_t { return 0; };
    GetVersion = [](const EpFactory*) noexcept { return OBERT_ENGINE_VERSION; };
    GetSupportedDevices = [](EpFactory* self, const HardwareDevice* const* devices, size_t count, EpDevice** found,
                             size_t room, size_t* found_count) noexcept -> Status* {
      *found_count = 0;
      for (size_t i = 0; i < count && *found_count < room; ++i) {
        if (api.HardwareDevice_Type(devices[i]) != kCpu) continue;
        if (Status* s = ep_functions->CreateEpDevice(self, devices[i], nullptr, nullptr, &found[*found_count])) return s;
        ++*found_count;
      }
      return nullptr;
    };
    CreateEp = [](EpFactory*, const HardwareDevice* const*, const KeyValues* const*, size_t,
                  const SessionOptions* options, const Logger*, Ep** made) noexcept -> Status* {
      return guarded([&] { *made = new Provider(read_options(options)); });
    };
    ReleaseEp = [](EpFactory*, Ep* ep) noexcept { delete static_cast<Provider*>(ep); };
    CreateAllocator = [](EpFactory*, const MemoryInfo*, const KeyValues*, Allocator** made) noexcept -> Status* {
      *made = nullptr;   // ONNX Runtime's own for the CPU
      return nullptr;
    };
    ReleaseAllocator = [](EpFactory*, Allocator*) noexcept {};
    CreateDataTransfer = [](EpFactory*, DataTransfer** made) noexcept -> Status* {
      *made = nullptr;
      return nullptr;
    };
    IsStreamAware = [](const EpFactory*) noexcept { return false; };
  }
};

}  // namespace

EpFactory* create_factory() { return new Factory; }
void release_factory(EpFactory* factory) noexcept { delete static_cast<Factory*>(factory); }

}  // namespace obert::ort

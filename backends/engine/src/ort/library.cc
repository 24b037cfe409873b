// What the library exports: the two functions that ONNX Runtime looks for.
#include <cstring>

#include "provider.h"
#include "read_graph.h"

#define OBERT_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

// A runtime that is too old for the engine still has the first slots, which make an error.
obert::ort::Status* refuse(const obert::ort::ApiBase* base, const char* message) {
  const void* const* table = base->GetApi(1);
  if (!table) return nullptr;
  using Create = obert::ort::Status* (*)(int, const char*) noexcept;
  return reinterpret_cast<Create>(const_cast<void*>(table[0]))(obert::ort::kFail, message);
}

// 1.23.0 wants copies between the engine and its own CPU provider, and has no kernel for them: a graph
// that is claimed in part does not open there.
bool opens_parts(const char* version) { return std::strcmp(version, "1.23.0") != 0; }

}  // namespace

OBERT_EXPORT obert::ort::Status* CreateEpFactories(const char*, const obert::ort::ApiBase* base,
                                                   const obert::ort::Logger*, obert::ort::EpFactory** factories,
                                                   size_t room, size_t* count) noexcept {
  using namespace obert::ort;
  *count = 0;
  if (!opens_parts(base->GetVersionString()) || !api.load(base))
    return refuse(base, "obert engine: expected ONNX Runtime 1.23.1 or newer, found an older one");
  ep_functions = api.GetEpApi();
  if (room < 1) return api.CreateStatus(kInvalidArgument, "obert engine: expected room for one factory, found none");
  try {
    factories[0] = create_factory();
  } catch (...) {
    return api.CreateStatus(kFail, "obert engine: expected enough memory, found too little");
  }
  *count = 1;
  return nullptr;
}

OBERT_EXPORT obert::ort::Status* ReleaseEpFactory(obert::ort::EpFactory* factory) noexcept {
  obert::ort::release_factory(factory);
  return nullptr;
}

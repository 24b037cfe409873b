// What the library exports: the two functions that ONNX Runtime looks for.
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

}  // namespace

OBERT_EXPORT obert::ort::Status* CreateEpFactories(const char*, const obert::ort::ApiBase* base,
                                                   const obert::ort::Logger*, obert::ort::EpFactory** factories,
                                                   size_t room, size_t* count) noexcept {
  using namespace obert::ort;
  *count = 0;
  if (!api.load(base)) return refuse(base, "obert engine: expected ONNX Runtime 1.23 or newer, found an older one");
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

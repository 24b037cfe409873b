#include "read_graph.h"

#include <memory>

namespace obert::ort {

Api api;
const EpFunctions* ep_functions = nullptr;

void check(Status* status) {
  if (!status) return;
  std::string message = api.GetErrorMessage(status);
  api.ReleaseStatus(status);
  throw std::runtime_error(message);
}

std::string name_of(const ValueInfo* value) {
  const char* name = nullptr;
  check(api.GetValueInfoName(value, &name));
  return name ? name : "";
}

std::vector<const ValueInfo*> inputs_of(const Node* node) {
  size_t count = 0;
  check(api.Node_GetNumInputs(node, &count));
  std::vector<const ValueInfo*> values(count);
  if (count) check(api.Node_GetInputs(node, values.data(), count));
  return values;
}

std::vector<const ValueInfo*> outputs_of(const Node* node) {
  size_t count = 0;
  check(api.Node_GetNumOutputs(node, &count));
  std::vector<const ValueInfo*> values(count);
  if (count) check(api.Node_GetOutputs(node, values.data(), count));
  return values;
}

TensorView view_of(const Value* value) {
  TensorView t;
  TensorInfo* info = nullptr;
  check(api.GetTensorTypeAndShape(value, &info));
  size_t rank = 0;
  Status* s = api.GetTensorElementType(info, &t.type);
  if (!s) s = api.GetDimensionsCount(info, &rank);
  t.shape.resize(rank);
  if (!s && rank) s = api.GetDimensions(info, t.shape.data(), rank);
  if (!s) s = api.GetTensorShapeElementCount(info, &t.count);
  api.ReleaseTensorTypeAndShapeInfo(info);
  check(s);
  check(api.GetTensorMutableData(const_cast<Value*>(value), &t.data));
  return t;
}

namespace {

// The attributes that the matcher asks for, by type: an attribute is read by its name.
const char* const kIntegers[] = {"axis", "transA", "transB", "block_size", "output_dtype", "allowzero",
                                 "to",   "start",  "end",    "keepdims",
                                 "exclusive", "reverse",
                                 "is_causal", "q_num_heads", "kv_num_heads", "num_heads",
                                 "interleaved", "rotary_embedding_dim"};
const char* const kReals[] = {"alpha", "beta", "epsilon", "scale", "softcap"};
const char* const kStrings[] = {"approximate", "reduction"};
const char* const kIntegerLists[] = {"perm", "axes", "split"};

const OpAttribute* attribute(const Node* node, const char* name) {
  const OpAttribute* found = nullptr;
  // A node without the attribute is reported as an error by some versions.
  if (Status* s = api.Node_GetAttributeByName(node, name, &found)) {
    api.ReleaseStatus(s);
    return nullptr;
  }
  return found;
}

bool read(const OpAttribute* attribute, int type, void* data, size_t size, size_t* written) {
  Status* s = api.ReadOpAttr(attribute, type, data, size, written);
  if (!s) return true;
  api.ReleaseStatus(s);
  return false;
}

void read_attributes(const Node* from, obert::Node& to) {
  size_t written = 0;
  for (const char* name : kIntegers) {
    int64_t v = 0;
    if (const OpAttribute* a = attribute(from, name))
      if (read(a, kInt, &v, sizeof v, &written)) to.ints[name] = v;
  }
  for (const char* name : kReals) {
    float v = 0;
    if (const OpAttribute* a = attribute(from, name))
      if (read(a, kFloatAttribute, &v, sizeof v, &written)) to.floats[name] = v;
  }
  for (const char* name : kStrings) {
    char text[32];
    if (const OpAttribute* a = attribute(from, name))
      if (read(a, kString, text, sizeof text, &written) && written <= sizeof text) {
        std::string s(text, written);
        to.strings[name] = s.c_str();   // without a terminating zero that some versions count
      }
  }
  for (const char* name : kIntegerLists) {
    int64_t list[8];
    if (const OpAttribute* a = attribute(from, name))
      if (read(a, kInts, list, sizeof list, &written) && written <= sizeof list)
        to.int_lists[name].assign(list, list + written / sizeof(int64_t));
  }
}

// Whether a ConstantOfShape makes zeros: what it is filled with is a tensor, or left out.
bool zeros(const Node* from) {
  const OpAttribute* a = attribute(from, "value");
  if (!a) return true;
  Value* value = nullptr;
  if (Status* s = api.OpAttr_GetTensorAttributeAsOrtValue(a, &value)) {
    api.ReleaseStatus(s);
    return false;
  }
  std::unique_ptr<Value, void (*)(Value*)> owner(value, [](Value* v) { api.ReleaseValue(v); });
  TensorView t;
  try {
    t = view_of(value);
  } catch (const std::runtime_error&) {
    return false;
  }
  switch (t.count == 1 && t.data ? t.type : 0) {
    case kFloat: return *static_cast<const float*>(t.data) == 0.f;
    case kUInt8:
    case kInt8: return *static_cast<const uint8_t*>(t.data) == 0;
    default: return false;
  }
}

bool flag(Status* (*ask)(const ValueInfo*, bool*) noexcept, const ValueInfo* value) {
  bool answer = false;
  if (Status* s = ask(value, &answer)) {
    api.ReleaseStatus(s);
    return false;
  }
  return answer;
}

class Reader {
 public:
  ReadGraph run(const Graph* from) {
    size_t count = 0;
    check(api.Graph_GetNumNodes(from, &count));
    r_.handles.resize(count);
    if (count) check(api.Graph_GetNodes(from, r_.handles.data(), count));
    for (const Node* handle : r_.handles) node(handle);
    return std::move(r_);
  }

 private:
  int value(const ValueInfo* info) {
    if (!info) return -1;
    std::string name = name_of(info);
    if (name.empty()) return -1;
    auto [place, fresh] = r_.value_of.try_emplace(name, static_cast<int>(r_.graph.values.size()));
    if (!fresh) return place->second;
    obert::Value v;
    v.name = name;
    v.is_output = flag(api.ValueInfo_IsGraphOutput, info);
    if (flag(api.ValueInfo_IsConstantInitializer, info)) constant(info, v);
    else shape(info, v);
    r_.graph.values.push_back(std::move(v));
    return place->second;
  }

  static void shape(const ValueInfo* info, obert::Value& v) {
    const TypeInfo* type = nullptr;
    const TensorInfo* tensor = nullptr;
    size_t rank = 0;
    Status* s = api.GetValueInfoTypeInfo(info, &type);
    if (!s && type) s = api.CastTypeInfoToTensorInfo(type, &tensor);
    if (!s && tensor) s = api.GetDimensionsCount(tensor, &rank);
    std::vector<int64_t> dimensions(rank);
    if (!s && tensor && rank) s = api.GetDimensions(tensor, dimensions.data(), rank);
    if (s) {
      api.ReleaseStatus(s);   // a value of unknown type stays unknown
    } else if (tensor) {
      v.rank = static_cast<int>(rank);
      if (rank && dimensions.back() >= 0) v.last = dimensions.back();
      for (int64_t d : dimensions) v.shape.push_back(d >= 0 ? d : -1);
    }
  }

  static void constant(const ValueInfo* info, obert::Value& v) {
    const ort::Value* tensor = nullptr;
    if (Status* s = api.ValueInfo_GetInitializerValue(info, &tensor)) {
      api.ReleaseStatus(s);
      return;
    }
    if (!tensor) return;
    TensorView t;
    try {
      t = view_of(tensor);
    } catch (const std::runtime_error&) {
      return;   // strings and other constants that are no tensors of numbers
    }
    v.is_constant = true;
    v.constant.type = static_cast<Type>(t.type);
    v.constant.shape = t.shape;
    v.constant.data = t.data;
    v.constant.count = t.count;
  }

  void node(const Node* handle) {
    obert::Node n;
    const char* text = nullptr;
    check(api.Node_GetOperatorType(handle, &text));
    std::string op = text ? text : "";
    check(api.Node_GetDomain(handle, &text));
    std::string domain = text ? text : "";
    // Ops of other domains are none of those that the matcher knows by name.
    n.op = domain.empty() || domain == "ai.onnx" ? op : domain + "." + op;
    check(api.Node_GetSinceVersion(handle, &n.since));
    read_attributes(handle, n);
    n.fills_with_zeros = n.op == "ConstantOfShape" && zeros(handle);
    int index = static_cast<int>(r_.graph.nodes.size());
    for (const ValueInfo* info : inputs_of(handle)) {
      int v = value(info);
      n.inputs.push_back(v);
      if (v >= 0) r_.graph.values[v].consumers.push_back(index);
    }
    for (const ValueInfo* info : outputs_of(handle)) {
      int v = value(info);
      n.outputs.push_back(v);
      if (v >= 0) r_.graph.values[v].producer = index;
    }
    r_.graph.nodes.push_back(std::move(n));
  }

  ReadGraph r_;
};

}  // namespace

ReadGraph read_graph(const Graph* graph) { return Reader().run(graph); }

}  // namespace obert::ort

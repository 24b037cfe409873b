/* Run a compiled model in ONNX Runtime with the engine, in C.

       cc -std=c11 -o engine_c examples/engine_c.c -ldl
       ./engine_c LIBONNXRUNTIME "$(obertc engine --path)" OUT/model.onnx

   LIBONNXRUNTIME is libonnxruntime.so of ONNX Runtime 1.23 or newer; a Python wheel has one as
   onnxruntime/capi/libonnxruntime.so.VERSION.

   The few functions needed are declared here by their slot in ONNX Runtime's table, which only ever
   grows at its end. A program that has ONNX Runtime's headers includes onnxruntime_c_api.h instead and
   calls the same functions by name. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PROVIDER "ObertExecutionProvider"
enum { API_VERSION = 23, ERROR = 3, INT64 = 7, ARENA_ALLOCATOR = 1, DEFAULT_MEMORY = 0 };

typedef struct Status Status;
typedef struct Env Env;
typedef struct Session Session;
typedef struct SessionOptions SessionOptions;
typedef struct Allocator Allocator;
typedef struct MemoryInfo MemoryInfo;
typedef struct Value Value;
typedef struct TensorInfo TensorInfo;
typedef struct EpDevice EpDevice;
typedef struct {
  const void *const *(*get_api)(uint32_t version);
  const char *(*get_version)(void);
} ApiBase;

/* X(slot, result, name, parameters) */
#define FUNCTIONS(X)                                                                                       \
  X(2, const char *, error_message, (const Status *))                                                     \
  X(3, Status *, create_env, (int severity, const char *name, Env **))                                    \
  X(7, Status *, create_session, (Env *, const char *path, const SessionOptions *, Session **))           \
  X(9, Status *, run,                                                                                     \
    (Session *, const void *run_options, const char *const *input_names, const Value *const *inputs,      \
     size_t input_count, const char *const *output_names, size_t output_count, Value **outputs))          \
  X(10, Status *, create_session_options, (SessionOptions **))                                            \
  X(24, Status *, set_threads, (SessionOptions *, int threads))                                           \
  X(30, Status *, input_count, (const Session *, size_t *))                                               \
  X(36, Status *, input_name, (const Session *, size_t, Allocator *, char **))                            \
  X(37, Status *, output_name, (const Session *, size_t, Allocator *, char **))                           \
  X(49, Status *, create_tensor,                                                                          \
    (const MemoryInfo *, void *data, size_t bytes, const int64_t *shape, size_t rank, int type, Value **)) \
  X(51, Status *, tensor_data, (Value *, void **))                                                        \
  X(64, Status *, element_count, (const TensorInfo *, size_t *))                                          \
  X(65, Status *, tensor_info, (const Value *, TensorInfo **))                                            \
  X(69, Status *, cpu_memory, (int allocator, int memory, MemoryInfo **))                                 \
  X(76, Status *, allocator_free, (Allocator *, void *))                                                  \
  X(78, Status *, default_allocator, (Allocator **))                                                      \
  X(92, void, release_env, (Env *))                                                                       \
  X(94, void, release_memory_info, (MemoryInfo *))                                                        \
  X(95, void, release_session, (Session *))                                                               \
  X(96, void, release_value, (Value *))                                                                   \
  X(99, void, release_tensor_info, (TensorInfo *))                                                        \
  X(100, void, release_session_options, (SessionOptions *))                                               \
  X(301, Status *, register_library, (Env *, const char *name, const char *path))                         \
  X(303, Status *, ep_devices, (const Env *, const EpDevice *const **, size_t *))                         \
  X(304, Status *, append_provider,                                                                       \
    (SessionOptions *, Env *, const EpDevice *const *devices, size_t count, const char *const *keys,      \
     const char *const *values, size_t options))                                                          \
  X(312, const char *, ep_name, (const EpDevice *))

#define X(slot, result, name, parameters) static result(*name) parameters;
FUNCTIONS(X)
#undef X

static void load(const char *library) {
  void *handle = dlopen(library, RTLD_NOW);
  const ApiBase *(*get_base)(void) = NULL;
  if (handle != NULL) *(void **)&get_base = dlsym(handle, "OrtGetApiBase");
  const void *const *table = get_base != NULL ? get_base()->get_api(API_VERSION) : NULL;
  if (table == NULL) {
    fprintf(stderr, "%s: expected ONNX Runtime 1.23 or newer, found none\n", library);
    exit(1);
  }
#define X(slot, result, name, parameters) *(const void **)&name = table[slot];
  FUNCTIONS(X)
#undef X
}

static void check(Status *status) {
  if (status == NULL) return;
  fprintf(stderr, "%s\n", error_message(status));
  exit(1);
}

/* The engine's device; the library is registered once in a process. */
static const EpDevice *engine_device(Env *env, const char *library) {
  const EpDevice *const *devices = NULL;
  size_t count = 0;
  check(register_library(env, PROVIDER, library));
  check(ep_devices(env, &devices, &count));
  for (size_t i = 0; i < count; ++i)
    if (strcmp(ep_name(devices[i]), PROVIDER) == 0) return devices[i];
  fprintf(stderr, "%s: expected a device of " PROVIDER ", found none\n", library);
  exit(1);
}

int main(int argc, char **argv) {
  if (argc != 4) {
    fprintf(stderr, "usage: %s LIBONNXRUNTIME LIBOBERT_ENGINE MODEL\n", argv[0]);
    return 2;
  }
  load(argv[1]);
  Env *env = NULL;
  SessionOptions *options = NULL;
  Session *session = NULL;
  check(create_env(ERROR, "engine_c", &env));
  const EpDevice *engine = engine_device(env, argv[2]);
  check(create_session_options(&options));
  check(set_threads(options, 2));
  const char *const keys[] = {"threads"}, *const values[] = {"2"};
  check(append_provider(options, env, &engine, 1, keys, values, 1));
  check(create_session(env, argv[3], options, &session));

  /* Two sequences of eight tokens for whatever inputs the model has. */
  enum { BATCH = 2, LENGTH = 8, TOKENS = BATCH * LENGTH, MOST_INPUTS = 4 };
  const int64_t shape[] = {BATCH, LENGTH};
  int64_t ids[TOKENS], ones[TOKENS], zeros[TOKENS];
  for (int i = 0; i < TOKENS; ++i) {
    ids[i] = i;
    ones[i] = 1;
    zeros[i] = 0;
  }
  Allocator *allocator = NULL;
  MemoryInfo *memory = NULL;
  size_t count = 0;
  char *names[MOST_INPUTS];
  Value *inputs[MOST_INPUTS] = {NULL};
  check(default_allocator(&allocator));
  check(cpu_memory(ARENA_ALLOCATOR, DEFAULT_MEMORY, &memory));
  check(input_count(session, &count));
  if (count > MOST_INPUTS) return 1;
  for (size_t i = 0; i < count; ++i) {
    check(input_name(session, i, allocator, &names[i]));
    int64_t *data = strstr(names[i], "mask") ? ones : strstr(names[i], "type") ? zeros : ids;
    check(create_tensor(memory, data, sizeof ids, shape, 2, INT64, &inputs[i]));
  }
  char *output = NULL;
  Value *result = NULL;
  check(output_name(session, 0, allocator, &output));
  check(run(session, NULL, (const char *const *)names, (const Value *const *)inputs, count,
            (const char *const *)&output, 1, &result));

  TensorInfo *info = NULL;
  size_t elements = 0;
  float *numbers = NULL;
  check(tensor_info(result, &info));
  check(element_count(info, &elements));
  check(tensor_data(result, (void **)&numbers));
  printf("%s", output);
  for (size_t i = 0; i < elements; ++i) printf(" %.6f", numbers[i]);
  printf("\n");

  release_tensor_info(info);
  release_value(result);
  for (size_t i = 0; i < count; ++i) {
    release_value(inputs[i]);
    check(allocator_free(allocator, names[i]));
  }
  check(allocator_free(allocator, output));
  release_session(session);
  release_session_options(options);
  release_memory_info(memory);
  release_env(env);
  return 0;
}

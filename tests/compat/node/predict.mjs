// Runs a model and prints its outputs as JSON.
//
//   node predict.mjs onnxruntime-node|onnxruntime-web MODEL.onnx FEEDS.json
//
// FEEDS.json: {input name: {"shape": [..], "data": [integers]}}. onnxruntime-web runs in WebAssembly,
// as it does in a browser.
import { readFileSync } from 'node:fs';

const [runtime, model, feedsFile] = process.argv.slice(2);
const ort = await import(runtime);
const web = runtime === 'onnxruntime-web';
if (web) ort.env.wasm.numThreads = 1;

const started = performance.now();
const session = await ort.InferenceSession.create(new Uint8Array(readFileSync(model)), {
  executionProviders: [web ? 'wasm' : 'cpu'],
  logSeverityLevel: 3,
});
const loaded = performance.now();

const feeds = {};
for (const [name, { shape, data }] of Object.entries(JSON.parse(readFileSync(feedsFile, 'utf8')))) {
  feeds[name] = new ort.Tensor('int64', BigInt64Array.from(data, BigInt), shape);
}
const found = await session.run(feeds);
const ran = performance.now();

const outputs = {};
for (const [name, tensor] of Object.entries(found)) {
  outputs[name] = { shape: tensor.dims, data: Array.from(tensor.data) };
}
const version = (ort.env.versions ?? {})[web ? 'web' : 'node'] ?? (ort.env.versions ?? {}).common;
const figures = { load_ms: loaded - started, run_ms: ran - loaded };
console.log(JSON.stringify({ runtime, version, outputs, ...figures }));

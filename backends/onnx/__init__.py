"""The ONNX back end: one folder with one standard model file."""

"""Front ends: a Hugging Face model, a torch module or an ONNX file becomes one canonical graph."""

from obert_compiler.frontends.lowering import lower

__all__ = ["lower"]

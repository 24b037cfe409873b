"""The torch back end: a graph as an nn.Module, a Hugging Face folder or a torch.export archive."""

from obert_compiler.backends.torch.backend import TorchBackend
from obert_compiler.backends.torch.module import OnnxModule, from_module, to_module

__all__ = ["OnnxModule", "TorchBackend", "from_module", "to_module"]

"""The intermediate graph and the views that compression passes need."""

from obert_compiler.graph.graph import Graph, Source, Stage
from obert_compiler.graph.linear import LinearSite, LinearSites, find_linear_sites

__all__ = ["Graph", "LinearSite", "LinearSites", "Source", "Stage", "find_linear_sites"]

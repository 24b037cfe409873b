"""The compiler on one page: pass contract, grammar, registry, runner and recipes."""

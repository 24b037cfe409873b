"""Running, measuring and evaluating emitted models; needs neither torch nor transformers."""

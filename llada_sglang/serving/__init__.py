"""How a LLaDA2 checkpoint is served: launch defaults, request parameters, metrics."""

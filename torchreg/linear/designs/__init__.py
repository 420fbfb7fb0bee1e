"""X as solvers see it: dense or sparse, centred and scaled without a copy."""

"""What a fit minimises, and the description of a penalty that solvers read."""

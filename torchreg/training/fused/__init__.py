"""The base's step and the proximal step in one compiled pass over each parameter."""

"""Pure functions of tensors, on which penalties stand."""

"""Paths of penalties without a kink, for losses with a second derivative."""

"""Least squares with a ridge or nothing, in closed form."""

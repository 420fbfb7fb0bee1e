"""Data of a fit: validated once, for `fit_path` and for estimators."""

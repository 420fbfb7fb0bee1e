"""All folds of a cross-validation as one batch."""

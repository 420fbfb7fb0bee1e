"""What the command line runs, beside the demo."""

"""What came out of an ablation: rows, intervals over seeds, paired differences, choices, files."""

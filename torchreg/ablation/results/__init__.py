"""What an ablation has found: tables, intervals, choices."""

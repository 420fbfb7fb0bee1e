"""The directory that holds an ablation: a manifest, and one append-only file of rows for each process."""

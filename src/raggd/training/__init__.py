"""From data to weights: what each stage of a training reads, runs, writes and records."""

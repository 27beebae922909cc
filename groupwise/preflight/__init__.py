"""What `--check` finds out before a run: shared by both methods."""

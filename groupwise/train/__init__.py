"""Groups to weight updates: objective, step, loop, optimizer, checkpoints. Knows no source of groups."""

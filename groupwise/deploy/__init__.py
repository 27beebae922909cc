"""What is done with a finished run: talk to its model, write it out for other programs. Knows no training."""

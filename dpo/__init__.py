"""Direct Preference Optimization (arXiv 2305.18290) on the groupwise core."""

"""Group Relative Policy Optimization: learn from the scores of the policy's own answers (arXiv 2402.03300)."""

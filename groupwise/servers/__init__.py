"""Answers from vLLM servers: the adapter goes out as a version, token ids and log-probs come back. Knows no rewards."""

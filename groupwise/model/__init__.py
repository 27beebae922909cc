"""Token ids to log-probs and back: policy, attention, engine, sampling. Knows nothing about rewards or losses."""

"""Training data: prompts, shards of samples, imported files, batches addressed by step. No losses."""

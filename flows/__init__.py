"""Prefect flows: when a run starts and whether a stage is retried. No other folder imports prefect."""

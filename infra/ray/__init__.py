"""Ray: executor, training workers, cluster and its manifests. No other folder imports ray."""

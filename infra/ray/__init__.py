"""Ray: executor, trainings, cluster and its manifests. No other folder imports ray."""

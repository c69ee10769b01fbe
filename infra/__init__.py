"""Start stages, on one machine or a cluster: command line, executors, workspaces. No mathematics."""

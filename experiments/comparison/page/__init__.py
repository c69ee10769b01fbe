"""Write docs/results.md from the JSON files in docs/results. Nothing here runs a training."""

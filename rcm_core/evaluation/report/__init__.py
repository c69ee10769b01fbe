"""The report page and the model card, rendered only from the files of a run."""

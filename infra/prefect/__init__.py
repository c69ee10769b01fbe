"""A local Prefect server, worker and keeper, by REST: this folder does not import prefect."""

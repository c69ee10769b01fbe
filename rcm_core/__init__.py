"""rcm_core: the mathematics and the stages of rcm-distill; it knows neither Prefect nor Ray nor DVC."""

"""Networks: a diffusers module as a velocity, its weights, and small modules beside it. No pipelines."""

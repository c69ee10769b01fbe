"""Networks: a diffusers module as a velocity, its weights, and small additional modules. No pipelines."""

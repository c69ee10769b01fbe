"""The diffusion path: angles, parameterisations, guidance, distributions of timesteps. No networks."""

"""The diffusion path: angles, parameterisations, guidance, timestep distributions. No networks."""

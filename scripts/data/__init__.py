"""Scripts that made the files in data/: prompt lists, a detector's weights, shipped teachers."""

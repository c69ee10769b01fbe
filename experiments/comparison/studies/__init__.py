"""Studies in addition to the comparison of all methods: each answers one question and writes one JSON file."""

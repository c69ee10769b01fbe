"""Scenes of handwritten digits: scans, requests, composition, motion. No judges."""

"""Scenes of coloured handwritten digits: what a prompt asks for (``request``), how it is drawn (``compose``)."""

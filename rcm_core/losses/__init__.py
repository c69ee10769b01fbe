"""Losses as pure functions of tensors, one value per sample. They depend only on torch and the angle.

``rcm_core.objectives`` calls the networks and forms these losses from their outputs.
"""

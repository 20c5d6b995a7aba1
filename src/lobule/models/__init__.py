"""Backbones, the classifier on top, and the model folder."""

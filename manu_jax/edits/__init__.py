"""Edits of a model: masks, gates, written neurons, low-rank products and new weights."""

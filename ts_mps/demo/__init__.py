"""``ts-mps demo``: train, archive, serve and load a small real model."""

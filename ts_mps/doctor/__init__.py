"""The doctor: every check that a start does and more, each with its remedy; only ``--probe-cap`` starts something."""

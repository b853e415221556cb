"""Other servers that the same models are compared with."""

"""The doctor: every check that a start does and more, each with its remedy. It starts nothing and changes nothing."""

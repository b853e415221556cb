"""The guardian: starts what was planned, in order, keeps it, and takes it down in the opposite order."""

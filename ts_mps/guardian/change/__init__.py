"""Changing an instance that serves, without losing a request: workers replaced, more or fewer of them, a new plan."""

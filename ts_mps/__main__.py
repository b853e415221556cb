"""``python -m ts_mps`` is the ``ts-mps`` command."""

from ts_mps.cli.main import run

run()

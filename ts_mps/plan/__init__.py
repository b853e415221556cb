"""Which worker goes where, with what share: pure functions from facts to a plan. No I/O here."""

"""Verdicts while a run goes on: the same rules on the same records, looked at again whenever there are new ones."""

"""`python -m ares_stream` is `ares`."""

from ares_stream.cli.main import app

app(prog_name="ares")

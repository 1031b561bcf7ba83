"""The tests, and the type checker of their runs: beartype, to which a whole number is a number (PEP 484)."""

from beartype import BeartypeConf, beartype

tower = beartype(conf=BeartypeConf(is_pep484_tower=True))

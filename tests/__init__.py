"""The tests, and the type checker for them: beartype, which accepts an int for a float (PEP 484)."""

from beartype import BeartypeConf, beartype

tower = beartype(conf=BeartypeConf(is_pep484_tower=True))

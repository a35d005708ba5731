"""What may be wrong with a file before its rows are looked at. Imports no torch."""


class BadFile(ValueError):
    """A file that cannot be read further, so that no row of it can be skipped."""


class BadRecord(ValueError):
    """One record is broken, but the next can be read."""

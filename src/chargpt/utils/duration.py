"""Conversion of `trainer.max_time` to seconds."""

from datetime import timedelta

from chargpt.errors import UserError


def parse_duration(max_time: str | int | float | dict[str, int | float] | None) -> float | None:
    """Converts `trainer.max_time` to seconds; None means no limit.

    Args:
        max_time: a number of seconds, `DD:HH:MM:SS`, or keyword arguments of `timedelta`.
    """
    if max_time is None:
        return None
    try:
        if isinstance(max_time, str):
            fields = [float(field) for field in max_time.split(":")]
            if len(fields) > 4:
                raise ValueError
            seconds = sum(f * unit for f, unit in zip(reversed(fields), (1, 60, 3600, 86400), strict=False))
        elif isinstance(max_time, int | float):
            seconds = float(max_time)
        else:
            seconds = timedelta(**max_time).total_seconds()
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(
            f"trainer.max_time={max_time!r} is not a duration: give seconds, or DD:HH:MM:SS, for example 00:00:05:00"
        ) from error
    if not 0 < seconds < float("inf"):
        raise UserError(f"trainer.max_time={max_time!r}: it must be more than 0 seconds")
    return seconds

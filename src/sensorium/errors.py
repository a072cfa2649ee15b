"""The exception for users: shown as one line, without a traceback, unless ``--debug`` is given."""


class SensoriumError(Exception):
    """Something the user can fix. The message names the cause (file and field, if there is one) and the remedy."""


class NothingOfItsKind(SensoriumError):
    """A reader found nothing of its kind at a path, damaged or not: another kind's may."""

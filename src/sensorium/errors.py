"""The one exception that is meant for people: shown as a line, without a traceback, unless ``--debug`` is given."""


class SensoriumError(Exception):
    """Something the user can mend. The message names the cause (file and field, where there is one) and the way out."""

"""The one exception that a user is meant to read."""


class CkdEhrError(Exception):
    """Something the user can mend: the message names the file, the value and the remedy.

    The command line prints it without a traceback and exits with status 2. It never carries
    patient text or identifiers.
    """

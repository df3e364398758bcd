"""Exceptions that are shown to the user as one line."""


class UserError(ValueError):
    """A mistake in the input or the configuration that the user can fix.

    The message is one line: what is wrong, where, and how to fix it. The command line prints it
    without a traceback.
    """


class TrainingStopped(RuntimeError):
    """Training cannot continue; the weights are those before the failed step.

    The message is one line that names the loss and the clock.
    """

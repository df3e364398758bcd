"""The one exception for what a user can mend."""


class UserError(ValueError):
    """Something in the input or the configuration is wrong.

    The message is one line: what is wrong, where, and how to mend it. The command line prints it
    without a traceback.
    """


class TrainingStopped(RuntimeError):
    """Training cannot go on; the weights are those before the step that failed.

    The message is one line that names the loss and the clock.
    """

"""What a user can get wrong, told apart from what is wrong with the code."""


class UserError(ValueError):
    """Says in one message what is wrong, where it came from, and what to do about it.

    The command line prints the message alone; any other exception keeps its traceback.
    """

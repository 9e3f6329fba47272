"""Addition: the mark of a field that a config gained after runs had been made with it."""


class Addition:
    """Marks a field that a config gained later: at its default it is no part of a run key, so old keys stay."""


ADDED = Addition()

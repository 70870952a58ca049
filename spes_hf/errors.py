"""What can go wrong, as exceptions whose messages name the argument, the value, what is allowed and the remedy."""


class SpesError(Exception):
    """Base of every error that spes_hf raises on purpose."""


class UnsupportedModelError(SpesError, ValueError):
    """The model, or the processor given with it, belongs to a family that has no adapter."""


class AudioError(SpesError, ValueError):
    """The audio cannot be read, or is nothing that the model could transcribe.

    Args:
        message: What is wrong, and what to do.
        silent: Whether it is silence, or too short to hold a sound: in a recording, a stretch to pass over.
    """

    def __init__(self, message: object = "", silent: bool = False):
        super().__init__(message)
        self.silent = silent


class ConfigError(SpesError, ValueError):
    """An argument or a configuration field has a value outside what is allowed."""


class ExplanationFormatError(SpesError, ValueError):
    """A file is not a saved explanation, or is damaged."""


class OutOfMemoryError(SpesError, RuntimeError, MemoryError):
    """Memory runs out for a single copy of the input, so no batch size helps."""


class NumericsError(SpesError, ValueError):
    """The model computes NaN or infinities, of which there is nothing to explain."""


class RankError(SpesError, RuntimeError):
    """Of processes that work together, another one failed, is lost, or was asked for something else.

    Args:
        message: What is wrong, and what to do.
        lost: Whether a process cannot be reached any more, so that nothing else can be done together.
    """

    def __init__(self, message: object = "", lost: bool = False):
        super().__init__(message)
        self.lost = lost

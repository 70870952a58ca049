"""Exceptions. Their messages name the argument, the value, what is allowed and the remedy."""


class SpesError(Exception):
    """Base of every error that spes_hf raises on purpose."""


class UnsupportedModelError(SpesError, ValueError):
    """The model, or the processor given with it, belongs to a family that has no adapter."""


class AudioError(SpesError, ValueError):
    """The audio cannot be read, or is nothing that a model can transcribe.

    Args:
        message: What is wrong, and what to do.
        silent: Whether the audio is silent, or too short to hold a sound: in a recording, a stretch to skip.
    """

    def __init__(self, message: object = "", silent: bool = False):
        super().__init__(message)
        self.silent = silent


class ConfigError(SpesError, ValueError):
    """An argument or a configuration field has a value that is not allowed."""


class ExplanationFormatError(SpesError, ValueError):
    """A file is not a saved explanation, or is damaged."""


class OutOfMemoryError(SpesError, RuntimeError, MemoryError):
    """Memory runs out even for a single copy of the input, so a smaller batch would not help."""


class NumericsError(SpesError, ValueError):
    """The model computes NaN or infinities, which cannot be explained."""


class RankError(SpesError, RuntimeError):
    """Another of the processes that work together failed, is lost, or was called with different arguments.

    Args:
        message: What is wrong, and what to do.
        lost: Whether a process can no longer be reached, so that the others cannot continue together.
    """

    def __init__(self, message: object = "", lost: bool = False):
        super().__init__(message)
        self.lost = lost

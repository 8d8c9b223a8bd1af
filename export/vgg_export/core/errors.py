"""Named exceptions: each says what was found, what was expected and what to do."""


class VggExportError(Exception):
    """The base of all others. ``exit_code`` is what the command line exits with."""

    exit_code = 1


class CheckpointError(VggExportError):
    """The weights cannot be read or are not a VGG."""

    exit_code = 2


class AccuracyError(VggExportError):
    """The checkpoint is not clearly better than chance on the pictures it is given."""

    exit_code = 2


class DataError(VggExportError):
    """The images or labels cannot be used."""

    exit_code = 2


class OptionsError(VggExportError):
    """Options that contradict each other or lie outside their range."""

    exit_code = 2


class NothingToGainError(OptionsError):
    """The network is too narrow to be factorised as far as was asked, or to gain from another form of its
    convolutions."""


class OtherInputError(NothingToGainError):
    """A search makes compact variants at another input than that of this one."""


class OutputError(VggExportError):
    """An output cannot be written."""

    exit_code = 2


class RewriteError(VggExportError):
    """A layer cannot be written in the form that was asked for."""

    exit_code = 2


class HubError(VggExportError):
    """Weights or a data set could not be fetched over the network."""

    exit_code = 2


class CheckFailedError(VggExportError):
    """A transformation's own check (parity, audit) found a wrong result; nothing was written."""


class OpeningError(VggExportError):
    """A file that is there could not be opened."""


class ProcessLostError(VggExportError):
    """A process that computes together with this one has ended."""


class BoardError(VggExportError):
    """The board cannot be reached, or cannot be used as it is."""

    exit_code = 2


class DeployError(VggExportError):
    """A step on the board failed."""

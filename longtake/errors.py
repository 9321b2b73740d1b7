"""Every exception that longtake raises on purpose.

A message states the value that was refused, the rule that it breaks, and a way out.
"""


class LongtakeError(Exception):
    """Anything that longtake raises on purpose."""


class RefusedInputError(LongtakeError, ValueError):
    """What was asked for cannot run. Raised before any work starts or anything is sent."""


class LayoutError(RefusedInputError):
    """Degrees, ranks, a mesh or token ranges that do not fit together."""


class TensorError(RefusedInputError):
    """A tensor whose shape, dtype or device does not fit the call."""


class KernelError(RefusedInputError):
    """An attention kernel that is unknown or cannot run here."""


class PeerLostError(LongtakeError, RuntimeError):
    """Another rank died, raised, or did not answer within the process group's timeout."""

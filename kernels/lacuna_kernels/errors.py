"""What can go wrong in the kernels package, by who can mend it."""


class KernelsError(Exception):
    """Base of every error that this package raises on purpose."""


class ModelError(KernelsError):
    """A model folder cannot be used: its graph, its weights or its options are wrong."""


class GraphError(ModelError):
    """A graph is not valid; the message names the node or the field."""


class WeightError(ModelError):
    """Weights are missing, left over, or of another shape or type than the graph needs."""


class Unsupported(ModelError):
    """A valid graph asks for something that this backend cannot run."""


class ConversionError(ModelError):
    """A checkpoint cannot be turned into a model folder; the message names the layer, the keys, the shapes."""


class InputError(KernelsError):
    """A batch does not fit the program: names, shapes, types, offsets or coordinates."""


class CapacityExceeded(KernelsError):
    """A batch is larger than the largest one that the program may be asked to run."""


class DeviceOutOfMemory(KernelsError):
    """The device has no memory left for this batch; a smaller one may still fit."""


class DeviceError(KernelsError):
    """The device or its compiler failed; the program cannot be trusted any more."""

"""How kernels over channels divide the work; `kernels/include/elements.cuh` is the other half."""


def channel_groups(channels: int, itemsize: int) -> int:
    """Groups of neighbouring channels, one a thread: of 16 bytes where their number allows it, else of one channel."""
    vector = 16 // itemsize
    return channels // vector if channels % vector == 0 else channels


def lanes_for(groups: int) -> int:
    """Neighbouring threads that take the groups of one row, or one part of it after the other: a power of two to 32."""
    return min(32, 1 << (groups - 1).bit_length())

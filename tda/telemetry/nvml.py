"""NVIDIA's driver: opened in one place, its failures as reasons, and the GPUs that this process may use."""

import os
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from tda.telemetry.source import NotReadableError

if TYPE_CHECKING:
    import torch

VISIBLE = "CUDA_VISIBLE_DEVICES"
ORDER = "CUDA_DEVICE_ORDER"


@cache
def library() -> Any:
    """NVML, opened once for this process.

    Raises
    ------
    NotReadableError
        If there is no driver.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception as error:  # each driver version has its own way to be absent
        raise NotReadableError(f"no driver: {error}") from None
    return pynvml


def call(name: str, *arguments: Any) -> Any:
    """Call a function of NVML; text goes in and comes out as str, which older versions of pynvml leave as bytes.

    Raises
    ------
    NotReadableError
        If there is no driver, it lacks the function, the GPU does not support it or is lost, or whatever else failed.
    """
    nvml = library()
    given = (argument.encode() if isinstance(argument, str) else argument for argument in arguments)
    try:
        told = getattr(nvml, name)(*given)
        return told.decode() if isinstance(told, bytes) else told
    except Exception as error:  # not only NVMLError: unknown versions of structures fail in ctypes
        raise NotReadableError(f"{error} ({name})") from error


NvmlHandle = Any
"""What NVML knows a GPU by, or the NotReadableError that it gave instead: one lost GPU hides no other."""


def _query(function: str, argument: Any) -> Any:
    """What NVML answers, or why it does not; of a GPU that could not be reached, why not."""
    if isinstance(argument, NotReadableError):
        return argument
    try:
        return call(function, argument)
    except NotReadableError as error:
        return error


def driver_version() -> str:
    """Version of the driver; raises NotReadableError without one."""
    return str(call("nvmlSystemGetDriverVersion"))


class NvmlDevice(NamedTuple):
    """A GPU, or a MIG slice of one, by the number that CUDA counts."""

    number: int
    handle: Any

    @property
    def device(self) -> str:
        """What its readings are filed under."""
        return f"gpu{self.number}"

    @property
    def name(self) -> str:
        """Name of the model."""
        return str(call("nvmlDeviceGetName", self.handle))


def gpus() -> list[NvmlDevice | NotReadableError]:
    """The GPUs that this process may use, in the order in which CUDA counts them; why, where one cannot be read.

    Raises
    ------
    NotReadableError
        If there is no driver, or no GPU.
    """
    handles = _counted()
    if not handles:
        count = call("nvmlDeviceGetCount")
        told = f"{VISIBLE}={os.environ.get(VISIBLE)!r} leaves none of {count}"
        raise NotReadableError(told if count else "the driver has none")
    found = enumerate(handles)
    return [handle if isinstance(handle, NotReadableError) else NvmlDevice(index, handle) for index, handle in found]


def find(device: "torch.device") -> NvmlDevice:
    """The GPU behind a CUDA device.

    CUDA itself tells its UUID where torch can ask it. Else its number is looked up in CUDA_VISIBLE_DEVICES, which is
    sure only among GPUs of one model, named by UUID, or counted in PCI order: CUDA counts the fastest first.

    Raises
    ------
    NotReadableError
        If there is no such GPU, it is lost, or there is no telling which it is.
    """
    import torch

    by_torch = torch.cuda.is_available()
    first = torch.cuda.current_device() if by_torch and device.index is None else 0
    index, handles = device.index or first, _counted()
    if index >= len(handles):
        told = os.environ.get(VISIBLE)
        limits = "" if told is None else f" ({VISIBLE}={told})"
        raise NotReadableError(f"no cuda:{index} among {len(handles)} GPUs{limits}")
    if not by_torch and not _number_is_sure(index):
        raise NotReadableError(f"which of several unlike GPUs is cuda:{index} is not sure: set {ORDER}=PCI_BUS_ID")
    if isinstance(handles[index], NotReadableError):
        raise handles[index]
    return NvmlDevice(index, handles[index])


def _counted() -> list[NvmlHandle]:
    """What CUDA counts, in its order: told by torch where it can, else looked up."""
    import torch

    if torch.cuda.is_available():
        return [_by_uuid(index) for index in range(torch.cuda.device_count())]
    return visible()


def _by_uuid(index: int) -> NvmlHandle:
    """What CUDA counts by a number: a whole GPU, or a MIG slice of one."""
    import torch

    uuid = torch.cuda.get_device_properties(index).uuid
    whole = _query("nvmlDeviceGetHandleByUUID", f"GPU-{uuid}")
    if not isinstance(whole, NotReadableError):
        return whole
    part = _query("nvmlDeviceGetHandleByUUID", f"MIG-{uuid}")
    return whole if isinstance(part, NotReadableError) else part


def _number_is_sure(index: int) -> bool:
    words = _words()
    if os.environ.get(ORDER) == "PCI_BUS_ID" or (words is not None and words[index].startswith(("GPU-", "MIG-"))):
        return True
    names = [_query("nvmlDeviceGetName", handle) for handle in _every()]
    return len({name for name in names if not isinstance(name, NotReadableError)}) <= 1


def _every() -> list[NvmlHandle]:
    return [_query("nvmlDeviceGetHandleByIndex", index) for index in range(call("nvmlDeviceGetCount"))]


def _words() -> list[str] | None:
    """Entries of CUDA_VISIBLE_DEVICES; None where it is not set."""
    told = os.environ.get(VISIBLE)
    return None if told is None else [word.strip() for word in told.split(",")]


def visible() -> list[NvmlHandle]:
    """Handles of the GPUs that CUDA_VISIBLE_DEVICES leaves, read as CUDA reads it.

    Entries are numbers, ``GPU-`` UUIDs or beginnings of them, or ``MIG-`` UUIDs. What follows an entry that names
    nothing is not seen, and nothing is if one GPU is named twice. NVML counts in PCI order, lost GPUs too.

    Raises
    ------
    NotReadableError
        If there is no driver.
    """
    every, words = _every(), _words()
    if words is None:
        return every
    uuids = [str(_query("nvmlDeviceGetUUID", handle)) for handle in every]  # a lost one tells none
    found: dict[int | str, NvmlHandle] = {}
    for word in words:
        place = _place(word, uuids)
        if place is None:
            break
        if place in found:
            return []
        found[place] = every[place] if isinstance(place, int) else _query("nvmlDeviceGetHandleByUUID", place)
    return list(found.values())


def _place(word: str, uuids: Sequence[str]) -> int | str | None:
    """Place of the GPU that an entry names, or the UUID of a MIG slice; None if it names nothing."""
    if word.startswith("MIG-"):
        return None if isinstance(_query("nvmlDeviceGetHandleByUUID", word), NotReadableError) else word
    if word.isascii() and word.isdigit():
        return int(word) if int(word) < len(uuids) else None
    places = [place for place, uuid in enumerate(uuids) if word.startswith("GPU-") and uuid.startswith(word)]
    return places[0] if len(places) == 1 else None

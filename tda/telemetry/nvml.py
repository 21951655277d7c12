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
    """Call a function of NVML.

    Raises
    ------
    NotReadableError
        If there is no driver, it lacks the function, the GPU does not support it or is lost, or whatever else failed.
    """
    nvml = library()
    try:
        return getattr(nvml, name)(*arguments)
    except Exception as error:  # not only NVMLError: unknown versions of structures fail in ctypes
        raise NotReadableError(f"{error} ({name})") from error


def driver_version() -> str:
    """Version of the driver; raises NotReadableError without one."""
    return str(call("nvmlSystemGetDriverVersion"))


class Gpu(NamedTuple):
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


def gpus() -> list[Gpu]:
    """The GPUs that this process may use, in the order in which CUDA counts them.

    Raises
    ------
    NotReadableError
        If there is no driver, or a GPU is lost.
    """
    import torch

    if torch.cuda.is_available():
        return [find(torch.device("cuda", index)) for index in range(torch.cuda.device_count())]
    return [Gpu(index, handle) for index, handle in enumerate(visible())]


def find(device: "torch.device") -> Gpu:
    """The GPU behind a CUDA device.

    CUDA itself tells its UUID where torch can ask it. Else its number is looked up in CUDA_VISIBLE_DEVICES, which is
    sure only among GPUs of one model, named by UUID, or counted in PCI order: CUDA counts the fastest first.

    Raises
    ------
    NotReadableError
        If there is no such GPU, or no telling which it is.
    """
    import torch

    if torch.cuda.is_available():
        index = torch.cuda.current_device() if device.index is None else device.index
        return Gpu(index, _by_uuid(str(torch.cuda.get_device_properties(index).uuid)))
    index, handles = device.index or 0, visible()
    if index >= len(handles):
        told = os.environ.get(VISIBLE)
        raise NotReadableError(f"no cuda:{index} among {len(handles)} GPUs" + (f" ({VISIBLE}={told})" if told else ""))
    if not _order_is_sure():
        raise NotReadableError(f"which of several unlike GPUs is cuda:{index} is not sure: set {ORDER}=PCI_BUS_ID")
    return Gpu(index, handles[index])


def _by_uuid(uuid: str) -> Any:
    try:
        return call("nvmlDeviceGetHandleByUUID", f"GPU-{uuid}")
    except NotReadableError:
        return call("nvmlDeviceGetHandleByUUID", f"MIG-{uuid}")


def _order_is_sure() -> bool:
    if os.environ.get(VISIBLE, "").startswith(("GPU-", "MIG-")) or os.environ.get(ORDER) == "PCI_BUS_ID":
        return True
    return len({call("nvmlDeviceGetName", handle) for handle in _every()}) <= 1


def _every() -> list[Any]:
    return [call("nvmlDeviceGetHandleByIndex", index) for index in range(call("nvmlDeviceGetCount"))]


def visible() -> list[Any]:
    """Handles of the GPUs that CUDA_VISIBLE_DEVICES leaves, read as CUDA reads it.

    Entries are numbers, ``GPU-`` UUIDs or beginnings of them, or ``MIG-`` UUIDs. What follows an entry that names
    nothing is not seen, and nothing is if one GPU is named twice. NVML counts in PCI order.

    Raises
    ------
    NotReadableError
        If there is no driver, or a GPU is lost.
    """
    every = _every()
    told = os.environ.get(VISIBLE)
    if told is None:
        return every
    uuids = [str(call("nvmlDeviceGetUUID", handle)) for handle in every]
    found: dict[str, Any] = {}
    for word in (entry.strip() for entry in told.split(",")):
        named = _named(word, every, uuids)
        if named is None:
            break
        uuid, handle = named
        if uuid in found:
            return []
        found[uuid] = handle
    return list(found.values())


def _named(word: str, every: Sequence[Any], uuids: Sequence[str]) -> tuple[str, Any] | None:
    """UUID and handle of what an entry names; None if it names nothing."""
    if word.startswith("MIG-"):
        try:
            return word, call("nvmlDeviceGetHandleByUUID", word)
        except NotReadableError:
            return None
    if word.isdigit():
        places = [int(word)] if int(word) < len(every) else []
    else:
        places = [place for place, uuid in enumerate(uuids) if word.startswith("GPU-") and uuid.startswith(word)]
    if len(places) != 1:
        return None
    (place,) = places
    return uuids[place], every[place]

"""What numbers were taken on: the state of the code, and the machine."""

import math

from pydantic import Field

from tda.cases import Frozen, digest_of

BUILD_STAMP = "build.json"
"""File in an installed package that names the `Commit` it was built from."""

FAKE = "FAKE"
"""In the name of a device that a test plays: its numbers are refused by everything that shows numbers."""


class Commit(Frozen):
    """The state of the code that ran; nulls outside a git checkout."""

    hash: str | None = None
    dirty: bool | None = Field(default=None, description="whether anything that can change results is uncommitted")
    change: str | None = Field(default=None, description="digest of what is uncommitted; null where nothing is")


class Machine(Frozen):
    """What the numbers were taken on."""

    cpu: str
    cores: int
    allowed_cores: int | None = Field(default=None, description="that this process may run on; null for all of them")
    cpu_quota: float | None = Field(default=None, description="cores' worth of time that control groups leave it")
    threads: int = Field(description="that torch computes with")
    memory_bytes: int
    cache_bytes: int | None = Field(default=None, description="last-level cache; null where it cannot be read")
    gpu: str | None = None
    driver: str | None = None
    python: str
    torch: str
    transformers: str
    tda: str
    system: str
    products: str | None = Field(default=None, description="how products of each type of two bytes run on the CPU")
    compiler: str | None = Field(default=None, description="the C compiler that builds kernels; null where none is")

    @property
    def fingerprint(self) -> str:
        """Hash of all fields but this package's version: numbers of unlike fingerprints are not compared silently.

        Without limits to its cores, with bfloat16 products in hardware and without a compiler, a machine has the
        fingerprint that it had before records told of these.
        """
        usual = {name for name in ("allowed_cores", "cpu_quota", "products", "compiler") if getattr(self, name) is None}
        if self.products is not None and "bfloat16 in hardware" in self.products:
            usual.add("products")
        return digest_of(self.model_dump(mode="json", exclude={"tda", *usual}))

    @property
    def usable_cores(self) -> float:
        """How many cores' worth of time this process may use."""
        return min(self.allowed_cores or self.cores, self.cpu_quota or math.inf)

    @property
    def cores_told(self) -> str:
        """How many cores are there, and how many of them are used at most, in words."""
        allowed = f"{self.cores} cores" if self.allowed_cores is None else f"{self.allowed_cores} of {self.cores} cores"
        return allowed if self.cpu_quota is None else f"{allowed} with a quota of {self.cpu_quota:g}"

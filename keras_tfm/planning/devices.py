"""What devices can do by their makers' data sheets. Figures of one's own take their place."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any

from keras_tfm.planning.units import bytes_of

_H100 = "NVIDIA H100 data sheet: SXM, 80 GB, 1,979 TFLOPS bf16 with sparsity, half without; NVLink 900 GB/s both ways"
_NETWORK = "one 400 Gb/s port a GPU, as of NVIDIA's DGX H100 and H200 data sheets"


@dataclass(frozen=True)
class Device:
    """An accelerator.

    Attributes:
        name: Such as "H100".
        memory: Bytes.
        flops: Floating-point operations a second in bfloat16, dense, at best.
        bandwidth: Bytes a second that one device sends (in one direction) to others of its group.
        group: Devices that are joined at this bandwidth.
        network: Bytes a second that one device sends beyond its group.
        source: Where the figures are from.
    """

    name: str
    memory: int
    flops: float
    bandwidth: float
    group: int
    network: float
    source: str


_GOOGLE = "cloud.google.com/tpu/docs/"
DEVICES = {
    device.name: device
    for device in (
        Device("H100", 80 * 10**9, 989.5e12, 450e9, 8, 50e9, f"{_H100}; {_NETWORK}"),
        Device(
            "H200",
            141 * 10**9,
            989.5e12,
            450e9,
            8,
            50e9,
            f"NVIDIA H200 data sheet: SXM, 141 GB, rates and NVLink as of the H100; {_NETWORK}",
        ),
        Device(
            "A100",
            80 * 10**9,
            312e12,
            300e9,
            8,
            25e9,
            "NVIDIA A100 data sheet: SXM, 80 GB, 312 TFLOPS bf16, NVLink 600 GB/s both ways; one 200 Gb/s port a GPU, as "
            "of the DGX A100 data sheet",
        ),
        Device(
            "TPU v5e",
            16 * 10**9,
            197e12,
            200e9,
            256,
            3.1e9,
            f"{_GOOGLE}v5e: 16 GB, 197 TFLOPS bf16, 400 GB/s between chips both ways, pods of 256 chips with 6.4 Tb/s of "
            "network",
        ),
        Device(
            "TPU v5p",
            95 * 10**9,
            459e12,
            600e9,
            8960,
            3.1e9,
            f"{_GOOGLE}v5p: 95 GB, 459 TFLOPS bf16, 4,800 Gb/s between chips, pods of 8,960; network assumed as of v5e",
        ),
        Device(
            "TPU v6e",
            32 * 10**9,
            918e12,
            400e9,
            256,
            3.1e9,
            f"{_GOOGLE}v6e: 32 GB, 918 TFLOPS bf16, 800 GB/s between chips both ways, pods of 256; network assumed as of "
            "v5e",
        ),
    )
}


def find(
    name: str,
    *,
    memory: int | str | None = None,
    flops: float | None = None,
    bandwidth: int | str | None = None,
    network: int | str | None = None,
) -> Device:
    """A device of the table, with figures of one's own where they are given.

    Args:
        name: A key of `DEVICES`; case and spaces do not matter.
        memory: As `units.bytes_of` takes it.
        flops: Operations a second.
        bandwidth, network: Bytes a second, as `units.bytes_of` takes them.

    Raises:
        ValueError: for a name that is not there, and figures that are not positive.
    """
    plain = {key.lower().replace(" ", ""): device for key, device in DEVICES.items()}
    wanted = str(name).lower().replace(" ", "").replace("-", "").replace("_", "")
    if wanted not in plain:
        near = difflib.get_close_matches(wanted, plain, n=1)
        hint = f" Did you mean {plain[near[0]].name!r}?" if near else ""
        raise ValueError(
            f"No device {name!r} is known; there are {list(DEVICES)}.{hint} Take the nearest and give memory=, flops=, "
            "bandwidth= and network= of yours."
        )
    if flops is not None and not (isinstance(flops, (int, float)) and flops > 0):
        raise ValueError(f"flops must be operations a second, a positive number; got {flops!r}.")
    given: dict[str, Any] = {
        "memory": None if memory is None else bytes_of(memory),
        "flops": None if flops is None else float(flops),
        "bandwidth": None if bandwidth is None else float(bytes_of(bandwidth, "bandwidth")),
        "network": None if network is None else float(bytes_of(network, "network")),
    }
    changes = {key: value for key, value in given.items() if value is not None}
    source = plain[wanted].source
    if changes:
        source += f"; given: {', '.join(changes)}"
    return dataclasses.replace(plain[wanted], **changes, source=source)

"""Scaling curves as a picture, its assumptions printed below."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keras_tfm.planning.plan import Plan


def plot(plan: Plan, path: str | Path, most: int = 4096) -> None:
    """As `Plan.plot`."""
    try:
        from matplotlib.figure import Figure  # no window, no global state
    except ImportError as error:
        raise ImportError("Plotting needs matplotlib: pip install 'keras_tfm[visualize]'") from error
    series = plan.scaling(most)
    notes = "\n".join(textwrap.fill(f"• {note}", 175, subsequent_indent="  ") for note in plan.assumptions)
    lines = notes.count("\n") + 1
    below = 0.17 * lines + 0.75  # inches
    figure = Figure(figsize=(13, 5.2 + below), dpi=110)
    speed, size = figure.subplots(1, 2)
    figure.subplots_adjust(
        left=0.06, right=0.985, bottom=below / (5.2 + below), top=1 - 0.9 / (5.2 + below), wspace=0.18
    )
    markers = "osD^vP"
    for (name, points), marker in zip(series.items(), markers, strict=False):
        devices = [point["devices"] for point in points]
        dashes = "--" if "fsdp" in name else "-"
        share = [100 * point["tokens_per_second"] / point["ideal"] for point in points]
        speed.plot(devices, share, dashes, marker=marker, markersize=5, label=name)
        size.plot(
            devices, [point["bytes"] / 2**30 for point in points], dashes, marker=marker, markersize=5, label=name
        )
    size.axhline(plan.budget / 2**30, color="black", linewidth=1, linestyle=":", label="what a device has to give")
    for axes, title, label in (
        (speed, "Predicted speed", "% of one device's tokens a second, times the devices"),
        (size, "Predicted memory of one device", "GiB"),
    ):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set_title(title)
        axes.set_xlabel("devices, with as many rows each")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=9)
    speed.set_ylim(0, 105)
    job = plan.job
    rows = max(1, job.batch_size // plan.meshes[0].way.devices)
    figure.suptitle(
        f"{plan.described.name} on {plan.device.name}: {rows} rows of {job.sequence_length} tokens a device, {job.policy}"
        f"{', remat' if job.remat else ''}, {job.loss} loss, {job.kernel} attention",
        y=1 - 0.25 / (5.2 + below),
    )
    figure.text(0.015, 0.12 / (5.2 + below), "Assumptions\n" + notes, fontsize=8, va="bottom", family="DejaVu Sans")
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)

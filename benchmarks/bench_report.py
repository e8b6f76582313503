"""The benchmark's results as a table, as markdown, and as a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Run = Mapping[str, Any]
PEERS = ("torch", "torch.compile", "jax", "numpy", "numpy, default core")
HEADINGS = (
    "workload", "threads", "graphc", *PEERS, "best peer", "ratio", "ratio of medians", "roofline",
)  # fmt: skip


def seconds_of(result: Run, name: str, which: str = "min") -> float | None:
    """A contender's least (or "median") seconds, or None if it has none."""
    found = result["contenders"].get(name, {}).get(which)
    return None if found is None else float(found)


def best_peer(result: Run, which: str = "min") -> tuple[float, str] | None:
    """(seconds, name) of the fastest peer, or None where none ran."""
    times = [(s, name) for name in PEERS if (s := seconds_of(result, name, which)) is not None]
    return min(times, default=None)


def ratio(result: Run, which: str = "min") -> float | None:
    """The best peer's time over graphc's: above 1 graphc is faster."""
    peer, own = best_peer(result, which), seconds_of(result, "graphc", which)
    return None if peer is None or own is None else peer[0] / own


def fraction(result: Run) -> float | None:
    """The share of its roofline that graphc's step reaches, called from Python."""
    own = seconds_of(result, "graphc")
    if own is None or "roofline" not in result:
        return None
    return float(result["roofline"]["bound_seconds"]) / own


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{1e3 * seconds:.3g} ms" if seconds >= 1e-4 else f"{1e6 * seconds:.3g} us"


def _number(value: float | None, text: str) -> str:
    return "-" if value is None else text.format(value)


def rows_of(run: Run) -> list[list[str]]:
    """One row for each workload and number of threads; times are the least of all rounds."""
    rows = []
    for result in run["results"]:
        peer = best_peer(result)
        bound = f" {result['roofline']['bound']}" if "roofline" in result else ""
        rows.append(
            [
                result["name"],
                str(result["threads"]),
                *(_time(seconds_of(result, name)) for name in ("graphc", *PEERS)),
                peer[1] if peer else "-",
                _number(ratio(result), "{:.2f}"),
                _number(ratio(result, "median"), "{:.2f}"),
                _number(fraction(result), "{:.0%}" + bound),
            ]
        )
    return rows


def failures(run: Run) -> list[str]:
    """Contenders that did not run or were wrong."""
    return [
        f"{result['name']}, {result['threads']} threads, {name}: {measured['error']}"
        for result in run["results"]
        for name, measured in result["contenders"].items()
        if "error" in measured
    ]


def head(run: Run) -> list[str]:
    """What the figures were taken on and how."""
    machine = run["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    loads = [result["load"] for result in run["results"] if result["load"] is not None]
    load = f"; load average {min(loads):.1f} to {max(loads):.1f} meanwhile" if loads else ""
    clocks = " and ".join(sorted({result["clock"] for result in run["results"]}))
    return [
        f"{machine['cpu']}, {machine['cpus']} CPUs; {versions}",
        f"least of {run['rounds']} interleaved rounds ({clocks}); ratio: best peer / graphc{load}",
    ]


def table(run: Run) -> str:
    """The table for a terminal."""
    rows: Sequence[Sequence[str]] = [HEADINGS, *rows_of(run)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = [
        "  ".join(
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([*head(run), "", *lines, *failures(run)])


def markdown(run: Run) -> str:
    """The table, and every workload's kernels against their bounds."""
    rows = [HEADINGS, ["---", *["---:"] * (len(HEADINGS) - 1)], *rows_of(run)]
    lines = ["# Benchmark", "", *(f"{line}  " for line in head(run)), ""]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", *(f"- {line}" for line in failures(run)), "", "## Kernels", ""]
    for result in run["results"]:
        if "roofline" in result:
            lines += [f"### {result['title']}, {result['threads']} threads", ""]
            lines += ["```", result["roofline"]["text"], "```", ""]
    return "\n".join(lines)


def plot(run: Run, path: str) -> None:
    """A PNG: ratios to the best peer, and all kernels under the machine's roof."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    thread_counts = sorted({result["threads"] for result in run["results"]})
    names = list(dict.fromkeys(result["name"] for result in run["results"]))
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(15, max(4, 0.42 * len(names) + 1)))
    height = 0.8 / len(thread_counts)
    for number, threads in enumerate(thread_counts):
        ratios = {r["name"]: ratio(r) or 0.0 for r in run["results"] if r["threads"] == threads}
        places = [names.index(name) + height * number for name in ratios]
        left.barh(places, list(ratios.values()), height, label=f"{threads} threads")
    left.set_yticks([place + 0.4 - height / 2 for place in range(len(names))], names)
    left.invert_yaxis()
    left.axvline(1.0, color="black", linewidth=0.8)
    left.set_xlabel("best peer / graphc (longer is better)")
    left.legend()
    for threads in thread_counts:
        _roof(right, [r for r in run["results"] if r["threads"] == threads and "roofline" in r], threads)
    right.set_xscale("log")
    right.set_yscale("log")
    right.set_xlabel("FLOP / byte")
    right.set_ylabel("GFLOP/s")
    right.set_title("kernels with FLOPs, under the roof of the FMA peak and the bandwidth")
    if right.get_legend_handles_labels()[0]:
        right.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _roof(axes: Any, results: Sequence[Run], threads: int) -> None:
    if not results:
        return
    kernels = [kernel for result in results for kernel in result["roofline"]["kernels"]]
    points = [(k["intensity"], k["flops"] / k["seconds"] / 1e9) for k in kernels if k["flops"] and k["bytes"]]
    drawn = axes.scatter(*zip(*points, strict=True), s=14, label=f"{threads} threads") if points else None
    color = drawn.get_facecolor()[0] if drawn is not None else "black"
    roofline = results[0]["roofline"]
    peak = roofline["peak_flops"] / 1e9
    for (_, rate), style in ((roofline["bandwidths"][-1], "-"), (roofline["bandwidths"][1], ":")):
        ridge = peak / (rate / 1e9)
        axes.plot([0.02, ridge, 500], [0.02 * rate / 1e9, peak, peak], style, color=color, linewidth=1)

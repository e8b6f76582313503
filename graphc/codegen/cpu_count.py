"""How many threads the process may usefully run: CPU affinity and the cgroup's CPU quota."""

from __future__ import annotations

import os
from pathlib import Path


def available_cpus(root: str = "/") -> int:
    """The CPUs this process may run on, at most what its cgroups' quota pays for, at least 1.

    A quota of 1.5 CPUs counts as 1: with a thread more the kernel would stop all of them for a part of
    each period. `root` is where /proc and /sys are looked for.
    """
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    quota = cgroup_quota(root)
    return count if quota is None else max(1, min(count, int(quota)))


def cgroup_quota(root: str = "/") -> float | None:
    """The smallest CPU quota, in CPUs, of the process's cgroup and those above it; None without one.

    Reads cgroup v2's `cpu.max` and v1's `cpu.cfs_quota_us` and `cpu.cfs_period_us` (Linux's
    Documentation/admin-guide/cgroup-v2.rst and scheduler/sched-bwc.rst).
    """
    base = Path(root)
    quotas = []
    for line in (_read(base / "proc/self/cgroup") or "").splitlines():
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0" and not controllers:
            mounts = [base / "sys/fs/cgroup"]
        elif "cpu" in controllers.split(","):
            mounts = [base / "sys/fs/cgroup/cpu", base / f"sys/fs/cgroup/{controllers}"]
        else:
            continue
        for mount in mounts:
            quotas += [q for folder in _ancestors(mount, path) if (q := _folder_quota(folder)) is not None]
    return min(quotas, default=None)


def _ancestors(mount: Path, path: str) -> list[Path]:
    """The mount and every folder from it down to the cgroup (a container may show only the mount)."""
    parts = [part for part in path.split("/") if part and part != ".."]
    return [mount.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]


def _folder_quota(folder: Path) -> float | None:
    text = _read(folder / "cpu.max")
    if text is None:
        text = f"{_read(folder / 'cpu.cfs_quota_us') or ''} {_read(folder / 'cpu.cfs_period_us') or ''}"
    fields = text.split()
    if len(fields) != 2 or not all(field.isdecimal() for field in fields) or int(fields[1]) == 0:
        return None  # "max", -1, or no such file: unlimited
    return int(fields[0]) / int(fields[1])


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None

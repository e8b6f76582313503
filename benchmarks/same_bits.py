"""Runs every workload of the benchmark at 1, 2, 3 and 8 threads and compares the bits of all results.

    python benchmarks/same_bits.py [--tiny] [workload ...]

Prints a line for each workload; exits with 1 if some result differs from that of one thread.
"""

import argparse
import sys

from workloads import BY_NAME, WORKLOADS

from graphc.codegen.threads import get_num_threads, set_num_threads

THREADS = (1, 2, 3, 8)


def _same(array, other):
    return array.tobytes() == other.tobytes()


def differing(workload, tiny):
    """(thread count, result) wherever bits differ from those that one thread makes."""
    data = workload.data(tiny=tiny)
    before, expected, found = get_num_threads(), {}, []
    try:
        for threads in THREADS:
            set_num_threads(threads)
            # A contender of its own: training steps change state.
            results = workload.graphc(data).checked()
            expected = expected or results
            found += [(threads, name) for name in results if not _same(results[name], expected[name])]
    finally:
        set_num_threads(before)
    return found


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="workload", default=[w.name for w in WORKLOADS])
    parser.add_argument("--tiny", action="store_true", help="the small sizes of the tests")
    options = parser.parse_args(arguments)
    failed = False
    for name in options.names:
        found = differing(BY_NAME[name], options.tiny)
        failed |= bool(found)
        said = ", ".join(f"{result} at {threads} threads" for threads, result in found)
        print(f"{name:28}", f"DIFFERS: {said}" if found else f"same bits at {THREADS} threads", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())

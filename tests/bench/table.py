#!/usr/bin/env python3
"""Rows of kv.sh, one JSON object a line, as a table."""
import json
import statistics
import sys

SYSTEMS = ("flotilla", "etcd")


def spread(values):
    low, mid, high = min(values), statistics.median(values), max(values)
    return f"{low:,.0f} / {mid:,.0f} / {high:,.0f}"


def median(rows, name):
    return statistics.median(row[name] for row in rows)


def latency(rows):
    return f"{median(rows, 'p50_ms'):.2f} / {median(rows, 'p99_ms'):.2f}"


def line(key, systems):
    op, size, clients = key
    ours, theirs = (systems.get(name, []) for name in SYSTEMS)
    cells = [op, f"{size:,}", f"{clients}"]
    for rows in (ours, theirs):
        cells.append(spread([row["ops_per_s"] for row in rows]) if rows else "-")
    if ours and theirs:
        ratio = median(ours, "ops_per_s") / median(theirs, "ops_per_s")
        cells.append(f"{ratio:.1f}")
    else:
        cells.append("-")
    cells += [latency(rows) if rows else "-" for rows in (ours, theirs)]
    cpu = "server_cpu_s_per_1000"
    cells += [f"{median(rows, cpu):.3f}" if rows else "-" for rows in (ours, theirs)]
    if ours and theirs and median(ours, cpu) > 0:
        cells.append(f"{median(theirs, cpu) / median(ours, cpu):.1f}")
    else:
        cells.append("-")
    return cells


def main():
    table = {}
    errors = 0
    for text in sys.stdin:
        row = json.loads(text)
        key = (row["op"], row["size"], row["clients"])
        table.setdefault(key, {}).setdefault(row["system"], []).append(row)
        errors += row["errors"]
    head = ["op", "bytes", "clients", "flotilla/s min/med/max", "etcd/s min/med/max",
            "ratio", "flotilla p50/p99 ms", "etcd p50/p99 ms",
            "flotilla CPU s/1000", "etcd CPU s/1000", "ratio"]
    lines = [head] + [line(key, systems) for key, systems in table.items()]
    widths = [max(len(cells[i]) for cells in lines) for i in range(len(head))]
    for cells in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(cells, widths)))
    if errors:
        sys.exit(f"{errors} operations failed")


main()

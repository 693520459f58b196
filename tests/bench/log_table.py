#!/usr/bin/env python3
"""Rows of log.sh, one JSON object a line, as a table beside the limits."""
import json
import statistics
import sys

REPLICAS = 3
STREAM_SIZE = 65536  # from here on bandwidth is what counts


def spread(values):
    low, mid, high = min(values), statistics.median(values), max(values)
    return f"{low:,.0f} / {mid:,.0f} / {high:,.0f}"


def median(rows, name):
    return statistics.median(row[name] for row in rows)


def against(key, rows, limits):
    size, outstanding = key
    if outstanding == 1:
        ratio = median(rows, "p50_us") / median(limits, "commit_us")
        return f"{ratio:.2f} x commit_us"
    if size >= STREAM_SIZE:
        most = median(limits, "write_MBps") / REPLICAS
        return f"{100 * median(rows, 'MB_per_s') / most:.0f} % of write_MBps / {REPLICAS}"
    return ""


def main():
    limits, table = [], {}
    for text in sys.stdin:
        row = json.loads(text)
        if row["what"] == "limits":
            limits.append(row)
        else:
            table.setdefault((row["size"], row["outstanding"]), []).append(row)
    print("limits, min / median / max: " + ", ".join(
        f"{name} {spread([row[name] for row in limits])}"
        for name in limits[0] if name != "what"))
    head = ["bytes", "outstanding", "entries/s min/med/max", "MB/s", "p50 us", "p99 us",
            "WAL B/B", "entries/sync", "CPU us/entry", "against the limit"]
    lines = [head]
    for key, rows in table.items():
        lines.append([f"{key[0]:,}", f"{key[1]}",
                      spread([row["entries_per_s"] for row in rows]),
                      f"{median(rows, 'MB_per_s'):.1f}",
                      f"{median(rows, 'p50_us'):,.0f}", f"{median(rows, 'p99_us'):,.0f}",
                      f"{median(rows, 'wal_bytes_per_byte'):.2f}",
                      f"{median(rows, 'entries_per_sync'):.1f}",
                      f"{median(rows, 'cpu_us_per_entry'):.1f}",
                      against(key, rows, limits)])
    widths = [max(len(cells[i]) for cells in lines) for i in range(len(head))]
    for cells in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(cells, widths)))


main()

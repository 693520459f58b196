"""Starts a replica that is behind, and watches all of its group until it has
caught up: catchup.py FLOTILLA CLUSTER REPLICA SIZE STOP. See catchup.sh."""
import json, os, signal, subprocess, sys, time

flotilla, cluster, behind, size, stop = sys.argv[1:]
size, stop = int(size), int(stop)
LIMIT_S = 3600


def pid_of(name):
    with open(f"{cluster}/run/{name}.pid") as f:
        return int(f.read().split()[0])


def anonymous(pid):
    """Bytes of anonymous memory: a mapped file's pages are the page cache's."""
    try:
        with open(f"/proc/{pid}/status") as f:
            for line in f:
                if line.startswith("RssAnon"):
                    return int(line.split()[1]) << 10
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def replicas():
    out = subprocess.run([flotilla, "status", "--cluster", cluster, "--json"],
                         capture_output=True, text=True).stdout
    try:
        return {f"g1-{r['id']}": r for r in json.loads(out)["replicas"]
                if r["group"] == 1}
    except (ValueError, KeyError):
        return {}


def log_has(words):
    with open(f"{cluster}/log/{behind}.log", errors="replace") as f:
        return words in f.read()


names = ["g1-1", "g1-2", "g1-3"]
base = {n: anonymous(pid_of(n)) for n in names if n != behind}
peak = dict(base)
begin = time.time()
subprocess.run([flotilla, "up", "--cluster", cluster, "--no-mount"], check=True,
               stdout=subprocess.DEVNULL)
base[behind] = peak[behind] = anonymous(pid_of(behind))
installed = None
look = 0.0
while True:
    for n in names:
        peak[n] = max(peak[n], anonymous(pid_of(n)))
    now = time.time()
    if now >= look:
        look = now + 1
        if installed is None and log_has("installed a snapshot"):
            installed = now
        rs = replicas()
        commit = max((r.get("commit", 0) for r in rs.values()), default=0)
        mine = rs.get(behind, {})
        # Far behind, it does not know: the others' commit index does.
        if commit > 0 and mine.get("applied", 0) + 2000 >= commit:
            break
        leader = [n for n in rs if rs[n].get("role") == "leader"]
        if stop and now - begin > stop and leader:
            os.kill(pid_of(leader[0]), signal.SIGSTOP)
            time.sleep(3)
            os.kill(pid_of(leader[0]), signal.SIGCONT)
            stop = 0
    if now - begin > LIMIT_S:
        sys.exit(f"not caught up after {LIMIT_S} s")
    time.sleep(0.05)
took = time.time() - begin
print(json.dumps({
    "GiB": round(size / (1 << 30), 1),
    "seconds": round(took, 1),
    "MB_per_s": round(size / took / 1e6),
    "installed_after_s": round(installed - begin, 1) if installed else None,
    "growth_MiB": {n: round((peak[n] - base[n]) / (1 << 20), 1) for n in names},
    "most_MiB": {n: round(peak[n] / (1 << 20), 1) for n in names},
    "behind": behind}))

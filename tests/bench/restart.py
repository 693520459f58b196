"""Fills a cluster, kills all of it and starts it again, and watches the memory:
restart.py FLOTILLA DIR PORT SIZE WITH_ETCD ROUNDS LOCK. See restart.sh."""
import fcntl, glob, json, os, signal, statistics, subprocess, sys, threading, time

flotilla, work, port, size, with_etcd, rounds, lock = sys.argv[1:]
port, size, rounds = int(port), int(size), int(rounds)
LIMIT_S = 120
LOOK_S = 0.05
ATTEMPT_MS = 300


def run(*args, **more):
    return subprocess.run(args, stdout=subprocess.DEVNULL, **more)


class Flotilla:
    name = "flotilla"
    dir = f"{work}/cluster"

    def begin(self):
        run(flotilla, "up", "--cluster", self.dir, "--no-mount", "--groups", "1",
            "--port", str(port), check=True)

    def put(self):
        run(flotilla, "kv", "--cluster", self.dir, "put", "here", "now", check=True)

    def fill(self, name, keys, value):
        run(flotilla, "bench", "--cluster", self.dir, "--ops", "fill", "--name", name,
            "--keys", str(keys), "--sizes", str(value), "kv", check=True)

    def pids(self, replicas=False):
        names = sorted(glob.glob(f"{self.dir}/run/{'g1-' if replicas else ''}*.pid"))
        return {os.path.basename(n)[:-4]: int(open(n).read().split()[0]) for n in names}

    def start(self):
        return subprocess.Popen([flotilla, "up", "--cluster", self.dir, "--no-mount"],
                                stdout=subprocess.DEVNULL)

    def get(self):
        return subprocess.run([flotilla, "kv", "--cluster", self.dir, "-t", str(ATTEMPT_MS),
                               "get", "here"], capture_output=True).stdout


class Etcd:
    name = "etcd"
    dir = f"{work}/etcd"
    port = str(port + 50)

    def script(self, what):
        return ["tests/bench/etcd.sh", what, self.dir, self.port]

    def ctl(self, *words):
        to = ",".join(f"https://127.0.0.1:{int(self.port) + i}" for i in range(3))
        tls = f"{self.dir}/tls"
        return ["etcdctl", "--endpoints", to, "--cacert", f"{tls}/ca.crt",
                "--cert", f"{tls}/client.crt", "--key", f"{tls}/client.key",
                "--dial-timeout", f"{ATTEMPT_MS}ms", "--command-timeout", f"{ATTEMPT_MS}ms",
                *words]

    def begin(self):
        run(*self.script("up"), check=True)

    def put(self):
        run(*self.ctl("put", "here", "now"), check=True)

    def fill(self, name, keys, value):
        run("build/bench/etcd_load", "-dir", self.dir, "-port", self.port, "-op", "fill",
            "-keys", str(keys), "-size", str(value), check=True)

    def pids(self, replicas=False):
        return {f"n{i}": int(open(f"{self.dir}/n{i}.pid").read()) for i in (1, 2, 3)}

    def start(self):
        return subprocess.Popen(self.script("start"), stdout=subprocess.DEVNULL)

    def get(self):
        return subprocess.run(self.ctl("get", "here", "--print-value-only"),
                              capture_output=True).stdout


class Watch:
    """The most memory of each replica, in MiB, until it is asked."""

    def __init__(self, system):
        self.system, self.most, self.over = system, {}, False
        self.thread = threading.Thread(target=self.look)
        self.thread.start()

    def look(self):
        while not self.over:
            try:
                pids = self.system.pids(replicas=True)
            except (OSError, ValueError, IndexError):
                pids = {} # being written
            for name, pid in pids.items():
                self.note(name, pid)
            time.sleep(LOOK_S)

    def note(self, name, pid):
        most = self.most.setdefault(name, {"anon": 0, "file": 0, "shmem": 0})
        try:
            for line in open(f"/proc/{pid}/status"):
                for kind in most:
                    if line.startswith("Rss" + kind.capitalize()):
                        most[kind] = max(most[kind], int(line.split()[1]) >> 10)
        except OSError:
            pass # it was killed

    def end(self):
        self.over = True
        self.thread.join()
        return self.most


def is_dead(pid):
    """Its last thread, too, which has the sockets until then."""
    try:
        return (") Z " in open(f"/proc/{pid}/stat").read()
                and len(os.listdir(f"/proc/{pid}/task")) == 1)
    except OSError:
        return True


def restart(system):
    pids = system.pids().values()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    while not all(is_dead(pid) for pid in pids):
        time.sleep(0.01)
    began = time.monotonic()
    starting = system.start()
    while system.get().strip() != b"now":
        if time.monotonic() - began > LIMIT_S:
            sys.exit(f"{system.name} does not answer {LIMIT_S} s after its start")
    took = time.monotonic() - began
    starting.wait()
    return took


def fill(system):
    large = max(size - (1 << 30), 0) * 4 // 5 >> 20
    if large > 0:
        system.fill("large", large, 1 << 20)
    system.fill("small", (size - (large << 20)) // 4096, 4096)
    system.put()


systems = [Flotilla()] + ([Etcd()] if with_etcd == "yes" else [])
loading = {}
for s in systems:
    s.begin()
    watch = Watch(s)
    began = time.monotonic()
    fill(s)
    loading[s.name] = (round(time.monotonic() - began, 1), watch.end())
locked = open(lock or os.devnull, "w")
if lock:
    fcntl.flock(locked, fcntl.LOCK_EX)
seconds = {s.name: [] for s in systems}
watches = [Watch(s) for s in systems]
for _ in range(rounds):
    for s in systems:
        seconds[s.name].append(restart(s))
locked.close()
time.sleep(5) # what it does when it has answered counts, too
for s, watch in zip(systems, watches):
    took = seconds[s.name]
    print(json.dumps({"system": s.name, "MiB": size >> 20, "rounds": rounds,
                      "min_s": round(min(took), 2),
                      "median_s": round(statistics.median(took), 2),
                      "max_s": round(max(took), 2), "loading_s": loading[s.name][0],
                      "loading_MiB": loading[s.name][1],
                      "restarted_MiB": watch.end()}), flush=True)

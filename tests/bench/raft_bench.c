/* raft_bench DIR: the replicated log alone, in the processes and with the
 * disks, TLS and threads that ship: three replicas whose state machine forgets
 * what it applies, and a client that keeps so many entries outstanding. What it
 * has sent and not yet given to the kernel is bounded, as a clerk's is; the
 * rest waits in line, and that counts in its latency. Prints one JSON object a
 * row (make bench-log puts the limits beside them).
 *
 *   raft_bench DIR PORT SECONDS SIZES OUTSTANDING    lists with commas
 */
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/check.h"
#include "base/log.h"
#include "base/rng.h"
#include "rsm/rsm.h"
#include "transport/rpc.h"

#define METHOD_PROPOSE 0x70

enum {
    REPLICAS = 3,
    LOOK_US = 2000,
    LATENCIES_MAX = 4 << 20,
    OUTSTANDING_MAX = 1024,
    PAYLOAD_MAX = 1 << 20,
    CALL_TIMEOUT_MS = 30000,
    RETRY_US = 1000,
    SENT_SIZE_MAX = 8 << 20, /* of the connection's queue */
    WARM_US = 1000000,
};

/* What a replica tells, in memory that all processes share: an answer over the
 * net would come behind all that is outstanding. Written by one, read by
 * another, each member by itself. */
struct looked {
    uint64_t leads, wal_bytes, wal_syncs, cpu_us;
};

static const char *dir;
static uint32_t first_port;
static struct looked *looks; /* REPLICAS of them */

static void need(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "raft_bench: cannot %s\n", what);
        exit(1);
    }
}

static void address_of(uint32_t replica, char address[NET_ADDRESS_SIZE_MAX])
{
    snprintf(address, NET_ADDRESS_SIZE_MAX, "127.0.0.1:%u",
             first_port + replica);
}

static void certs_path(char path[PATH_MAX])
{
    snprintf(path, PATH_MAX, "%s/certs", dir);
}

static void make_certificates(void)
{
    char path[PATH_MAX];
    certs_path(path);
    struct tls_identity server = {
        .name = "server", .unit = "server:1", .hosts = "127.0.0.1", .days = 1};
    struct tls_identity client = {
        .name = "client", .unit = "client", .hosts = "127.0.0.1", .days = 1};
    need((mkdir(dir, 0700) == 0 || access(dir, W_OK) == 0) &&
             mkdir(path, 0700) == 0 && tls_make_ca(path, "bench", 1) == 0 &&
             tls_make_certificate(path, &server) == ERR_OK &&
             tls_make_certificate(path, &client) == ERR_OK,
         "make certificates in an empty DIR");
}

static struct net *net_make(struct net_loop *loop, const char *name,
                            struct rpc **rpc)
{
    char path[PATH_MAX], problem[512];
    struct tls_context *tls;
    certs_path(path);
    need(tls_context_new(path, name, &tls, problem, sizeof problem) == ERR_OK &&
             rpc_new(loop, tls, rpc) == ERR_OK,
         "set up TLS");
    return rpc_net(*rpc);
}

/* ---- a replica ---- */

static struct net *net;
static struct rsm *raft;
static struct raft_mark {
    raft_index index;
    raft_term term;
} applied, stored;

/* The log is cut as under a real one. */
static raft_index null_durable(struct rsm_fsm *fsm, raft_term *term)
{
    (void)fsm;
    *term = stored.term;
    return stored.index;
}

static enum err null_apply(struct rsm_fsm *fsm, struct rsm_entry *entries,
                           uint32_t count)
{
    (void)fsm;
    applied = (struct raft_mark){.index = entries[count - 1].index,
                                 .term = entries[count - 1].term};
    return ERR_OK;
}

static enum err null_checkpoint(struct rsm_fsm *fsm)
{
    (void)fsm;
    stored = applied;
    return ERR_OK;
}

/* Nobody falls behind here. */
static enum err null_snap_begin(struct rsm_fsm *fsm, void **view)
{
    (void)fsm;
    (void)view;
    return ERR_BUSY;
}

static const struct rsm_fsm_ops null_ops = {.durable = null_durable,
                                            .apply = null_apply,
                                            .checkpoint = null_checkpoint,
                                            .snap_begin = null_snap_begin};
static struct rsm_fsm null_fsm = {.ops = &null_ops};

struct propose {
    struct rsm_proposal proposal; /* first */
    struct net_request *request;
};

static void on_committed(struct rsm_proposal *p, enum err rc,
                         struct slice reply)
{
    net_reply(net, ((struct propose *)p)->request, rc, reply);
    mem_free(p);
}

static uint64_t cpu_us(void)
{
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    return (uint64_t)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) * 1000000 +
           (uint64_t)(r.ru_utime.tv_usec + r.ru_stime.tv_usec);
}

static void put(uint64_t *to, uint64_t value)
{
    __atomic_store_n(to, value, __ATOMIC_RELAXED);
}

static struct env_timer look_timer;
static struct env *look_env;
static struct looked *look_at; /* ours of `looks` */

static void look(struct env_timer *timer)
{
    struct rsm_status status;
    rsm_status(raft, &status);
    put(&look_at->leads, rsm_is_leader(raft));
    put(&look_at->wal_bytes, status.wal_bytes);
    put(&look_at->wal_syncs, status.wal_syncs);
    put(&look_at->cpu_us, cpu_us());
    env_timer_start(look_env, timer, LOOK_US);
}

static void handle(void *arg, struct net_request *request,
                   const struct net_peer *peer, net_method method,
                   struct slice body)
{
    (void)arg;
    if (method == METHOD_PROPOSE && request != NULL) {
        struct propose *p = mem_alloc(sizeof *p);
        p->request = request;
        p->proposal.done = on_committed;
        rsm_propose(raft, &p->proposal, net_keep(net, body, 0));
    } else {
        rsm_handle(raft, request, peer, method, body);
    }
}

static void peer_down(void *arg, const char *address)
{
    (void)arg;
    rsm_peer_down(raft, address);
}

static void replica_run(uint32_t replica)
{
    struct net_loop *loop;
    struct rpc *rpc;
    struct disk *disk;
    char path[PATH_MAX], address[NET_ADDRESS_SIZE_MAX];
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    need(net_loop_new(&loop) == ERR_OK, "make a loop");
    net = net_make(loop, "server", &rpc);
    address_of(replica, address);
    need(rpc_listen(rpc, address) == ERR_OK, "listen: a port is in use");
    snprintf(path, sizeof path, "%s/%u", dir, replica + 1);
    need(disk_real_open(path, &disk) == ERR_OK, "open the disk");
    struct rsm_config config = {.env = net_loop_env(loop),
                                .net = net,
                                .disk = disk,
                                .fsm = &null_fsm,
                                .group = 1,
                                .id = replica + 1,
                                .peer_count = REPLICAS};
    for (uint32_t i = 0; i < REPLICAS; i++) {
        config.peers[i].id = i + 1;
        address_of(i, config.peers[i].address);
    }
    need(rsm_new(&config, &raft) == ERR_OK, "start a replica");
    net->handler = handle;
    net->down = peer_down;
    look_at = &looks[replica];
    look_env = net_loop_env(loop);
    look_timer.fire = look;
    env_timer_start(look_env, &look_timer, LOOK_US);
    net_loop_run(loop);
    _exit(1);
}

/* ---- the client ---- */

struct client {
    struct net_loop *loop;
    struct env *env;
    struct net *net;
    char leader[NET_ADDRESS_SIZE_MAX];

    uint32_t size, outstanding; /* of this row */
    bool measuring, over;
    uint32_t in_flight;
    uint64_t committed, refused;
    uint32_t *took_us;
    struct asked *line, **line_end;
    struct env_timer timer;
    uint8_t *payload;
    struct rng rng;
};

struct asked {
    struct client *client;
    struct env_timer timer; /* to ask again */
    uint64_t began_us;
    struct asked *next; /* in line */
};

static struct client client;
static struct asked asked[OUTSTANDING_MAX];

static void send(struct asked *a);

static void ask_again(struct env_timer *timer)
{
    send((struct asked *)((char *)timer - offsetof(struct asked, timer)));
}

static void line_move(struct client *c)
{
    while (c->line != NULL &&
           net_queued(c->net, c->leader) + c->size <= SENT_SIZE_MAX) {
        struct asked *a = c->line;
        c->line = a->next;
        c->line_end = c->line == NULL ? &c->line : c->line_end;
        send(a);
    }
}

static void ask(struct asked *a)
{
    struct client *c = a->client;
    a->began_us = env_now_us(c->env);
    a->next = NULL;
    *c->line_end = a;
    c->line_end = &a->next;
    line_move(c);
}

static void on_reply(void *arg, enum err rc, struct slice body)
{
    (void)body;
    struct asked *a = arg;
    struct client *c = a->client;
    if (rc == ERR_OK && c->measuring && !c->over) {
        uint64_t took = env_now_us(c->env) - a->began_us;
        if (c->committed < LATENCIES_MAX) {
            c->took_us[c->committed] = (uint32_t)took;
        }
        c->committed++;
    }
    if (c->over) {
        if (--c->in_flight == 0) {
            net_loop_stop(c->loop);
        }
    } else if (rc == ERR_OK) {
        ask(a);
    } else {
        c->refused++;
        env_timer_start(c->env, &a->timer, RETRY_US);
    }
}

static void send(struct asked *a)
{
    struct client *c = a->client;
    struct slice body =
        slice_of(c->payload + rng_below(&c->rng, PAYLOAD_MAX), c->size);
    net_call(c->net, c->leader, METHOD_PROPOSE, &body, 1, CALL_TIMEOUT_MS,
             on_reply, a);
}

static uint64_t get(const uint64_t *from)
{
    return __atomic_load_n(from, __ATOMIC_RELAXED);
}

static struct looked looks_sum(void)
{
    struct looked sum = {0};
    for (uint32_t i = 0; i < REPLICAS; i++) {
        sum.wal_bytes += get(&looks[i].wal_bytes);
        sum.wal_syncs += get(&looks[i].wal_syncs);
        sum.cpu_us += get(&looks[i].cpu_us);
        if (get(&looks[i].leads) != 0) {
            sum.leads = 1;
            address_of(i, client.leader);
        }
    }
    return sum;
}

static void stop_timer(struct env_timer *timer)
{
    (void)timer;
    net_loop_stop(client.loop);
}

static void run_for(uint64_t us)
{
    client.timer.fire = stop_timer;
    env_timer_start(client.env, &client.timer, us);
    net_loop_run(client.loop);
}

static int compare_u32(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void print_row(const struct client *c, double seconds,
                      const struct looked *before, const struct looked *after)
{
    uint64_t n = c->committed;
    uint64_t kept = n < LATENCIES_MAX ? n : LATENCIES_MAX;
    need(n > 0, "commit anything in this time");
    qsort(c->took_us, kept, sizeof *c->took_us, compare_u32);
    double proposed = (double)n * c->size * REPLICAS;
    printf("{\"what\": \"log\", \"size\": %u, \"outstanding\": %u, "
           "\"entries_per_s\": %.1f, \"MB_per_s\": %.2f, \"p50_us\": %u, "
           "\"p99_us\": %u, \"wal_bytes_per_byte\": %.3f, "
           "\"entries_per_sync\": %.1f, \"cpu_us_per_entry\": %.1f, "
           "\"refused\": %" PRIu64 "}\n",
           c->size, c->outstanding, (double)n / seconds,
           (double)n * c->size / seconds / 1e6, c->took_us[kept / 2],
           c->took_us[kept * 99 / 100],
           (double)(after->wal_bytes - before->wal_bytes) / proposed,
           (double)n * REPLICAS /
               (double)(after->wal_syncs - before->wal_syncs + 1),
           (double)(after->cpu_us - before->cpu_us) / (double)n, c->refused);
    fflush(stdout);
}

static void row(uint32_t size, uint32_t outstanding, double seconds)
{
    struct client *c = &client;
    need(looks_sum().leads != 0, "find a leader");
    c->size = size;
    c->outstanding = c->in_flight = outstanding;
    c->measuring = c->over = false;
    c->committed = c->refused = 0;
    c->line = NULL;
    c->line_end = &c->line;
    for (uint32_t i = 0; i < outstanding; i++) {
        asked[i] = (struct asked){.client = c, .timer.fire = ask_again};
        ask(&asked[i]);
    }
    run_for(WARM_US);
    struct looked before = looks_sum();
    c->measuring = true;
    uint64_t began = env_now_us(c->env);
    run_for((uint64_t)(seconds * 1e6));
    double took = (double)(env_now_us(c->env) - began) / 1e6;
    struct looked after = looks_sum();
    c->over = true;
    for (; c->line != NULL; c->line = c->line->next) {
        c->in_flight--; /* was not sent, and has nothing to wait for */
    }
    net_loop_run(c->loop);
    print_row(c, took, &before, &after);
}

static void client_start(void)
{
    struct client *c = &client;
    struct rpc *rpc;
    need(net_loop_new(&c->loop) == ERR_OK, "make a loop");
    c->env = net_loop_env(c->loop);
    c->net = net_make(c->loop, "client", &rpc);
    c->rng.state = rng_entropy();
    c->took_us = mem_array(LATENCIES_MAX, sizeof *c->took_us);
    c->payload = mem_array(2, PAYLOAD_MAX);
    for (uint32_t i = 0; i < 2 * PAYLOAD_MAX; i++) {
        c->payload[i] = (uint8_t)rng_next(&c->rng);
    }
    while (looks_sum().leads == 0) {
        run_for(RETRY_US * 100);
    }
}

/* "1,16,64"; at most 16. */
static uint32_t list_of(const char *text, uint32_t max, uint32_t list[16])
{
    uint32_t count = 0;
    for (const char *at = text; count < 16; at++) {
        char *end;
        unsigned long value = strtoul(at, &end, 10);
        need(end != at && value >= 1 && value <= max, "read the numbers");
        list[count++] = (uint32_t)value;
        at = end;
        if (*at != ',') {
            break;
        }
    }
    return count;
}

int main(int argc, char **argv)
{
    if (argc != 6) {
        fprintf(stderr,
                "usage: raft_bench DIR PORT SECONDS SIZES OUTSTANDING\n");
        return 2;
    }
    uint32_t sizes[16], outstandings[16];
    dir = argv[1];
    first_port = (uint32_t)strtoul(argv[2], NULL, 10);
    double seconds = strtod(argv[3], NULL);
    uint32_t size_count = list_of(argv[4], PAYLOAD_MAX, sizes);
    uint32_t count = list_of(argv[5], OUTSTANDING_MAX, outstandings);
    signal(SIGPIPE, SIG_IGN);
    log_set_level(LOG_LEVEL_ERROR);
    make_certificates();
    looks = mmap(NULL, REPLICAS * sizeof *looks, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    need(looks != MAP_FAILED, "share memory");
    pid_t pids[REPLICAS];
    for (uint32_t i = 0; i < REPLICAS; i++) {
        pids[i] = fork();
        if (pids[i] == 0) {
            replica_run(i);
        }
    }
    client_start();
    for (uint32_t s = 0; s < size_count; s++) {
        for (uint32_t i = 0; i < count; i++) {
            row(sizes[s], outstandings[i], seconds);
        }
    }
    for (uint32_t i = 0; i < REPLICAS; i++) {
        kill(pids[i], SIGKILL);
        waitpid(pids[i], NULL, 0);
    }
    return 0;
}

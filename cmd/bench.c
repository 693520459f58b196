/* flotilla bench kv: closed-loop clients on the store over TLS, one JSON object
 * a row. Each client has one request outstanding; all share one process and one
 * connection per server, as the threads of a mount do. Before gets are measured
 * every key is put, and a get that does not bring its value is an error. */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/rng.h"
#include "cmd/args.h"
#include "cmd/cluster.h"
#include "cmd/cmd.h"
#include "cmd/process.h"

enum {
    CONNECT_MS = 10000,
    OP_TIMEOUT_MS = 30000,
    CLIENTS_MAX = 4096,
    LATENCIES_MAX = 4 << 20, /* kept; more are counted and not kept */
    FILL_CLIENTS = 64,
};

struct bench_row {
    bool is_get;
    bool is_fill; /* puts each key once, and measures nothing */
    uint32_t value_size;
    uint32_t client_count;
    uint64_t warm_us, run_us;
    uint64_t key_count;
    const char *name;   /* keys begin with it */
    uint64_t pause_us;  /* a client starts a request that often; 0: at once */
    uint64_t slow_us;   /* print those that took longer; 0: none */
    uint64_t one_shard; /* all keys are in this one; NO_SHARD: anywhere */
};
#define NO_SHARD UINT64_MAX

struct bench_client {
    struct skv_txn txn; /* first */
    struct skv_item item;
    struct bench *bench;
    struct buf key;
    uint64_t began_us;
    uint64_t due_us; /* the next request */
    struct env_timer timer;
};

/* Of all servers; it means nothing once one of them is another process. */
struct used_cpu {
    uint64_t ticks;
    uint64_t pids; /* a sum of who they are */
};

struct bench {
    struct skv_client_task task; /* first */
    struct bench_row row;
    struct cluster_access access;
    struct skv_client_config config;
    struct cluster cluster; /* for the servers' pids; replica_count may be 0 */
    struct env *env;
    struct skv_clerk *clerk;
    struct env_timer timer;
    struct env_job end;
    struct bench_client *clients;
    struct rng rng;
    uint8_t *value;
    bool warm, over;
    uint32_t running;
    uint64_t fill_next; /* key */
    uint64_t warm_at_us, over_at_us;
    uint32_t *latencies_us;
    uint64_t done_count, error_count;
    enum err last_error;
    struct used_cpu cpu_before, cpu_after;
};

static struct used_cpu servers_cpu(const struct bench *b)
{
    struct used_cpu used = {0};
    for (uint32_t i = 0; i < b->cluster.replica_count; i++) {
        char path[PATH_MAX];
        cluster_path(&b->cluster, "run", b->cluster.replicas[i].name, ".pid",
                     path);
        pid_t pid = process_alive(path);
        used.ticks += pid == 0 ? 0 : process_cpu_ticks(pid);
        used.pids = used.pids * 31 + (uint64_t)pid;
    }
    return used;
}

/* ---- on the loop ---- */

static void key_make(struct bench *b, struct buf *key, uint64_t number)
{
    char name[64];
    snprintf(name, sizeof name, "%.32s-%" PRIu64, b->row.name, number);
    buf_clear(key);
    if (b->row.one_shard == NO_SHARD) {
        skv_key_of_name(key, slice_text(name), skv_clerk_shard_count(b->clerk));
        return;
    }
    set_be64(buf_extend(key, SKV_OBJECT_SIZE),
             b->row.one_shard << 48 | SKV_OBJECT_KV);
    buf_append(key, name, strlen(name));
}

static void client_next(struct bench_client *c)
{
    struct bench *b = c->bench;
    uint64_t number =
        b->row.is_fill ? b->fill_next++ : rng_below(&b->rng, b->row.key_count);
    key_make(b, &c->key, number);
    c->item = (struct skv_item){.key = buf_slice(&c->key)};
    if (b->row.is_get) {
        c->item.kind = SKV_GET;
        c->item.number = b->row.value_size;
    } else {
        c->item.kind = SKV_PUT;
        /* Another window of the random bytes each time. */
        size_t from = (size_t)rng_below(&b->rng, 4096);
        c->item.data = slice_of(b->value + from, b->row.value_size);
    }
    c->began_us = env_now_us(b->env);
    c->txn.items = &c->item;
    c->txn.item_count = 1;
    c->txn.timeout_ms = OP_TIMEOUT_MS;
    skv_clerk_run(b->clerk, &c->txn);
}

/* When it ended, on the clock of the servers' logs. */
static void print_slow(struct bench *b, uint64_t took_us)
{
    uint64_t now_us = env_wall_us(b->env);
    time_t now_s = (time_t)(now_us / 1000000);
    struct tm tm;
    char text[32];
    strftime(text, sizeof text, "%H:%M:%S", gmtime_r(&now_s, &tm));
    fprintf(stderr, "%s.%03u a request took %" PRIu64 " ms\n", text,
            (unsigned)(now_us / 1000 % 1000), took_us / 1000);
}

static void count(struct bench *b, struct bench_client *c)
{
    enum err rc = c->txn.rc;
    if (rc == ERR_OK && b->row.is_get) {
        const struct skv_result *result = &c->txn.results[0];
        rc = (enum err)result->rc;
        if (rc == ERR_OK && result->data.size != b->row.value_size) {
            rc = ERR_CORRUPT;
        }
    }
    if (rc != ERR_OK) {
        b->error_count++;
        b->last_error = rc;
    } else if (b->warm && !b->over) {
        uint64_t took = env_now_us(b->env) - c->began_us;
        if (b->row.slow_us > 0 && took > b->row.slow_us) {
            print_slow(b, took);
        }
        if (b->done_count < LATENCIES_MAX) {
            b->latencies_us[b->done_count] = (uint32_t)took;
        }
        b->done_count++;
    }
}

/* Out of the clerk's callback, so that the clerk can be freed. */
static void end(struct env_job *job)
{
    struct bench *b =
        (struct bench *)((char *)job - offsetof(struct bench, end));
    skv_clerk_free(b->clerk);
    skv_client_task_finish(&b->task);
}

static void client_due(struct env_timer *timer)
{
    client_next((struct bench_client *)((char *)timer -
                                        offsetof(struct bench_client, timer)));
}

/* A slow answer delays what follows, and the client does not catch up. */
static void client_pause(struct bench_client *c)
{
    struct bench *b = c->bench;
    uint64_t now_us = env_now_us(b->env);
    c->due_us += b->row.pause_us;
    if (c->due_us <= now_us) {
        c->due_us = now_us;
        client_next(c);
        return;
    }
    c->timer.fire = client_due;
    env_timer_start(b->env, &c->timer, c->due_us - now_us);
}

static void client_done(struct skv_txn *txn)
{
    struct bench_client *c = (struct bench_client *)txn;
    struct bench *b = c->bench;
    count(b, c);
    arena_free(&txn->arena);
    memset(txn, 0, sizeof *txn);
    txn->done = client_done;
    if (b->row.is_fill && b->fill_next >= b->row.key_count) {
        b->over = true;
    }
    if (!b->over) {
        client_pause(c);
        return;
    }
    if (--b->running == 0) {
        b->end = (struct env_job){.done = end};
        env_post(b->env, &b->end);
    }
}

static void tick(struct env_timer *timer)
{
    struct bench *b =
        (struct bench *)((char *)timer - offsetof(struct bench, timer));
    if (skv_clerk_shard_count(b->clerk) == 0) {
        env_timer_start(b->env, timer, 10000);
    } else if (b->running == 0) {
        for (uint32_t i = 0; i < b->row.client_count; i++) {
            b->running++;
            client_next(&b->clients[i]);
        }
        if (!b->row.is_fill) {
            env_timer_start(b->env, timer, b->row.warm_us);
        }
    } else if (!b->warm) {
        b->warm = true;
        b->warm_at_us = env_now_us(b->env);
        b->cpu_before = servers_cpu(b);
        env_timer_start(b->env, timer, b->row.run_us);
    } else {
        b->over = true;
        b->over_at_us = env_now_us(b->env);
        b->cpu_after = servers_cpu(b);
    }
}

static void start(struct skv_client_task *task, struct env *env,
                  struct net *net, struct ctl_client *ctl)
{
    (void)ctl;
    struct bench *b = (struct bench *)task;
    b->env = env;
    b->clerk = skv_clerk_new(env, net, b->config.controllers,
                             b->config.controller_count);
    b->timer = (struct env_timer){.fire = tick};
    env_timer_start(env, &b->timer, 1000);
}

/* ---- around it ---- */

static int compare_u32(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static double percentile_ms(const struct bench *b, double fraction)
{
    uint64_t n = b->done_count < LATENCIES_MAX ? b->done_count : LATENCIES_MAX;
    if (n == 0) {
        return 0;
    }
    return b->latencies_us[(uint64_t)((double)(n - 1) * fraction)] / 1000.0;
}

static void print_row(struct bench *b)
{
    uint64_t kept =
        b->done_count < LATENCIES_MAX ? b->done_count : LATENCIES_MAX;
    qsort(b->latencies_us, kept, sizeof *b->latencies_us, compare_u32);
    double seconds = (double)(b->over_at_us - b->warm_at_us) / 1e6;
    json_t *j = json_pack(
        "{s:s, s:i, s:i, s:f, s:f, s:f, s:f, s:I}", "op",
        b->row.is_get ? "get" : "put", "size", (int)b->row.value_size,
        "clients", (int)b->row.client_count, "ops_per_s",
        (double)b->done_count / seconds, "p50_ms", percentile_ms(b, 0.5),
        "p99_ms", percentile_ms(b, 0.99), "max_ms", percentile_ms(b, 1.0),
        "errors", (json_int_t)b->error_count);
    if (b->cluster.replica_count > 0 && b->done_count > 0 &&
        b->cpu_before.pids == b->cpu_after.pids) {
        double cpu_s = (double)(b->cpu_after.ticks - b->cpu_before.ticks) /
                       (double)sysconf(_SC_CLK_TCK);
        json_object_set_new(j, "server_cpu_s_per_1000",
                            json_real(cpu_s * 1000 / (double)b->done_count));
    }
    if (b->error_count > 0) {
        json_object_set_new(j, "error", json_string(err_text(b->last_error)));
    }
    json_dumpf(j, stdout, JSON_REAL_PRECISION(4));
    printf("\n");
    fflush(stdout);
    json_decref(j);
}

static bool run_clients(struct bench *b, struct skv_client *client)
{
    b->warm = b->over = false;
    b->running = 0;
    b->fill_next = 0;
    b->done_count = b->error_count = 0;
    b->clients = mem_array(b->row.client_count, sizeof *b->clients);
    for (uint32_t i = 0; i < b->row.client_count; i++) {
        b->clients[i].bench = b;
        b->clients[i].txn.done = client_done;
    }
    b->task = (struct skv_client_task){.fn = start};
    skv_client_task_run(client, &b->task);
    for (uint32_t i = 0; i < b->row.client_count; i++) {
        buf_free(&b->clients[i].key);
    }
    mem_free(b->clients);
    return b->error_count == 0;
}

static bool fill(struct bench *b, struct skv_client *client)
{
    struct bench_row row = b->row;
    b->row.is_fill = true;
    b->row.is_get = false;
    b->row.client_count = FILL_CLIENTS;
    b->row.pause_us = 0;
    bool ok = run_clients(b, client);
    if (!ok) {
        fprintf(stderr, "flotilla: bench cannot put the keys to get: %s\n",
                err_text(b->last_error));
    }
    b->row = row;
    return ok;
}

static bool run_row(struct bench *b, struct skv_client *client)
{
    if (b->row.is_fill) {
        return fill(b, client);
    }
    if (b->row.is_get && !fill(b, client)) {
        return false;
    }
    bool ok = run_clients(b, client);
    print_row(b);
    return ok;
}

/* The next number of a list "1,16,64"; false at its end or on nonsense. */
static bool next_number(char **list, uint64_t high, uint64_t *out, bool *bad)
{
    char *one = strsep(list, ",");
    if (one == NULL) {
        return false;
    }
    *bad = !args_number(one, 1, high, out);
    return !*bad;
}

static bool run_sizes(struct bench *b, struct skv_client *client,
                      const char *sizes, const char *clients, bool *bad)
{
    bool ok = true;
    char *size_list = mem_strdup(sizes), *size_rest = size_list;
    for (uint64_t size; next_number(&size_rest, 1 << 20, &size, bad);) {
        char *count_list = mem_strdup(clients), *count_rest = count_list;
        for (uint64_t n; next_number(&count_rest, CLIENTS_MAX, &n, bad);) {
            b->row.value_size = (uint32_t)size;
            b->row.client_count = (uint32_t)n;
            ok &= run_row(b, client);
        }
        mem_free(count_list);
    }
    mem_free(size_list);
    return ok;
}

static int run(struct bench *b, const char *ops, const char *sizes,
               const char *clients)
{
    char certs_dir[PATH_MAX];
    if (!cluster_client_config(&b->access, "client", &b->config, certs_dir)) {
        return EXIT_FAILED;
    }
    struct skv_client *client =
        cluster_connect(&b->access, "client", CONNECT_MS);
    if (client == NULL) {
        return EXIT_FAILED;
    }
    bool ok = true, bad = false;
    char *list = mem_strdup(ops), *rest = list;
    for (char *op; (op = strsep(&rest, ",")) != NULL;) {
        b->row.is_get = strcmp(op, "get") == 0;
        b->row.is_fill = strcmp(op, "fill") == 0;
        bad |= !b->row.is_get && !b->row.is_fill && strcmp(op, "put") != 0;
        if (!bad) {
            ok &= run_sizes(b, client, sizes, clients, &bad);
        }
    }
    mem_free(list);
    skv_client_free(client);
    if (bad) {
        fprintf(stderr,
                "flotilla: bench wants lists: --ops put,get --sizes "
                "100,4096 --clients 1,16 (at most %d)\n",
                CLIENTS_MAX);
        return EXIT_USAGE;
    }
    return ok ? EXIT_DONE : EXIT_FAILED;
}

int cmd_bench(int argc, char **argv)
{
    struct bench *b = mem_alloc(sizeof *b);
    const char *ops = "put,get", *sizes = "100", *clients = "1,16,64,256";
    const char *name = "bench";
    uint64_t seconds = 5, warm = 1, keys = 10000, shard = NO_SHARD, pause = 0,
             slow = 0;
    const struct arg_option options[] = {
        CLUSTER_ACCESS_OPTIONS(&b->access),
        {"ops", 0, ARG_TEXT, &ops, "LIST",
         "put, get; fill: put each key once, unmeasured (put,get)"},
        {"sizes", 's', ARG_TEXT, &sizes, "LIST", "bytes of a value (100)"},
        {"clients", 'n', ARG_TEXT, &clients, "LIST",
         "outstanding requests (1,16,64,256)"},
        {"seconds", 't', ARG_NUMBER, &seconds, "S", "measured per row (5)"},
        {"warm", 0, ARG_NUMBER, &warm, "S", "before measuring (1)"},
        {"keys", 'k', ARG_NUMBER, &keys, "N", "different keys (10000)"},
        {"name", 0, ARG_TEXT, &name, "TEXT", "keys begin with it (bench)"},
        {"pause", 0, ARG_NUMBER, &pause, "MS",
         "a client starts a request that often (0: as soon as it can)"},
        {"slow", 0, ARG_NUMBER, &slow, "MS", "print requests that took longer"},
        {"shard", 0, ARG_NUMBER, &shard, "N", "all keys in this shard"},
        {0}};
    const struct arg_spec spec = {
        .usage = "bench [OPTION...] kv",
        .about = "Puts and gets random keys; prints one JSON object a row: "
                 "operations per second,\nlatencies, and the servers' CPU "
                 "seconds per 1,000 operations (with --cluster).",
        .options = options,
        .positional_min = 1,
        .positional_max = 1};
    int first = 0, status = EXIT_USAGE;
    if (args_parse(&spec, argc, argv, &first, &status)) {
        status = EXIT_USAGE;
        if (strcmp(argv[first], "kv") != 0 || seconds < 1 || seconds > 3600 ||
            warm > 3600 || keys < 1 ||
            (shard != NO_SHARD && shard >= CTL_SHARDS_MAX)) {
            fprintf(stderr, "usage: flotilla %s\n", spec.usage);
        } else {
            b->row = (struct bench_row){.warm_us = warm * 1000000 + 1,
                                        .run_us = seconds * 1000000,
                                        .key_count = keys,
                                        .name = name,
                                        .pause_us = pause * 1000,
                                        .slow_us = slow * 1000,
                                        .one_shard = shard};
            b->rng.state = rng_entropy();
            b->value = mem_alloc((1 << 20) + 4096);
            for (size_t i = 0; i < (1 << 20) + 4096; i++) {
                b->value[i] = (uint8_t)rng_next(&b->rng);
            }
            b->latencies_us = mem_array(LATENCIES_MAX, sizeof *b->latencies_us);
            if (b->access.controllers == NULL &&
                !cluster_load(cluster_dir(b->access.cluster), &b->cluster)) {
                status = EXIT_FAILED;
            } else {
                status = run(b, ops, sizes, clients);
            }
            mem_free(b->latencies_us);
            mem_free(b->value);
        }
    }
    mem_free(b);
    return status;
}

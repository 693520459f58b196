/* The labs' GenericTest: three rounds of clients that append and read for five
 * seconds, while the servers are cut apart and then restarted. */
#include "tests/labs/kv_generic.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROUNDS = 3, ROUND_MS = 5000, TEXT_MAX = 64 };

struct generic {
    const struct generic_plan *plan;
    struct kv *kv;
    bool stopped;
};

/* ---- "x CLIENT COUNT y", each once and in order ---- */

/* sscanf() would look for the end of the whole value each time. */
static bool element_read(const char *text, uint32_t *client, uint32_t *number,
                         int *size)
{
    char *end = NULL;
    if (text[0] != 'x' || text[1] != ' ') {
        return false;
    }
    *client = (uint32_t)strtoul(text + 2, &end, 10);
    if (*end != ' ') {
        return false;
    }
    *number = (uint32_t)strtoul(end + 1, &end, 10);
    *size = (int)(end + 2 - text);
    return end[0] == ' ' && end[1] == 'y';
}

bool generic_check_appends(struct kv *kv, const char *value,
                           const uint32_t *counts, uint32_t clients)
{
    uint32_t next[GENERIC_CLIENTS_MAX] = {0};
    for (int size = 0; *value != '\0'; value += size) {
        uint32_t client = 0;
        uint32_t number = 0;
        if (!element_read(value, &client, &number, &size) ||
            client >= clients) {
            kv_fail(kv, "nobody has appended \"%.40s\"", value);
            return false;
        }
        if (number != next[client]) {
            kv_fail(
                kv, "%s element x %u %u y in Append result: wanted x %u %u y",
                number < next[client] ? "duplicate" : "missing or unordered",
                client, number, client, next[client]);
            return false;
        }
        next[client]++;
    }
    for (uint32_t i = 0; i < clients; i++) {
        if (next[i] != counts[i]) {
            kv_fail(kv, "%u of %u appends of client %u are there", next[i],
                    counts[i], i);
            return false;
        }
    }
    return true;
}

/* ---- clients ---- */

static void next_write(struct generic *g, struct kv_client *c,
                       enum linear_kind kind, const char *key)
{
    char text[TEXT_MAX];
    /* Random keys: a put may not begin as another did in an earlier round. */
    uint32_t number = c->count++;
    snprintf(text, sizeof text, "x %u %u y", c->number, number);
    kv_op_begin(c, kind, key, text);
    (void)g;
}

/* Others write to the key, too: the history is judged in the end. */
static void random_step(struct generic *g, struct kv_client *c)
{
    char key[TEXT_MAX];
    uint32_t which = (uint32_t)kv_random(g->kv, g->plan->clients);
    snprintf(key, sizeof key, "%u", which);
    c->history = &g->kv->histories[which];
    if (kv_random(g->kv, 1000) < 500) {
        next_write(g, c, LINEAR_APPEND, key);
    } else if (kv_random(g->kv, 1000) < 100) {
        next_write(g, c, LINEAR_PUT, key);
    } else {
        kv_op_begin(c, LINEAR_GET, key, "");
    }
}

static void own_step(struct generic *g, struct kv_client *c)
{
    char key[TEXT_MAX];
    snprintf(key, sizeof key, "%u", c->number);
    if (kv_random(g->kv, 1000) < 500) {
        next_write(g, c, LINEAR_APPEND, key);
    } else {
        kv_op_begin(c, LINEAR_GET, key, "");
    }
}

/* Only this client writes to its key: what it reads is what it has appended. */
static void check_own(struct generic *g, struct kv_client *c)
{
    uint32_t counts[GENERIC_CLIENTS_MAX] = {0};
    if (c->record.parts[0].kind == LINEAR_GET) {
        counts[c->number] = c->count;
        generic_check_appends(g->kv, kv_value(c), counts, g->plan->clients);
    }
}

static void step(struct kv_client *c)
{
    struct generic *g = c->arg;
    bool random = g->plan->random_keys;
    if (!random) {
        check_own(g, c);
    }
    if (g->stopped) {
        return;
    }
    if (random) {
        random_step(g, c);
    } else {
        own_step(g, c);
    }
}

static void clients_begin(struct generic *g)
{
    g->stopped = false;
    for (uint32_t i = 0; i < g->plan->clients; i++) {
        struct kv_client *c = &g->kv->clients[i];
        char key[TEXT_MAX];
        snprintf(key, sizeof key, "%u", i);
        c->arg = g;
        c->then = step;
        if (!g->plan->random_keys) {
            c->count = 0;
            kv_op_begin(c, LINEAR_PUT, key, "");
        } else {
            random_step(g, c);
        }
    }
}

static void clients_finish(struct generic *g)
{
    for (uint32_t i = 0; i < g->plan->clients; i++) {
        kv_op_await(&g->kv->clients[i]);
        g->kv->clients[i].then = NULL;
    }
}

/* The labs' reader is another clerk than those that wrote. */
static void check_all(struct generic *g)
{
    struct kv_client *reader = &g->kv->clients[g->plan->clients];
    for (uint32_t i = 0; i < g->plan->clients && !kv_failed(g->kv); i++) {
        char key[TEXT_MAX];
        uint32_t counts[GENERIC_CLIENTS_MAX] = {0};
        snprintf(key, sizeof key, "%u", i);
        counts[i] = g->kv->clients[i].count;
        generic_check_appends(g->kv, kv_get(reader, key), counts,
                              g->plan->clients);
    }
}

/* ---- faults ---- */

/* Two halves, drawn anew every 1.0 to 1.2 s. */
static void partitioner(struct generic *g, uint64_t time_ms)
{
    uint64_t end_ms = kv_now_ms(g->kv) + time_ms;
    while (kv_now_ms(g->kv) < end_ms && !kv_failed(g->kv)) {
        kv_partition(g->kv, 1,
                     (uint32_t)kv_random(g->kv, 1u << g->plan->servers));
        kv_sleep(g->kv, KV_ELECTION_MS + kv_random(g->kv, 200));
    }
}

static void crash_all(struct generic *g)
{
    kv_shutdown_group(g->kv, 1);
    kv_sleep(g->kv, KV_ELECTION_MS);
    kv_start_group(g->kv, 1);
}

static void one_round(struct generic *g)
{
    clients_begin(g);
    if (g->plan->partitions) {
        kv_sleep(g->kv, 1000);
        partitioner(g, ROUND_MS);
    } else {
        kv_sleep(g->kv, ROUND_MS);
    }
    g->stopped = true;
    if (g->plan->partitions) {
        kv_connect_all(g->kv);
        kv_sleep(g->kv, KV_ELECTION_MS);
    }
    if (g->plan->crash) {
        crash_all(g);
    }
    clients_finish(g);
    if (!g->plan->random_keys) {
        check_all(g);
    }
    kv_check_logs(g->kv);
}

void generic_test(struct lab_run *run, const struct generic_plan *plan)
{
    struct kv_options options = {
        .groups = 1,
        .replicas = plan->servers,
        .clients = plan->clients + 1,
        .maxraftstate = plan->maxraftstate,
        .unreliable = plan->unreliable,
        .silence = true,
    };
    struct generic g = {.plan = plan, .kv = kv_begin(run, &options)};
    if (plan->random_keys) {
        kv_record(g.kv, plan->clients);
    }
    kv_join(g.kv, 1);
    for (int i = 0; i < ROUNDS && !kv_failed(g.kv); i++) {
        one_round(&g);
    }
    kv_check_histories(g.kv);
    kv_end(g.kv);
}

/* ---- K2, K17 ---- */

enum {
    SPEED_OPS = 1000,
    /* 3 in a heartbeat of 100 ms. */
    SPEED_MS_MAX = SPEED_OPS * 100 / 3,
};

void generic_speed(struct lab_run *run, int64_t maxraftstate)
{
    struct kv_options options = {.groups = 1,
                                 .replicas = 3,
                                 .clients = 1,
                                 .maxraftstate = maxraftstate,
                                 .slow_disks = true};
    struct kv *kv = kv_begin(run, &options);
    struct kv_client *c = &kv->clients[0];
    uint32_t count = SPEED_OPS;
    kv_join(kv, 1);
    kv_get(c, "x");
    uint64_t begun_ms = kv_now_ms(kv);
    for (uint32_t i = 0; i < SPEED_OPS && !kv_failed(kv); i++) {
        char text[TEXT_MAX];
        snprintf(text, sizeof text, "x 0 %u y", i);
        kv_append(c, "x", text);
    }
    uint64_t time_ms = kv_now_ms(kv) - begun_ms;
    generic_check_appends(kv, kv_get(c, "x"), &count, 1);
    if (time_ms > SPEED_MS_MAX) {
        kv_fail(kv, "operations completed too slowly %.1f ms/op > %.1f ms/op",
                (double)time_ms / SPEED_OPS, (double)SPEED_MS_MAX / SPEED_OPS);
    }
    kv_check_logs(kv);
    kv_end(kv);
}

/* What a row asks of the store and of the controllers: the same for both
 * harnesses. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/codec.h"
#include "tests/labs/kv_harness.h"

enum {
    CHECK_STEPS = 100000000,
    LOOK_MS = 10,
    SEGMENT_SIZE = 65536,
    SEGMENT_SIZE_SMALL = 4096,
};

/* ---- begin and end ---- */

struct kv *kv_new(struct lab_run *run, const struct kv_options *options)
{
    struct kv *kv = mem_alloc(sizeof *kv);
    kv->run = run;
    kv->options = *options;
    kv->options.admins += options->admins == 0;
    kv->options.shards += options->shards == 0 ? KV_SHARDS : 0;
    kv->clients = mem_array(options->clients, sizeof *kv->clients);
    kv->admins = mem_array(kv->options.admins, sizeof *kv->admins);
    for (uint32_t i = 0; i < options->clients; i++) {
        kv->clients[i].kv = kv;
        kv->clients[i].number = i;
    }
    for (uint32_t i = 0; i < kv->options.admins; i++) {
        kv->admins[i].kv = kv;
    }
    return kv;
}

void kv_free(struct kv *kv)
{
    for (uint32_t i = 0; i < kv->options.clients; i++) {
        struct kv_client *c = &kv->clients[i];
        CHECK(!c->busy);
        buf_free(&c->key);
        buf_free(&c->data);
        buf_free(&c->value);
    }
    for (uint32_t i = 0; i < kv->options.admins; i++) {
        arena_free(&kv->admins[i].arena);
    }
    for (uint32_t i = 0; i < kv->history_count; i++) {
        mem_free(kv->histories[i].ops);
    }
    mem_free(kv->histories);
    mem_free(kv->clients);
    mem_free(kv->admins);
    arena_free(&kv->arena);
    mem_free(kv);
}

void kv_report(struct kv *kv)
{
    struct lab_run *run = kv->run;
    struct kv_counts c;
    uint64_t time_us = kv_now_us(kv) - kv->begun_us;
    uint32_t limit_s = kv->options.seconds_max != 0 ? kv->options.seconds_max
                                                    : KV_TEST_SECONDS_MAX;
    if (time_us > limit_s * UINT64_C(1000000)) {
        kv_fail(kv, "test took longer than %u seconds", limit_s);
    }
    kv_count(kv, &c);
    run->seconds = (double)time_us / 1e6;
    run->peers = kv_group_size(kv, kv->options.groups > 0 ? 1 : 0);
    run->rpcs = c.requests > c.replies ? c.requests : c.replies;
    run->bytes = c.bytes;
    run->entries = kv->operations;
}

struct kv_tuning kv_tuning(const struct kv *kv)
{
    int64_t limit = kv->options.maxraftstate;
    if (limit < 0) {
        return (struct kv_tuning){.checkpoint_size_max = SIZE_MAX,
                                  .checkpoint_ms_max = UINT32_MAX,
                                  .log_keep_size = SIZE_MAX,
                                  .wal_segment_size = SEGMENT_SIZE};
    }
    if (limit > 0) {
        /* As the labs, nothing stays; or as what ships, a little. */
        bool keep = kv->run->seed / 2 % 2 == 0;
        return (struct kv_tuning){.checkpoint_size_max = (size_t)limit,
                                  .log_keep_size = keep ? (size_t)limit : 1,
                                  /* Who is behind is sent a snapshot. */
                                  .log_hold_size = 1,
                                  .wal_segment_size = SEGMENT_SIZE_SMALL};
    }
    return (struct kv_tuning){.wal_segment_size = SEGMENT_SIZE};
}

/* ---- chance, time, servers ---- */

uint64_t kv_random(struct kv *kv, uint64_t below)
{
    return rng_between(kv->rng, 0, below - 1);
}

uint64_t kv_now_ms(const struct kv *kv)
{
    return (kv_now_us(kv) - kv->begun_us) / 1000;
}

uint32_t kv_group_size(const struct kv *kv, uint32_t group)
{
    return group == 0 ? KV_CONTROLLERS : kv->options.replicas;
}

void kv_shutdown_group(struct kv *kv, uint32_t group)
{
    for (uint32_t i = 0; i < kv_group_size(kv, group); i++) {
        kv_shutdown(kv, group, i);
    }
}

void kv_start_group(struct kv *kv, uint32_t group)
{
    for (uint32_t i = 0; i < kv_group_size(kv, group); i++) {
        kv_start(kv, group, i);
    }
}

uint32_t kv_leader(struct kv *kv, uint32_t group)
{
    for (uint32_t tries = 0; tries < 5000 / LOOK_MS && !kv_failed(kv);
         tries++) {
        int leader = kv_leader_now(kv, group);
        if (leader >= 0) {
            return (uint32_t)leader;
        }
        kv_sleep(kv, LOOK_MS);
    }
    kv_fail(kv, "group %u has no leader", group);
    return 0;
}

static void check_log(struct kv *kv, uint32_t group, uint32_t server)
{
    int64_t limit = kv->options.maxraftstate;
    struct kv_sizes sizes;
    struct kv_counts counts;
    kv_sizes(kv, group, server, &sizes);
    kv_count(kv, &counts);
    if (limit > 0 && sizes.log > 8 * (size_t)limit) {
        kv_fail(kv, "server %u of group %u: logs were not trimmed (%zu > 8*%d)",
                server, group, sizes.log, (int)limit);
    }
    if (limit < 0 && (sizes.snapshot > 0 || counts.chunks > 0)) {
        kv_fail(kv,
                "server %u of group %u: there is a snapshot, and there may "
                "be none",
                server, group);
    }
}

void kv_check_logs(struct kv *kv)
{
    for (uint32_t g = 1; g <= kv->options.groups && !kv_failed(kv); g++) {
        for (uint32_t i = 0; i < kv->options.replicas; i++) {
            check_log(kv, g, i);
        }
    }
}

/* ---- keys ---- */

uint32_t kv_shard(const struct kv *kv, const char *key)
{
    return (uint8_t)key[0] % kv->options.shards;
}

static void key_of(const struct kv *kv, const char *key, struct buf *out)
{
    uint8_t object[SKV_OBJECT_SIZE];
    memset(object, 0xff, sizeof object);
    set_be16(object, (uint16_t)kv_shard(kv, key));
    buf_clear(out);
    buf_append(out, object, sizeof object);
    buf_append(out, key, strlen(key));
}

void kv_random_text(struct kv *kv, char *to, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        to[i] = (char)('a' + kv_random(kv, 26));
    }
    to[size] = '\0';
}

/* ---- answers ---- */

static void history_add(struct kv_history *h, const struct linear_op *op)
{
    if (h->count == h->capacity) {
        h->capacity = h->capacity == 0 ? 256 : 2 * h->capacity;
        h->ops = mem_resize(h->ops, h->capacity * sizeof *h->ops);
    }
    h->ops[h->count++] = *op;
}

static void take_value(struct kv_client *c)
{
    const struct skv_result *r = &c->txn.results[0];
    buf_clear(&c->value);
    if (r->rc == ERR_OK) {
        buf_append(&c->value, r->data.data, r->data.size);
    }
    buf_append(&c->value, "", 1);
}

static void record(struct kv_client *c)
{
    struct linear_part *part = &c->record.parts[0];
    c->record.ret = kv_now_us(c->kv);
    c->record.unknown = c->rc != ERR_OK;
    if (c->rc == ERR_OK && part->kind == LINEAR_GET) {
        part->exists = c->txn.results[0].rc == ERR_OK;
        part->data = arena_copy(&c->kv->arena, c->txn.results[0].data);
    } else if (c->rc == ERR_OK && part->kind == LINEAR_APPEND) {
        part->number = c->txn.results[0].number;
    }
    history_add(c->history, &c->record);
}

static void op_done(struct skv_txn *txn)
{
    struct kv_client *c = (struct kv_client *)txn;
    struct kv *kv = c->kv;
    c->busy = false;
    c->rc = txn->rc;
    if (c->rc == ERR_OK) {
        kv->operations++;
        if (c->record.parts[0].kind == LINEAR_GET) {
            take_value(c);
        }
    } else if (!kv->ending && c->rc != ERR_INTERRUPTED) {
        kv_fail(kv, "client %u: an operation is answered with %s", c->number,
                err_name(c->rc));
    }
    if (c->history != NULL) {
        record(c);
    }
    arena_free(&txn->arena);
    kv_wake(kv);
    if (c->then != NULL && !kv->ending && !kv_failed(kv)) {
        c->then(c);
    }
}

/* ---- operations ---- */

static void record_begin(struct kv_client *c, enum linear_kind kind)
{
    struct kv *kv = c->kv;
    c->record = (struct linear_op){
        .call = kv_now_us(kv),
        .name = (uint64_t)c->number << 32 | (kv->operations & UINT32_MAX),
        .part_count = 1,
        .parts[0] = {.kind = kind, .exists = true},
    };
    if (c->history != NULL) {
        c->record.parts[0].data = arena_copy(&kv->arena, buf_slice(&c->data));
    }
}

void kv_op_begin(struct kv_client *c, enum linear_kind kind, const char *key,
                 const char *value)
{
    static const uint8_t kinds[] = {[LINEAR_GET] = SKV_GET,
                                    [LINEAR_PUT] = SKV_PUT,
                                    [LINEAR_APPEND] = SKV_APPEND};
    if (kv_failed(c->kv)) {
        return;
    }
    CHECK(!c->busy);
    key_of(c->kv, key, &c->key);
    buf_clear(&c->data);
    buf_append(&c->data, value, strlen(value));
    record_begin(c, kind);
    c->item = (struct skv_item){
        .kind = kinds[kind],
        .key = buf_slice(&c->key),
        .number = kind == LINEAR_GET ? SKV_DATA_SIZE_MAX : 0,
        .data = buf_slice(&c->data),
    };
    c->txn =
        (struct skv_txn){.items = &c->item, .item_count = 1, .done = op_done};
    c->busy = true;
    skv_clerk_run(c->clerk, &c->txn);
}

bool kv_op_await(struct kv_client *c)
{
    return kv_await(c->kv, &c->busy, KV_ANSWER_MS, "an operation");
}

void kv_put(struct kv_client *c, const char *key, const char *value)
{
    kv_op_begin(c, LINEAR_PUT, key, value);
    kv_op_await(c);
}

void kv_append(struct kv_client *c, const char *key, const char *value)
{
    kv_op_begin(c, LINEAR_APPEND, key, value);
    kv_op_await(c);
}

const char *kv_value(const struct kv_client *c)
{
    return c->value.size > 0 ? (const char *)c->value.data : "";
}

const char *kv_get(struct kv_client *c, const char *key)
{
    kv_op_begin(c, LINEAR_GET, key, "");
    kv_op_await(c);
    return kv_value(c);
}

void kv_check(struct kv_client *c, const char *key, const char *value)
{
    const char *got = kv_get(c, key);
    if (!kv_failed(c->kv) && strcmp(got, value) != 0) {
        kv_fail(c->kv,
                "Get(%s): expected: %.100s (%zu bytes) received: %.100s "
                "(%zu bytes)",
                key, value, strlen(value), got, strlen(got));
    }
}

bool kv_is_refusal(struct slice body)
{
    struct arena a = {0};
    struct skv_reply reply;
    bool refused = skv_reply_decode(body, &a, &reply) == ERR_OK &&
                   reply.rc == ERR_WRONGGROUP;
    arena_free(&a);
    return refused;
}

/* ---- histories ---- */

void kv_record(struct kv *kv, uint32_t count)
{
    kv->histories = mem_array(count, sizeof *kv->histories);
    kv->history_count = count;
}

void kv_check_histories(struct kv *kv)
{
    for (uint32_t i = 0; i < kv->history_count && !kv_failed(kv); i++) {
        struct kv_history *h = &kv->histories[i];
        struct buf why = {0};
        enum linear_verdict verdict =
            linear_check(h->ops, h->count, CHECK_STEPS, &why);
        if (verdict != LINEAR_OK) {
            kv_fail(kv, "history of key %u, %u operations: %s", i, h->count,
                    linear_verdict_text(verdict));
            printf("%.*s", (int)why.size, (const char *)why.data);
        }
        buf_free(&why);
    }
}

/* ---- configurations ---- */

enum { MADE_UP_SERVERS = 3 };

struct group_text {
    struct ctl_server servers[KV_REPLICAS_MAX];
    char addresses[KV_REPLICAS_MAX][NET_ADDRESS_SIZE_MAX];
};

static void server_add(struct ctl_group *g, struct group_text *t, uint64_t id)
{
    uint32_t at = g->servers_count++;
    t->servers[at] =
        (struct ctl_server){.id = id, .address = slice_text(t->addresses[at])};
}

/* A group that does not run has addresses like the labs': "7x", "7y", "7z". */
static void group_fill(const struct kv *kv, uint32_t gid, struct ctl_group *g,
                       struct group_text *t)
{
    bool runs = gid <= kv->options.groups;
    uint32_t count = runs ? kv->options.replicas : MADE_UP_SERVERS;
    *g = (struct ctl_group){.gid = gid, .servers = t->servers};
    for (uint32_t i = 0; i < count; i++) {
        if (runs) {
            kv_address(kv, gid, i, t->addresses[i]);
        } else {
            snprintf(t->addresses[i], sizeof t->addresses[i], "%u%c:1", gid,
                     (int)('x' + i));
        }
        server_add(g, t, i + 1);
    }
}

static void changed(void *arg, enum err rc, uint64_t number)
{
    struct kv_admin *a = arg;
    a->waiting--;
    a->busy = a->waiting > 0;
    a->rc = rc;
    a->number = number;
    a->kv->operations += rc == ERR_OK;
    kv_wake(a->kv);
}

void kv_change_begin(struct kv_admin *a, enum ctl_change_kind kind,
                     const uint32_t *gids, uint32_t count, uint32_t shard)
{
    struct ctl_group groups[CTL_GROUPS_MAX];
    struct ctl_owner owners[CTL_GROUPS_MAX];
    if (kv_failed(a->kv)) {
        return;
    }
    struct group_text *texts = mem_array(count, sizeof *texts);
    for (uint32_t i = 0; i < count; i++) {
        group_fill(a->kv, gids[i], &groups[i], &texts[i]);
        owners[i].gid = gids[i];
    }
    struct ctl_change change = {
        .kind = (uint8_t)kind,
        .join = groups,
        .join_count = kind == CTL_JOIN ? count : 0,
        .leave = owners,
        .leave_count = kind == CTL_LEAVE ? count : 0,
        .move_shard = kind == CTL_MOVE ? shard : 0,
        .move_gid = kind == CTL_MOVE ? gids[0] : 0,
    };
    a->waiting++;
    a->busy = true;
    ctl_client_change(a->ctl, &change, 0, changed, a);
    mem_free(texts);
}

static void queried(void *arg, enum err rc, const struct ctl_config *config)
{
    struct kv_admin *a = arg;
    a->busy = false;
    kv_wake(a->kv);
    a->rc = rc;
    arena_free(&a->arena);
    a->config = (struct ctl_config){0};
    if (rc == ERR_OK) {
        ctl_config_copy(&a->arena, config, &a->config);
        a->kv->operations++;
    }
}

void kv_query_begin(struct kv_admin *a, uint64_t number)
{
    if (!kv_failed(a->kv)) {
        a->busy = true;
        ctl_client_query(a->ctl, number, 0, 0, queried, a);
    }
}

bool kv_admin_await(struct kv_admin *a)
{
    return kv_await(a->kv, &a->busy, KV_ANSWER_MS, "the controllers");
}

static void change(struct kv *kv, enum ctl_change_kind kind,
                   const uint32_t *gids, uint32_t count, uint32_t shard)
{
    struct kv_admin *a = &kv->admins[0];
    kv_change_begin(a, kind, gids, count, shard);
    if (kv_admin_await(a) && a->rc != ERR_OK) {
        kv_fail(kv, "change %d of group %u is refused: %s", (int)kind, gids[0],
                err_name(a->rc));
    }
}

void kv_join(struct kv *kv, uint32_t gid)
{
    change(kv, CTL_JOIN, &gid, 1, 0);
}

void kv_leave(struct kv *kv, uint32_t gid)
{
    change(kv, CTL_LEAVE, &gid, 1, 0);
}

void kv_joins(struct kv *kv, const uint32_t *gids, uint32_t count)
{
    change(kv, CTL_JOIN, gids, count, 0);
}

void kv_leaves(struct kv *kv, const uint32_t *gids, uint32_t count)
{
    change(kv, CTL_LEAVE, gids, count, 0);
}

void kv_move(struct kv *kv, uint32_t shard, uint32_t gid)
{
    change(kv, CTL_MOVE, &gid, 1, shard);
}

const struct ctl_config *kv_query(struct kv *kv, uint64_t number)
{
    struct kv_admin *a = &kv->admins[0];
    kv_query_begin(a, number);
    if (kv_admin_await(a) && a->rc != ERR_OK) {
        kv_fail(kv, "Query(%" PRIu64 ") gives %s", number, err_name(a->rc));
    }
    return &a->config;
}

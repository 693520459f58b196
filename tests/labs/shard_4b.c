/* Sharded key/value 4B: 10 shards, groups of 3 servers, 3 controllers. */
#include "tests/labs/kv_harness.h"

#include <stdio.h>
#include <string.h>

enum {
    G0 = 1, /* the labs' 100, 101, 102 */
    G1,
    G2,
    GROUPS = 3,
    SERVERS = 3,
    KEYS = 10,
    KEYS_MAX = 30,
    TEXT_MAX = 12,
    APPENDERS = KEYS,
};

/* Keys "0", "1", ... and what they should hold. The first client is the
 * row's, the others append beside it. */
struct shards {
    struct kv *kv;
    struct kv_client *own;
    struct buf values[KEYS_MAX]; /* ends with a zero */
    uint64_t pace_ms;            /* of the appenders */
    bool stopped;
};

static void key_name(uint32_t key, char text[TEXT_MAX])
{
    snprintf(text, TEXT_MAX, "%u", key);
}

static void value_set(struct buf *b, const char *text)
{
    buf_clear(b);
    buf_append(b, text, strlen(text) + 1);
}

static void value_add(struct buf *b, const char *text)
{
    b->size--;
    buf_append(b, text, strlen(text) + 1);
}

static void begin(struct shards *s, struct lab_run *run,
                  const struct kv_options *options)
{
    struct kv_options o = *options;
    o.groups = o.groups == 0 ? GROUPS : o.groups;
    o.replicas = SERVERS;
    o.clients = 1 + APPENDERS;
    *s = (struct shards){.kv = kv_begin(run, &o)};
    s->own = &s->kv->clients[0];
}

static void end(struct shards *s)
{
    kv_end(s->kv);
    for (uint32_t i = 0; i < KEYS_MAX; i++) {
        buf_free(&s->values[i]);
    }
}

static void put_keys(struct shards *s, uint32_t count, size_t size)
{
    char value[1024];
    char key[TEXT_MAX];
    for (uint32_t i = 0; i < count; i++) {
        key_name(i, key);
        kv_random_text(s->kv, value, size);
        value_set(&s->values[i], value);
        kv_put(s->own, key, value);
    }
}

static void check_key(struct shards *s, uint32_t i)
{
    char key[TEXT_MAX];
    key_name(i, key);
    kv_check(s->own, key, (const char *)s->values[i].data);
}

static void check_keys(struct shards *s, uint32_t count)
{
    for (uint32_t i = 0; i < count && !kv_failed(s->kv); i++) {
        check_key(s, i);
    }
}

static void check_and_append(struct shards *s, uint32_t count, size_t size)
{
    for (uint32_t i = 0; i < count && !kv_failed(s->kv); i++) {
        char key[TEXT_MAX];
        char more[64];
        check_key(s, i);
        key_name(i, key);
        kv_random_text(s->kv, more, size);
        value_add(&s->values[i], more);
        kv_append(s->own, key, more);
    }
}

static void all_groups(struct kv *kv, void (*fn)(struct kv *kv, uint32_t gid))
{
    fn(kv, G0);
    fn(kv, G1);
    fn(kv, G2);
}

/* ---- those who append beside it: client 1 + i to key i ---- */

static void append_next(void *arg)
{
    struct kv_client *c = arg;
    struct shards *s = c->arg;
    char key[TEXT_MAX];
    char more[6];
    if (s->kv->ending || kv_failed(s->kv) || s->stopped) {
        c->round = 0;
        return;
    }
    key_name(c->number - 1, key);
    kv_random_text(s->kv, more, sizeof more - 1);
    value_add(&s->values[c->number - 1], more);
    kv_op_begin(c, LINEAR_APPEND, key, more);
}

static void appended(struct kv_client *c)
{
    struct shards *s = c->arg;
    kv_after(s->kv, s->pace_ms, append_next, c);
}

static void appenders_begin(struct shards *s, uint64_t pace_ms)
{
    s->pace_ms = pace_ms;
    for (uint32_t i = 1; i <= APPENDERS; i++) {
        struct kv_client *c = &s->kv->clients[i];
        c->arg = s;
        c->then = appended;
        c->round = 1; /* until it has seen `stopped` */
        append_next(c);
    }
}

static void appenders_finish(struct shards *s)
{
    s->stopped = true;
    for (uint32_t i = 1; i <= APPENDERS; i++) {
        kv_op_await(&s->kv->clients[i]);
    }
    kv_sleep(s->kv, s->pace_ms + 1);
}

/* ---- several Gets at once ---- */

static void gets_begin(struct shards *s)
{
    for (uint32_t i = 0; i < KEYS; i++) {
        char key[TEXT_MAX];
        key_name(i, key);
        kv_op_begin(&s->kv->clients[1 + i], LINEAR_GET, key, "");
    }
}

static uint32_t gets_done(struct shards *s)
{
    uint32_t done = 0;
    for (uint32_t i = 0; i < KEYS && !kv_failed(s->kv); i++) {
        const struct kv_client *c = &s->kv->clients[1 + i];
        if (!c->busy) {
            done++;
            if (strcmp(kv_value(c), (const char *)s->values[i].data) != 0) {
                kv_fail(s->kv, "Get(%u): expected: %s received: %s", i,
                        (const char *)s->values[i].data, kv_value(c));
            }
        }
    }
    return done;
}

/* ---- S1 ---- */

static void static_shards(struct lab_run *run)
{
    struct shards s;
    begin(&s, run, &(struct kv_options){.maxraftstate = KV_NO_SNAPSHOTS});
    kv_join(s.kv, G0);
    kv_join(s.kv, G1);
    put_keys(&s, KEYS, 20);
    check_keys(&s, KEYS);
    /* Sharding should really divide the data. */
    kv_shutdown_group(s.kv, G1);
    kv_check_logs(s.kv);
    gets_begin(&s);
    kv_sleep(s.kv, 2000);
    uint32_t done = gets_done(&s);
    if (!kv_failed(s.kv) && done != 5) {
        kv_fail(s.kv, "expected 5 completions with one shard dead; got %u",
                done);
    }
    kv_start_group(s.kv, G1);
    check_keys(&s, KEYS);
    for (uint32_t i = 0; i < KEYS; i++) {
        kv_op_await(&s.kv->clients[1 + i]);
    }
    gets_done(&s);
    end(&s);
}

/* ---- S2 ---- */

/* Clerks that believe other controllers, which give G0 everything. */
static void deceive(struct shards *s)
{
    struct kv *kv = s->kv;
    for (uint32_t i = 1; i <= KEYS; i++) {
        kv_client_deceive(&kv->clients[i]);
    }
    kv_admin_redirect(&kv->admins[0]);
    kv_join(kv, G0);
}

static void rejection(struct lab_run *run)
{
    struct shards s;
    begin(&s, run,
          &(struct kv_options){.maxraftstate = KV_NO_SNAPSHOTS,
                               .other_controllers = true});
    kv_join(s.kv, G0);
    kv_join(s.kv, G1);
    put_keys(&s, KEYS, 20);
    check_keys(&s, KEYS);
    /* A shard is served by whom it leaves until it has left. */
    kv_sleep(s.kv, 1000);
    deceive(&s);
    /* G0 tells those it refuses who has the shard: the labs' clerks do not
     * listen, and ours cannot get there. */
    for (uint32_t i = 1; i <= KEYS; i++) {
        kv_client_reach(&s.kv->clients[i], G1, 0);
    }
    struct kv_counts before, after;
    kv_count(s.kv, &before);
    gets_begin(&s);
    kv_sleep(s.kv, 2000);
    uint32_t done = gets_done(&s);
    if (!kv_failed(s.kv) && done != 5) {
        kv_fail(s.kv, "expected 5 completions; got %u", done);
    }
    kv_count(s.kv, &after);
    if (after.refusals - before.refusals < KEYS - 5) {
        kv_fail(s.kv, "%d were refused",
                (int)(after.refusals - before.refusals));
    }
    kv_connect_all(s.kv);
    for (uint32_t i = 1; i <= KEYS; i++) {
        kv_op_await(&s.kv->clients[i]);
    }
    gets_done(&s);
    end(&s);
}

/* ---- S3 ---- */

static void join_leave(struct lab_run *run)
{
    struct shards s;
    begin(&s, run, &(struct kv_options){.maxraftstate = KV_NO_SNAPSHOTS});
    kv_join(s.kv, G0);
    put_keys(&s, KEYS, 5);
    check_keys(&s, KEYS);
    kv_join(s.kv, G1);
    check_and_append(&s, KEYS, 5);
    kv_leave(s.kv, G0);
    check_and_append(&s, KEYS, 5);
    /* Shards have moved by now. */
    kv_sleep(s.kv, 1000);
    kv_check_logs(s.kv);
    kv_shutdown_group(s.kv, G0);
    check_keys(&s, KEYS);
    end(&s);
}

/* ---- S4 ---- */

static void snapshot(struct lab_run *run)
{
    struct shards s;
    begin(&s, run, &(struct kv_options){.maxraftstate = 1000});
    kv_join(s.kv, G0);
    put_keys(&s, 30, 20);
    check_keys(&s, 30);
    kv_join(s.kv, G1);
    kv_join(s.kv, G2);
    kv_leave(s.kv, G0);
    check_and_append(&s, 30, 20);
    kv_leave(s.kv, G1);
    kv_join(s.kv, G0);
    check_and_append(&s, 30, 20);
    kv_sleep(s.kv, 1000);
    check_keys(&s, 30);
    kv_sleep(s.kv, 1000);
    kv_check_logs(s.kv);
    all_groups(s.kv, kv_shutdown_group);
    all_groups(s.kv, kv_start_group);
    check_keys(&s, 30);
    end(&s);
}

/* ---- S5 ---- */

static void server_of_each(struct kv *kv, uint32_t server,
                           void (*fn)(struct kv *kv, uint32_t gid,
                                      uint32_t server))
{
    fn(kv, G0, server);
    fn(kv, G1, server);
    fn(kv, G2, server);
}

static void miss_change(struct lab_run *run)
{
    struct shards s;
    begin(&s, run, &(struct kv_options){.maxraftstate = 1000});
    kv_join(s.kv, G0);
    put_keys(&s, KEYS, 20);
    check_keys(&s, KEYS);
    kv_join(s.kv, G1);
    server_of_each(s.kv, 0, kv_shutdown);
    kv_join(s.kv, G2);
    kv_leave(s.kv, G1);
    kv_leave(s.kv, G0);
    check_and_append(&s, KEYS, 20);
    kv_join(s.kv, G1);
    check_and_append(&s, KEYS, 20);
    server_of_each(s.kv, 0, kv_start);
    check_and_append(&s, KEYS, 20);
    kv_sleep(s.kv, 2000);
    server_of_each(s.kv, 1, kv_shutdown);
    kv_join(s.kv, G0);
    kv_leave(s.kv, G2);
    check_and_append(&s, KEYS, 20);
    server_of_each(s.kv, 1, kv_start);
    check_keys(&s, KEYS);
    end(&s);
}

/* ---- S6, S7, S8 ---- */

static void concurrent1(struct lab_run *run)
{
    struct shards s;
    begin(&s, run, &(struct kv_options){.maxraftstate = 100});
    kv_join(s.kv, G0);
    put_keys(&s, KEYS, 5);
    appenders_begin(&s, 10);
    kv_sleep(s.kv, 150);
    kv_join(s.kv, G1);
    kv_sleep(s.kv, 500);
    kv_join(s.kv, G2);
    kv_sleep(s.kv, 500);
    kv_leave(s.kv, G0);
    kv_shutdown_group(s.kv, G0);
    kv_sleep(s.kv, 100);
    kv_shutdown_group(s.kv, G1);
    kv_sleep(s.kv, 100);
    kv_shutdown_group(s.kv, G2);
    kv_leave(s.kv, G2);
    kv_sleep(s.kv, 100);
    all_groups(s.kv, kv_start_group);
    kv_sleep(s.kv, 100);
    kv_join(s.kv, G0);
    kv_leave(s.kv, G1);
    kv_sleep(s.kv, 500);
    kv_join(s.kv, G1);
    kv_sleep(s.kv, 1000);
    appenders_finish(&s);
    check_keys(&s, KEYS);
    end(&s);
}

static void concurrent2(struct lab_run *run)
{
    struct shards s;
    begin(&s, run, &(struct kv_options){.maxraftstate = KV_NO_SNAPSHOTS});
    kv_join(s.kv, G1);
    kv_join(s.kv, G0);
    kv_join(s.kv, G2);
    put_keys(&s, KEYS, 1);
    appenders_begin(&s, 50);
    kv_leave(s.kv, G0);
    kv_leave(s.kv, G2);
    kv_sleep(s.kv, 3000);
    kv_join(s.kv, G0);
    kv_join(s.kv, G2);
    kv_leave(s.kv, G1);
    kv_sleep(s.kv, 3000);
    kv_join(s.kv, G1);
    kv_leave(s.kv, G0);
    kv_leave(s.kv, G2);
    kv_sleep(s.kv, 3000);
    kv_shutdown_group(s.kv, G1);
    kv_shutdown_group(s.kv, G2);
    kv_sleep(s.kv, 1000);
    kv_start_group(s.kv, G1);
    kv_start_group(s.kv, G2);
    kv_sleep(s.kv, 2000);
    appenders_finish(&s);
    check_keys(&s, KEYS);
    kv_check_logs(s.kv);
    end(&s);
}

static void concurrent3(struct lab_run *run)
{
    struct shards s;
    begin(&s, run, &(struct kv_options){.maxraftstate = 300});
    kv_join(s.kv, G0);
    put_keys(&s, KEYS, 1);
    appenders_begin(&s, 0);
    uint64_t end_ms = kv_now_ms(s.kv) + 12000;
    while (kv_now_ms(s.kv) < end_ms && !kv_failed(s.kv)) {
        kv_join(s.kv, G2);
        kv_join(s.kv, G1);
        kv_sleep(s.kv, kv_random(s.kv, 900));
        all_groups(s.kv, kv_shutdown_group);
        all_groups(s.kv, kv_start_group);
        kv_sleep(s.kv, kv_random(s.kv, 900));
        kv_leave(s.kv, G1);
        kv_leave(s.kv, G2);
        kv_sleep(s.kv, kv_random(s.kv, 900));
    }
    kv_sleep(s.kv, 2000);
    appenders_finish(&s);
    check_keys(&s, KEYS);
    end(&s);
}

/* ---- S9, S10, S11 ---- */

static void unreliable1(struct lab_run *run)
{
    struct shards s;
    begin(&s, run,
          &(struct kv_options){.maxraftstate = 100, .unreliable = true});
    kv_join(s.kv, G0);
    put_keys(&s, KEYS, 5);
    kv_join(s.kv, G1);
    kv_join(s.kv, G2);
    kv_leave(s.kv, G0);
    check_and_append(&s, KEYS, 5);
    check_and_append(&s, KEYS, 5);
    kv_join(s.kv, G0);
    kv_leave(s.kv, G1);
    check_keys(&s, KEYS);
    check_keys(&s, KEYS);
    end(&s);
}

static void five_changes(struct kv *kv)
{
    kv_sleep(kv, 150);
    kv_join(kv, G1);
    kv_sleep(kv, 500);
    kv_join(kv, G2);
    kv_sleep(kv, 500);
    kv_leave(kv, G0);
    kv_sleep(kv, 500);
    kv_leave(kv, G1);
    kv_sleep(kv, 500);
    kv_join(kv, G1);
    kv_join(kv, G0);
    kv_sleep(kv, 2000);
}

static void unreliable2(struct lab_run *run)
{
    struct shards s;
    begin(&s, run,
          &(struct kv_options){.maxraftstate = 100, .unreliable = true});
    kv_join(s.kv, G0);
    put_keys(&s, KEYS, 5);
    appenders_begin(&s, 0);
    five_changes(s.kv);
    kv_network(s.kv, false);
    appenders_finish(&s);
    check_keys(&s, KEYS);
    end(&s);
}

static void random_next(struct kv_client *c)
{
    struct shards *s = c->arg;
    char key[TEXT_MAX];
    char text[32];
    if (s->stopped) {
        return;
    }
    uint32_t which = (uint32_t)kv_random(s->kv, KEYS);
    key_name(which, key);
    c->history = &s->kv->histories[which];
    snprintf(text, sizeof text, "[%u.%u]", c->number, c->count++);
    uint64_t draw = kv_random(s->kv, 1000);
    kv_op_begin(c,
                draw < 500   ? LINEAR_APPEND
                : draw < 550 ? LINEAR_PUT
                             : LINEAR_GET,
                key, draw < 550 ? text : "");
}

static void unreliable3(struct lab_run *run)
{
    struct shards s;
    begin(&s, run,
          &(struct kv_options){.maxraftstate = 100, .unreliable = true});
    kv_record(s.kv, KEYS);
    kv_join(s.kv, G0);
    for (uint32_t i = 1; i <= APPENDERS; i++) {
        struct kv_client *c = &s.kv->clients[i];
        c->arg = &s;
        c->then = random_next;
        random_next(c);
    }
    five_changes(s.kv);
    kv_network(s.kv, false);
    appenders_finish(&s);
    kv_check_histories(s.kv);
    end(&s);
}

/* ---- S12 ---- */

static void check_some(struct shards *s)
{
    for (int i = 0; i < 3; i++) {
        check_key(s, (uint32_t)kv_random(s->kv, KEYS_MAX));
    }
}

/* With checkpoints as they are, and as peers get them: compressed. */
static void check_total(struct kv *kv)
{
    enum { TOTAL_MAX = 3 * ((KEYS_MAX - 3) * 1000 + 2 * 3 * 1000 + 6000) };
    size_t plain = 0;
    size_t packed = 0;
    for (uint32_t gid = G0; gid <= G2; gid++) {
        for (uint32_t i = 0; i < SERVERS; i++) {
            struct kv_sizes sizes;
            kv_sizes(kv, gid, i, &sizes);
            plain += sizes.log + sizes.snapshot;
            packed += sizes.log + sizes.stream;
        }
    }
    kv_note(kv, "%zu bytes in all, %zu compressed", plain, packed);
    if (plain > TOTAL_MAX || packed > TOTAL_MAX) {
        kv_fail(kv,
                "snapshot + persisted Raft state are too big: %zu (compressed "
                "%zu) > %d",
                plain, packed, TOTAL_MAX);
    }
}

static void challenge1_delete(struct lab_run *run)
{
    struct shards s;
    begin(&s, run, &(struct kv_options){.maxraftstate = 1});
    kv_join(s.kv, G0);
    put_keys(&s, KEYS_MAX, 1000);
    check_some(&s);
    for (int i = 0; i < 2 && !kv_failed(s.kv); i++) {
        kv_join(s.kv, G1);
        kv_leave(s.kv, G0);
        kv_join(s.kv, G2);
        kv_sleep(s.kv, 3000);
        check_some(&s);
        kv_leave(s.kv, G1);
        kv_join(s.kv, G0);
        kv_leave(s.kv, G2);
        kv_sleep(s.kv, 3000);
        check_some(&s);
    }
    kv_join(s.kv, G1);
    kv_join(s.kv, G2);
    for (int i = 0; i < 3; i++) {
        kv_sleep(s.kv, 1000);
        check_some(&s);
    }
    if (!kv_failed(s.kv)) {
        check_total(s.kv);
    }
    check_keys(&s, KEYS_MAX);
    end(&s);
}

/* ---- S13, S14 ---- */

static void owned_by(struct kv *kv, uint32_t gid, bool owned[KV_SHARDS])
{
    const struct ctl_config *c = kv_query(kv, CTL_LATEST);
    for (uint32_t i = 0; i < KV_SHARDS && !kv_failed(kv); i++) {
        owned[i] = c->shards[i].gid == gid;
    }
}

/* The labs' clients wait for ever; these may not wait for long. */
static void check_within(struct shards *s, uint32_t key, uint64_t limit_ms)
{
    char name[TEXT_MAX];
    key_name(key, name);
    kv_op_begin(s->own, LINEAR_GET, name, "");
    if (kv_await(s->kv, &s->own->busy, limit_ms,
                 "Get of a shard that is there") &&
        strcmp(kv_value(s->own), (const char *)s->values[key].data) != 0) {
        kv_fail(s->kv, "Get(%s): expected: %s received: %s", name,
                (const char *)s->values[key].data, kv_value(s->own));
    }
}

static void put_and_check(struct shards *s, uint32_t key, uint64_t limit_ms)
{
    char name[TEXT_MAX];
    char value[16];
    key_name(key, name);
    snprintf(value, sizeof value, "%u-1", key);
    value_set(&s->values[key], value);
    kv_op_begin(s->own, LINEAR_PUT, name, value);
    kv_await(s->kv, &s->own->busy, limit_ms, "Put to a shard that is there");
    check_within(s, key, limit_ms);
}

enum { CHALLENGE_MS = 3000 };

static void challenge2_unaffected(struct lab_run *run)
{
    struct shards s;
    bool owned[KV_SHARDS] = {0};
    begin(&s, run,
          &(struct kv_options){.maxraftstate = 100, .unreliable = true});
    kv_join(s.kv, G0);
    put_keys(&s, KEYS, 3);
    kv_join(s.kv, G1);
    owned_by(s.kv, G1, owned);
    /* Migration must be over within this time. */
    kv_sleep(s.kv, 1000);
    for (uint32_t i = 0; i < KEYS; i++) {
        char key[TEXT_MAX];
        key_name(i, key);
        if (owned[kv_shard(s.kv, key)]) {
            value_set(&s.values[i], "101");
            kv_put(s.own, key, "101");
        }
    }
    kv_shutdown_group(s.kv, G0);
    kv_leave(s.kv, G0);
    kv_sleep(s.kv, 1000);
    for (uint32_t i = 0; i < KEYS && !kv_failed(s.kv); i++) {
        char key[TEXT_MAX];
        key_name(i, key);
        if (owned[kv_shard(s.kv, key)]) {
            check_within(&s, i, CHALLENGE_MS);
            put_and_check(&s, i, CHALLENGE_MS);
        }
    }
    end(&s);
}

static void challenge2_partial(struct lab_run *run)
{
    static const uint32_t all[] = {G0, G1, G2};
    static const uint32_t leavers[] = {G0, G2};
    struct shards s;
    bool moved[KV_SHARDS] = {0};
    begin(&s, run,
          &(struct kv_options){.maxraftstate = 100, .unreliable = true});
    kv_joins(s.kv, all, 3);
    kv_sleep(s.kv, 1000);
    put_keys(&s, KEYS, 3);
    owned_by(s.kv, G2, moved);
    kv_shutdown_group(s.kv, G0);
    kv_leaves(s.kv, leavers, 2);
    /* Migration must be over within this time: without G2, which would go on
     * serving what it could not hand over. */
    kv_sleep(s.kv, 1000);
    kv_shutdown_group(s.kv, G2);
    for (uint32_t i = 0; i < KEYS && !kv_failed(s.kv); i++) {
        char key[TEXT_MAX];
        key_name(i, key);
        if (moved[kv_shard(s.kv, key)]) {
            check_within(&s, i, CHALLENGE_MS);
            put_and_check(&s, i, CHALLENGE_MS);
        }
    }
    end(&s);
}

static const struct lab_row rows[] = {
    {"S1", "TestStaticShards", "static shards", static_shards, 5},
    {"S2", "TestRejection", "rejection", rejection, 5},
    {"S3", "TestJoinLeave", "join then leave", join_leave, 5},
    {"S4", "TestSnapshot4B", "snapshots, join, and leave", snapshot, 5},
    {"S5", "TestMissChange", "servers miss configuration changes...",
     miss_change, 5},
    {"S6", "TestConcurrent1", "concurrent puts and configuration changes...",
     concurrent1, 10},
    {"S7", "TestConcurrent2",
     "more concurrent puts and configuration changes...", concurrent2, 10},
    {"S8", "TestConcurrent3", "concurrent configuration change and restart...",
     concurrent3, 25},
    {"S9", "TestUnreliable1", "unreliable 1...", unreliable1, 10},
    {"S10", "TestUnreliable2", "unreliable 2...", unreliable2, 10},
    {"S11", "TestUnreliable3", "unreliable 3...", unreliable3, 10},
    {"S12", "TestChallenge1Delete", "shard deletion (challenge 1) ...",
     challenge1_delete, 10},
    {"S13", "TestChallenge2Unaffected",
     "unaffected shard access (challenge 2) ...", challenge2_unaffected, 5},
    {"S14", "TestChallenge2Partial",
     "partial migration shard access (challenge 2) ...", challenge2_partial, 5},
};

LAB_TABLE(lab_shard_4b, "4B", rows);

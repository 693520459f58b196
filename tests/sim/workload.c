/* Clerks that put, append, read and delete a few keys, alone and two at a time,
 * and the history of it all. Every token written is written once, so a value
 * says what happened to it. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "tests/linear/linear.h"
#include "tests/sim/cluster.h"
#include "tests/sim/order.h"

#define MS UINT64_C(1000)

enum {
    THREADS_MAX = 3,   /* of a clerk: operations it has under way */
    LENGTH_MAX = 1500, /* longer values are put anew: reads within writes have
                          a bound (SKV_INLINE_SIZE_MAX) */
    HISTORY_MAX = 700, /* of an object: then it is left alone */
    CHECK_STEPS = 100000000,
};

struct history {
    struct linear_op *ops;
    uint32_t count, capacity;
};

struct op {
    struct skv_txn txn; /* first */
    struct workload *workload;
    struct node *clerk;
    uint32_t object;
    uint32_t thread;
    uint64_t name;
    struct skv_item items[LINEAR_PARTS];
    struct linear_op record;
    bool canceled;
    struct op *next, *prev; /* running */
};

struct workload {
    struct cluster *cluster;
    struct arena arena; /* tokens, values read */
    struct buf keys[SIM_KEYS_MAX];
    uint64_t lengths[SIM_KEYS_MAX]; /* as last heard */
    uint32_t keys_in_object;
    struct history histories[SIM_KEYS_MAX];
    struct op *running;
    uint32_t running_count;
    uint64_t last_token;
    struct order *order;
    uint32_t operations, unknown;
    bool stopped;
};

/* ---- the order in which operations took effect ---- */

static bool op_is_delete(const struct linear_op *op, uint32_t which)
{
    return op->rank == 0 && op->part_count == 1 &&
           op->parts[0].kind == LINEAR_DELETE && op->parts[0].key == which;
}

/* The newest that runs: others wait for something. */
static struct linear_op *running_delete(struct workload *w, uint32_t object,
                                        uint32_t which)
{
    for (struct op *op = w->running; op != NULL; op = op->next) {
        if (op->object == object && op_is_delete(&op->record, which)) {
            return &op->record;
        }
    }
    return NULL;
}

static struct linear_op *unanswered_delete(const struct history *h,
                                           uint32_t which)
{
    for (uint32_t i = 0; i < h->count; i++) {
        if (h->ops[i].unknown && op_is_delete(&h->ops[i], which)) {
            return &h->ops[i];
        }
    }
    return NULL;
}

static void deleted(void *arg, struct slice key, uint64_t rank)
{
    struct workload *w = arg;
    uint32_t at = 0;
    while (at < w->cluster->plan.keys &&
           slice_compare(buf_slice(&w->keys[at]), key) != 0) {
        at++;
    }
    if (at == w->cluster->plan.keys) {
        return; /* not one of ours */
    }
    uint32_t object = at / w->keys_in_object;
    uint32_t which = at % w->keys_in_object;
    struct linear_op *op = running_delete(w, object, which);
    op = op != NULL ? op : unanswered_delete(&w->histories[object], which);
    if (op != NULL) {
        op->rank = rank;
    }
}

void workload_wrote(void *workload, struct slice key, const struct slice *data)
{
    struct workload *w = workload;
    order_wrote(w->order, key, data);
}

static void take_rank(const struct workload *w, struct linear_op *op)
{
    for (uint32_t i = 0; i < op->part_count; i++) {
        bool writes = op->parts[i].kind == LINEAR_PUT ||
                      op->parts[i].kind == LINEAR_APPEND;
        uint64_t rank =
            writes ? order_rank(w->order, order_token(op->parts[i].data)) : 0;
        if (rank != 0 && (op->rank == 0 || rank < op->rank)) {
            op->rank = rank;
        }
    }
}

struct workload *workload_new(struct cluster *c)
{
    struct workload *w = mem_alloc(sizeof *w);
    w->cluster = c;
    w->order = order_new(deleted, w);
    w->keys_in_object = c->plan.pairs ? 2 : 1;
    CHECK(c->plan.keys <= SIM_KEYS_MAX);
    for (uint32_t i = 0; i < c->plan.keys; i++) {
        char name[16];
        snprintf(name, sizeof name, "k%u", i);
        skv_key_of_name(&w->keys[i], slice_text(name), c->plan.shards);
    }
    return w;
}

void workload_free(struct workload *w)
{
    CHECK(w->running == NULL);
    for (uint32_t i = 0; i < SIM_KEYS_MAX; i++) {
        buf_free(&w->keys[i]);
        mem_free(w->histories[i].ops);
    }
    order_free(w->order);
    arena_free(&w->arena);
    mem_free(w);
}

/* ---- making an operation ---- */

static struct linear_part *part_add(struct op *op, enum linear_kind kind,
                                    uint32_t which)
{
    static const uint8_t kinds[] = {
        [LINEAR_GET] = SKV_GET,
        [LINEAR_PUT] = SKV_PUT,
        [LINEAR_APPEND] = SKV_APPEND,
        [LINEAR_DELETE] = SKV_DELETE,
        [LINEAR_CMP_LENGTH] = SKV_CMP_LENGTH,
    };
    struct workload *w = op->workload;
    uint32_t at = op->record.part_count++;
    CHECK(at < LINEAR_PARTS);
    struct linear_part *part = &op->record.parts[at];
    part->kind = kind;
    part->key = which;
    struct skv_item *item = &op->items[at];
    item->kind = kinds[kind];
    item->key = buf_slice(&w->keys[op->object * w->keys_in_object + which]);
    item->number = kind == LINEAR_GET ? SKV_DATA_SIZE_MAX / LINEAR_PARTS : 0;
    return part;
}

static void part_write(struct op *op, enum linear_kind kind, uint32_t which)
{
    struct workload *w = op->workload;
    uint32_t at = op->record.part_count;
    struct linear_part *part = part_add(op, kind, which);
    part->exists = true;
    char token[32];
    int size = snprintf(token, sizeof token, "[%" PRIu64 "]", ++w->last_token);
    part->data = arena_copy(&w->arena, slice_of(token, (size_t)size));
    op->items[at].data = part->data;
}

/* An append, or a put when the value has grown long. */
static void part_grow(struct op *op, uint32_t which)
{
    struct workload *w = op->workload;
    bool is_long =
        w->lengths[op->object * w->keys_in_object + which] > LENGTH_MAX;
    part_write(op, is_long ? LINEAR_PUT : LINEAR_APPEND, which);
}

static void op_if_length(struct op *op, uint32_t which)
{
    struct workload *w = op->workload;
    uint32_t at = op->record.part_count;
    struct linear_part *part = part_add(op, LINEAR_CMP_LENGTH, which);
    part->number = w->lengths[op->object * w->keys_in_object + which];
    op->items[at].number = part->number;
    part_grow(op, which);
}

static void op_draw(struct op *op)
{
    struct sim_world *world = op->workload->cluster->world;
    uint64_t draw = sim_between(world, 0, 99);
    uint32_t one =
        (uint32_t)sim_between(world, 0, op->workload->keys_in_object - 1);
    bool pairs = op->workload->keys_in_object == 2;
    if (world->now_us < op->workload->cluster->reads_only_until_us) {
        part_add(op, LINEAR_GET, one);
    } else if (draw < 35) {
        part_grow(op, one);
    } else if (draw < 40) {
        part_write(op, LINEAR_PUT, one);
    } else if (draw < 43) {
        part_add(op, LINEAR_DELETE, one);
    } else if (draw < 70) {
        part_add(op, LINEAR_GET, one);
    } else if (draw < 77 || !pairs) {
        op_if_length(op, one);
    } else if (draw < 84) {
        part_grow(op, 0);
        part_grow(op, 1);
    } else if (draw < 92) {
        part_add(op, LINEAR_GET, 0);
        part_add(op, LINEAR_GET, 1);
    } else if (draw < 96) {
        part_add(op, LINEAR_GET, one);
        part_grow(op, 1 - one);
    } else {
        op_if_length(op, one);
        part_grow(op, 1 - one);
    }
}

/* ---- the answer ---- */

static void history_add(struct history *h, const struct linear_op *op)
{
    if (h->count == h->capacity) {
        h->capacity = h->capacity == 0 ? 256 : 2 * h->capacity;
        h->ops = mem_resize(h->ops, h->capacity * sizeof *h->ops);
    }
    h->ops[h->count++] = *op;
}

static void take_results(struct op *op)
{
    struct workload *w = op->workload;
    for (uint32_t i = 0; i < op->record.part_count; i++) {
        struct linear_part *part = &op->record.parts[i];
        const struct skv_result *r = &op->txn.results[i];
        uint64_t *length =
            &w->lengths[op->object * w->keys_in_object + part->key];
        if (part->kind == LINEAR_GET) {
            part->exists = r->rc == ERR_OK;
            part->data = arena_copy(&w->arena, r->data);
            *length = r->data.size;
            if (r->rc != ERR_OK && r->rc != ERR_NOTFOUND) {
                sim_fail(w->cluster->world, "a get is answered with %s",
                         err_name((enum err)r->rc));
            }
        } else if (part->kind == LINEAR_APPEND) {
            part->number = r->number;
            *length = r->number + part->data.size;
        } else if (part->kind == LINEAR_PUT) {
            *length = part->data.size;
        }
    }
}

/* ERR_EXPIRED is no answer to expect here: sessions live for a day. It would
 * mean that a shard has lost what it knew of one. */
static void take_answer(struct op *op)
{
    struct workload *w = op->workload;
    struct linear_op *record = &op->record;
    switch (op->txn.rc) {
    case ERR_OK: take_results(op); break;
    case ERR_CONFLICT:
        record->conflict = true;
        record->failed = op->txn.failed;
        w->lengths[op->object * w->keys_in_object] = 0;
        if (record->failed >= record->part_count ||
            record->parts[record->failed].kind != LINEAR_CMP_LENGTH) {
            sim_fail(w->cluster->world, "a conflict names item %u",
                     record->failed);
            record->failed = 0;
        }
        break;
    case ERR_TIMEDOUT:
    case ERR_INTERRUPTED:
    case ERR_NOSPACE: /* of a retry; the first try may be in the log */
    case ERR_CLOSED: record->unknown = true; break;
    default:
        sim_fail(w->cluster->world,
                 "operation %" PRIu64 ".%" PRIu64 " is answered with %s",
                 record->name >> 32, record->name & UINT32_MAX,
                 err_name(op->txn.rc));
    }
    w->operations++;
    w->unknown += record->unknown;
    history_add(&w->histories[op->object], record);
}

static void thread_later(struct workload *w, struct node *clerk,
                         uint32_t thread, uint64_t delay_us);

static void op_done(struct skv_txn *txn)
{
    struct op *op = (struct op *)txn;
    struct workload *w = op->workload;
    struct cluster *c = w->cluster;
    op->record.ret = c->world->now_us;
    sim_mix(c->world, txn->rc);
    if (c->world->verbose) {
        sim_trace(c->world, "operation %" PRIu64 ".%" PRIu64 " ends: %s",
                  op->record.name >> 32, op->record.name & UINT32_MAX,
                  err_name(txn->rc));
    }
    take_answer(op);
    if (op->prev != NULL) {
        op->prev->next = op->next;
    } else {
        w->running = op->next;
    }
    if (op->next != NULL) {
        op->next->prev = op->prev;
    }
    w->running_count--;
    if (!op->clerk->env.dead && op->thread < THREADS_MAX) {
        thread_later(w, op->clerk, op->thread,
                     sim_delay(c->world, 10, 400 * MS));
    }
    arena_free(&txn->arena);
    mem_free(op);
}

/* ---- running ---- */

static struct op *op_new(struct workload *w, struct node *clerk,
                         uint32_t object, uint32_t thread)
{
    struct op *op = mem_alloc(sizeof *op);
    op->workload = w;
    op->clerk = clerk;
    op->object = object;
    op->thread = thread;
    op->txn.items = op->items;
    op->txn.done = op_done;
    return op;
}

static void op_run(struct op *op)
{
    struct workload *w = op->workload;
    static const char *const kinds[] = {"?",      "get",    "put",
                                        "append", "delete", "if-length"};
    op->txn.item_count = op->record.part_count;
    op->record.call = w->cluster->world->now_us;
    op->record.name =
        (uint64_t)op->clerk->number << 32 | (w->operations + w->running_count);
    op->next = w->running;
    if (op->next != NULL) {
        op->next->prev = op;
    }
    w->running = op;
    w->running_count++;
    if (w->cluster->world->verbose) {
        sim_trace(w->cluster->world,
                  "operation %" PRIu64 ".%" PRIu64 " on object %u: %s k%u %.*s",
                  op->record.name >> 32, op->record.name & UINT32_MAX,
                  op->object, kinds[op->record.parts[0].kind],
                  op->record.parts[0].key, (int)op->record.parts[0].data.size,
                  (const char *)op->record.parts[0].data.data);
    }
    skv_clerk_run(op->clerk->clerk, &op->txn);
}

struct turn {
    struct workload *workload;
    struct node *clerk;
    uint64_t life;
    uint32_t thread;
};

/* Some callers lose patience. */
static void cancel(void *arg)
{
    struct turn *t = arg;
    struct op *op = t->workload->running;
    while (op != NULL && (op->clerk != t->clerk || op->thread != t->thread)) {
        op = op->next;
    }
    if (op != NULL && t->life == t->clerk->env.life && !t->clerk->env.dead &&
        !op->canceled && t->clerk->env.paused_until_us == 0) {
        op->canceled = true;
        skv_clerk_cancel(t->clerk->clerk, &op->txn);
    }
    mem_free(t);
}

static void cancel_later(struct workload *w, struct node *clerk,
                         uint32_t thread)
{
    struct turn *t = mem_alloc(sizeof *t);
    *t = (struct turn){w, clerk, clerk->env.life, thread};
    sim_after_taking(w->cluster->world,
                     sim_delay(w->cluster->world, 0, 2000 * MS), cancel, t);
}

static void turn(void *arg)
{
    struct turn *t = arg;
    struct workload *w = t->workload;
    struct node *clerk = t->clerk;
    struct sim_world *world = w->cluster->world;
    uint32_t thread = t->thread;
    bool goes_on =
        !w->stopped && !clerk->env.dead && clerk->env.life == t->life;
    mem_free(t);
    if (!goes_on) {
        return;
    }
    uint32_t objects = w->cluster->plan.keys / w->keys_in_object;
    uint32_t object = (uint32_t)sim_between(world, 0, objects - 1);
    if (w->histories[object].count > HISTORY_MAX) {
        thread_later(w, clerk, thread, 1000 * MS);
        return;
    }
    struct op *op = op_new(w, clerk, object, thread);
    op_draw(op);
    if (sim_chance(world, 150)) {
        op->txn.timeout_ms = (uint32_t)sim_between(world, 20, 3000);
    }
    op_run(op);
    if (sim_chance(world, 30)) {
        cancel_later(w, clerk, thread);
    }
}

static void thread_later(struct workload *w, struct node *clerk,
                         uint32_t thread, uint64_t delay_us)
{
    struct turn *t = mem_alloc(sizeof *t);
    *t = (struct turn){w, clerk, clerk->env.life, thread};
    sim_after_taking(w->cluster->world, delay_us, turn, t);
}

void workload_clerk_started(struct node *clerk)
{
    struct workload *w = clerk->cluster->workload;
    uint64_t threads = sim_between(w->cluster->world, 1, THREADS_MAX);
    for (uint32_t i = 0; i < threads; i++) {
        thread_later(w, clerk, i, sim_between(w->cluster->world, 0, 500 * MS));
    }
}

void workload_stop(struct workload *w)
{
    w->stopped = true;
}

bool workload_idle(const struct workload *w)
{
    return w->running == NULL;
}

void workload_read_all(struct workload *w, struct node *clerk)
{
    uint32_t objects = w->cluster->plan.keys / w->keys_in_object;
    for (uint32_t object = 0; object < objects; object++) {
        struct op *op = op_new(w, clerk, object, THREADS_MAX);
        for (uint32_t i = 0; i < w->keys_in_object; i++) {
            part_add(op, LINEAR_GET, i);
        }
        op_run(op);
    }
}

/* ---- afterwards ---- */

void workload_describe(struct workload *w)
{
    for (struct op *op = w->running; op != NULL; op = op->next) {
        sim_trace(w->cluster->world,
                  "no answer: operation %" PRIu64 ".%" PRIu64
                  " of %.3f s, %u items, first kind %u, shard %u",
                  op->record.name >> 32, op->record.name & UINT32_MAX,
                  (double)op->record.call / 1000000, op->record.part_count,
                  op->items[0].kind, get_be16(op->items[0].key.data));
    }
}

void workload_check(struct workload *w)
{
    for (uint32_t i = 0; i < SIM_KEYS_MAX; i++) {
        struct history *h = &w->histories[i];
        struct buf why = {0};
        for (uint32_t k = 0; k < h->count; k++) {
            take_rank(w, &h->ops[k]);
        }
        enum linear_verdict verdict =
            linear_check(h->ops, h->count, CHECK_STEPS, &why);
        if (verdict != LINEAR_OK) {
            sim_fail(w->cluster->world,
                     "history of object %u, %u operations: %s", i, h->count,
                     linear_verdict_text(verdict));
            printf("%.*s", (int)why.size, (const char *)why.data);
        }
        buf_free(&why);
    }
}

uint32_t workload_operations(const struct workload *w, uint32_t *unknown)
{
    *unknown = w->unknown;
    return w->operations;
}

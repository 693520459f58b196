/* The state machine of the three replicas, their lives, and their clients. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/check.h"
#include "base/codec.h"
#include "tests/unit/rsm_cluster.h"

struct held held;

/* --- The state machine: a list of numbers, each with some bytes made from it
 * so that a snapshot has many chunks. */

static struct node *node_of_fsm(struct rsm_fsm *fsm)
{
    return (struct node *)((char *)fsm - offsetof(struct node, fsm));
}

static void list_copy(struct list *to, const struct list *from)
{
    mem_free(to->numbers);
    *to = *from;
    to->numbers = mem_array(from->count, sizeof(uint64_t));
    to->capacity = from->count;
    if (from->count > 0) {
        memcpy(to->numbers, from->numbers, from->count * sizeof(uint64_t));
    }
}

static void list_add(struct list *l, uint64_t number)
{
    if (l->count == l->capacity) {
        l->capacity = 2 * l->capacity + 16;
        l->numbers = mem_resize(l->numbers, l->capacity * sizeof(uint64_t));
    }
    l->numbers[l->count++] = number;
}

static raft_index l_durable(struct rsm_fsm *fsm, raft_term *term)
{
    struct node *n = node_of_fsm(fsm);
    *term = n->stored.term;
    return n->stored.index;
}

static enum err l_apply(struct rsm_fsm *fsm, struct rsm_entry *entries,
                        uint32_t count)
{
    struct list *l = &node_of_fsm(fsm)->now;
    for (uint32_t i = 0; i < count; i++) {
        struct rsm_entry *e = &entries[i];
        CHECK(e->index == l->index + 1);
        CHECK(e->term >= l->term);
        l->index = e->index;
        l->term = e->term;
        if (e->type == RAFT_ENTRY_COMMAND) {
            list_add(l, get_u64(e->command.data));
            if (e->reply != NULL) {
                enc_u64(e->reply, get_u64(e->command.data));
                enc_u32(e->reply, l->count - 1);
            }
        }
    }
    return ERR_OK;
}

static enum err l_checkpoint(struct rsm_fsm *fsm)
{
    struct node *n = node_of_fsm(fsm);
    list_copy(&n->stored, &n->now);
    return ERR_OK;
}

uint64_t unsaved_each;

static uint64_t l_unsaved(struct rsm_fsm *fsm)
{
    const struct node *n = node_of_fsm(fsm);
    uint32_t saved =
        n->frozen.count > n->stored.count ? n->frozen.count : n->stored.count;
    return (n->now.count - saved) * unsaved_each;
}

static enum err l_checkpoint_begin(struct rsm_fsm *fsm)
{
    struct node *n = node_of_fsm(fsm);
    list_copy(&n->frozen, &n->now);
    return ERR_OK;
}

static enum err l_checkpoint_write(struct rsm_fsm *fsm)
{
    (void)fsm;
    return ERR_OK;
}

static enum err l_checkpoint_end(struct rsm_fsm *fsm)
{
    struct node *n = node_of_fsm(fsm);
    list_copy(&n->stored, &n->frozen);
    return ERR_OK;
}

static enum err l_snap_begin(struct rsm_fsm *fsm, void **view)
{
    struct node *n = node_of_fsm(fsm);
    struct list *copy = mem_alloc(sizeof *copy);
    list_copy(copy, &n->now);
    n->snapshots++;
    *view = copy;
    return ERR_OK;
}

static void make_item(uint64_t number, uint8_t item[PAD])
{
    struct rng rng = {number};
    for (int i = 8; i < PAD; i++) {
        item[i] = (uint8_t)rng_next(&rng);
    }
    set_u64(item, number);
}

static enum err l_snap_read(struct rsm_fsm *fsm, void *view,
                            struct snap_sink *sink)
{
    (void)fsm;
    struct list *l = view;
    enum err rc = ERR_OK;
    for (uint32_t i = 0; i < l->count && rc == ERR_OK; i++) {
        uint8_t item[PAD];
        make_item(l->numbers[i], item);
        rc = sink->write(sink, slice_of(item, PAD));
    }
    return rc;
}

static void l_snap_end(struct rsm_fsm *fsm, void *view)
{
    (void)fsm;
    mem_free(((struct list *)view)->numbers);
    mem_free(view);
}

static enum err l_snap_install(struct rsm_fsm *fsm, struct snap_source *source,
                               raft_index index, raft_term term)
{
    struct node *n = node_of_fsm(fsm);
    struct buf bytes = {0};
    enum err rc = ERR_OK;
    size_t got = 1;
    while (rc == ERR_OK && got > 0) {
        size_t before = bytes.size;
        uint8_t *to = buf_extend(&bytes, 10000);
        rc = source->read(source, to, 10000, &got);
        bytes.size = before + (rc == ERR_OK ? got : 0);
    }
    if (rc != ERR_OK) {
        buf_free(&bytes);
        return rc;
    }
    struct list l = {.index = index, .term = term};
    for (size_t at = 0; at < bytes.size; at += PAD) {
        uint8_t item[PAD];
        make_item(get_u64(bytes.data + at), item);
        CHECK(memcmp(item, bytes.data + at, PAD) == 0);
        list_add(&l, get_u64(item));
    }
    buf_free(&bytes);
    list_copy(&n->now, &l);
    list_copy(&n->stored, &l);
    mem_free(l.numbers);
    n->installs++;
    return ERR_OK;
}

static const struct rsm_fsm_ops fsm_ops = {
    .durable = l_durable,
    .apply = l_apply,
    .checkpoint = l_checkpoint,
    .unsaved = l_unsaved,
    .snap_begin = l_snap_begin,
    .snap_read = l_snap_read,
    .snap_end = l_snap_end,
    .snap_install = l_snap_install,
};

const struct rsm_fsm_ops stepping_ops = {
    .durable = l_durable,
    .apply = l_apply,
    .checkpoint = l_checkpoint,
    .checkpoint_begin = l_checkpoint_begin,
    .checkpoint_write = l_checkpoint_write,
    .checkpoint_end = l_checkpoint_end,
    .unsaved = l_unsaved,
};

/* --- The cluster */

size_t keep_size;
size_t under_way_size;
uint64_t snap_rate;
uint32_t checkpoint_ms;

static void on_leader(void *arg, bool leader)
{
    struct node *n = arg;
    assert_int_not_equal(n->leader, leader);
    n->leader = leader;
    n->leader_calls++;
}

enum err node_try_start(uint32_t at)
{
    struct node *n = &nodes[at];
    n->fatal = n->leader = false;
    list_copy(&n->now, &n->stored);
    struct rsm_config config = {
        .env = &n->env,
        .net = &n->net,
        .disk = faultdisk_disk(n->disk),
        .fsm = &n->fsm,
        .group = GROUP,
        .id = at + 1,
        .peers = {{1, "1"}, {2, "2"}, {3, "3"}},
        .peer_count = NODES,
        .wal_segment_size = 16384,
        .checkpoint_ms_max = checkpoint_ms,
        .log_keep_size = keep_size,
        .under_way_size = under_way_size,
        .snap_piece_size = 4096,
        .snap_rate = snap_rate,
        .on_leader = on_leader,
        .arg = n,
    };
    return rsm_new(&config, &n->rsm);
}

void node_start(uint32_t at)
{
    assert_int_equal(node_try_start(at), ERR_OK);
}

void node_stop(uint32_t at)
{
    rsm_free(nodes[at].rsm);
    nodes[at].rsm = NULL;
}

void node_crash(uint32_t at)
{
    faultdisk_fail_at(nodes[at].disk, 1);
    node_stop(at);
    faultdisk_crash(nodes[at].disk, rng_next(&world.rng));
}

void cluster_new(uint64_t seed)
{
    world.rng = (struct rng){seed};
    keep_size = 10000;
    under_way_size = 0;
    snap_rate = 0;
    unsaved_each = 0;
    apply_us = checkpoint_us = 0;
    checkpoint_ms = 300;
    slow_per_mille = 0;
    loss_per_mille = 0;
    for (uint32_t i = 0; i < NODES; i++) {
        nodes[i] = (struct node){.env.ops = &env_ops,
                                 .net.ops = &net_ops,
                                 .fsm.ops = &fsm_ops,
                                 .at = i,
                                 .disk = faultdisk_new()};
    }
}

void cluster_start(uint64_t seed)
{
    cluster_new(seed);
    for (uint32_t i = 0; i < NODES; i++) {
        node_start(i);
    }
}

void cluster_free(void)
{
    for (uint32_t i = 0; i < NODES; i++) {
        if (nodes[i].rsm != NULL) {
            node_stop(i);
        }
    }
    while (run_one()) {
    }
    for (uint32_t i = 0; i < NODES; i++) {
        faultdisk_free(nodes[i].disk);
        mem_free(nodes[i].now.numbers);
        mem_free(nodes[i].stored.numbers);
        mem_free(nodes[i].frozen.numbers);
    }
    assert_null(calls);
}

struct node *await_leader(void)
{
    for (uint32_t ms = 0; ms < 30000; ms += 10) {
        for (uint32_t i = 0; i < NODES; i++) {
            struct node *n = &nodes[i];
            if (n->rsm != NULL && !n->cut && n->leader &&
                rsm_is_leader(n->rsm)) {
                return n;
            }
        }
        run_ms(10);
    }
    fail_msg("no leader in 30 s");
    return NULL;
}

bool all_equal(void)
{
    for (uint32_t i = 1; i < NODES; i++) {
        if (nodes[i].now.index != nodes[0].now.index) {
            return false;
        }
    }
    return true;
}

void await_all_equal(void)
{
    for (uint32_t ms = 0; ms < 30000 && !all_equal(); ms += 10) {
        run_ms(10);
    }
    assert_true(all_equal());
    for (uint32_t i = 1; i < NODES; i++) {
        assert_int_equal(nodes[i].now.count, nodes[0].now.count);
        assert_memory_equal(nodes[i].now.numbers, nodes[0].now.numbers,
                            nodes[0].now.count * sizeof(uint64_t));
    }
}

/* --- Clients */

static void client_done(struct rsm_proposal *p, enum err rc, struct slice reply)
{
    struct client *c = (struct client *)p;
    assert_false(c->ended);
    c->ended = true;
    c->rc = rc;
    if (rc == ERR_OK) {
        assert_int_equal(reply.size, 12);
        assert_int_equal(get_u64(reply.data), c->number);
        c->place = get_u32(reply.data + 8);
    }
}

void propose_sized(struct node *n, struct client *c, uint64_t number,
                   size_t size)
{
    *c = (struct client){.proposal.done = client_done, .number = number};
    struct bytes *command = bytes_new(size);
    memset(command->data, 0, size);
    set_u64(command->data, number);
    rsm_propose(n->rsm, &c->proposal, command);
    assert_false(c->ended);
}

void propose(struct node *n, struct client *c, uint64_t number)
{
    propose_sized(n, c, number, 100);
}

void await_client(const struct client *c)
{
    for (uint32_t ms = 0; ms < 30000 && !c->ended; ms++) {
        run_ms(1);
    }
    assert_true(c->ended);
}

void propose_many(struct node *n, uint64_t first, uint32_t count)
{
    struct client *c = mem_array(count, sizeof *c);
    for (uint32_t i = 0; i < count; i++) {
        propose(n, &c[i], first + i);
    }
    for (uint32_t i = 0; i < count; i++) {
        await_client(&c[i]);
        assert_int_equal(c[i].rc, ERR_OK);
    }
    mem_free(c);
}

static void reader_run(struct rsm_read *rd)
{
    struct reader *reader = (struct reader *)rd;
    reader->count = reader->node->now.count;
    rd->held = reader->holds;
    held.now += rd->held;
    held.most = held.now > held.most ? held.now : held.most;
}

static void reader_done(struct rsm_read *rd, enum err rc)
{
    struct reader *reader = (struct reader *)rd;
    assert_false(reader->ended);
    reader->ended = true;
    reader->rc = rc;
    held.now -= rd->held;
}

void read_begin(struct node *n, struct reader *rd)
{
    *rd = (struct reader){.read = {.run = reader_run, .done = reader_done},
                          .node = n};
    rsm_read(n->rsm, &rd->read);
    assert_false(rd->ended);
}

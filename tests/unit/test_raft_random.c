/* Whole groups of rafts on a network and on disks that do what they like, from
 * a seed: messages are lost, doubled and overtake each other; a crash loses
 * what was not synced; logs are compacted; the members change. After every step
 * the properties of Figure 3 of the Raft paper are checked:
 *
 *  Election Safety      one leader a term
 *  Log Matching         one entry for {index, term}, and one before it
 *  Leader Completeness  a new leader has all that was ever committed
 *  State Machine Safety one entry for an index, once it is committed
 *
 * and that a read sees what was committed before it was asked for.
 *
 * RAFT_SEEDS=n runs more seeds; RAFT_SEED=n repeats one. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/codec.h"
#include "raft/raft.h"

enum {
    NODES_MAX = 5,
    INDEX_MAX = 4096,
    TERM_MAX = 1024,
    WIRE_MAX = 512,
    QUEUE_MAX = 256,
    STEPS = 10000
};

/* An update on its way to disk. */
struct save {
    uint64_t seq;
    bool hard;
    struct raft_hard_state hard_state;
    struct raft_entry *entries;
    uint32_t count;
};

struct disk_state {
    struct raft_hard_state hard;
    raft_index base;
    raft_term base_term;
    struct raft_conf conf; /* at base */
    struct raft_entry entries[INDEX_MAX];
    uint32_t count;
};

struct node {
    raft_id id;
    struct raft *r; /* NULL while crashed */
    struct disk_state disk;
    struct save queue[QUEUE_MAX];
    uint32_t queued;
    raft_index applied;
    raft_term seen_term;
};

struct packet {
    struct bytes *bytes;
    raft_id from, to;
};

struct read_asked {
    raft_index floor; /* the answer must be at least this */
    raft_id by;
    bool open;
};

struct world {
    uint64_t seed;
    struct rng rng;
    uint64_t now_ms;
    uint32_t node_count;
    struct node nodes[NODES_MAX];
    struct packet wire[WIRE_MAX];
    uint32_t on_wire;
    bool calm; /* no faults: the end of a run, when all must agree */
    uint32_t loss_per_mille;
    raft_id cut; /* this one is cut off */

    /* What is known of all. */
    raft_id leader_of[TERM_MAX];
    raft_term committed[INDEX_MAX]; /* its term; 0: not yet */
    raft_index committed_last;
    uint64_t payload[INDEX_MAX][8]; /* {index, term % 8}: a hash, see below */
    raft_term payload_term[INDEX_MAX][8];
    struct read_asked reads[STEPS + 1];
    uint32_t read_count;
    uint32_t reads_served, elections, snapshots, conf_changes;
};

static struct node *node_of(struct world *w, raft_id id)
{
    CHECK(id >= 1 && id <= w->node_count);
    return &w->nodes[id - 1];
}

/* ---- checks ---- */

static uint64_t entry_hash(const struct raft_entry *e, raft_term before)
{
    uint8_t label[17];
    set_u64(label, e->term);
    set_u64(label + 8, before);
    label[16] = (uint8_t)e->type;
    uint64_t low = crc32c(0, slice_of(label, sizeof label));
    return low << 32 | crc32c(1, bytes_slice(e->data));
}

/* Log Matching, by induction: wherever {index, term} is appended, it is the
 * same entry, on top of an entry of the same term. */
static void check_matching(struct world *w, const struct node *n,
                           const struct raft_update *u)
{
    for (uint32_t i = 0; i < u->append_count; i++) {
        const struct raft_entry *e = &u->append[i];
        CHECK(e->index < INDEX_MAX && e->term < TERM_MAX);
        raft_term before = 0;
        CHECK(raft_term_at(n->r, e->index - 1, &before));
        uint64_t hash = entry_hash(e, before);
        uint64_t *seen = &w->payload[e->index][e->term % 8];
        raft_term *seen_term = &w->payload_term[e->index][e->term % 8];
        if (*seen_term == e->term) {
            CHECK(*seen == hash);
        } else if (e->term > *seen_term) {
            *seen = hash;
            *seen_term = e->term;
        }
    }
}

static void check_committed(struct world *w, const struct node *n,
                            raft_index commit)
{
    struct raft_status s;
    raft_status(n->r, &s);
    CHECK(commit < INDEX_MAX);
    raft_index from =
        commit < w->committed_last + 1 ? commit : w->committed_last + 1;
    for (raft_index i = from; i <= commit; i++) {
        raft_term term = 0;
        if (!raft_term_at(n->r, i, &term)) {
            continue;
        }
        if (w->committed[i] == 0) {
            w->committed[i] = term;
        }
        CHECK(w->committed[i] == term);
    }
    if (commit > w->committed_last) {
        w->committed_last = commit;
    }
}

static void check_leader(struct world *w, const struct node *n)
{
    struct raft_status s;
    raft_status(n->r, &s);
    CHECK(s.term < TERM_MAX);
    CHECK(w->leader_of[s.term] == 0 || w->leader_of[s.term] == n->id);
    w->leader_of[s.term] = n->id;
    for (raft_index i = s.first_index; i <= w->committed_last; i++) {
        raft_term term = 0;
        CHECK(raft_term_at(n->r, i, &term));
        CHECK(term == w->committed[i]);
    }
    w->elections++;
}

static void check_reads(struct world *w, const struct node *n,
                        const struct raft_update *u)
{
    for (uint32_t i = 0; i < u->read_count; i++) {
        CHECK(u->reads[i].read < w->read_count);
        struct read_asked *asked = &w->reads[u->reads[i].read];
        CHECK(asked->open && asked->by == n->id);
        asked->open = false;
        if (u->reads[i].rc == ERR_OK) {
            CHECK(u->reads[i].index >= asked->floor);
            w->reads_served++;
        }
    }
}

/* ---- the shell of a node ---- */

static void put_on_wire(struct world *w, const struct raft_msg *m)
{
    if (w->on_wire == WIRE_MAX ||
        (!w->calm && (m->from == w->cut || m->to == w->cut ||
                      rng_chance(&w->rng, w->loss_per_mille)))) {
        return;
    }
    struct buf b = {0};
    raft_msg_encode(&b, m);
    w->wire[w->on_wire++] = (struct packet){
        .bytes = bytes_copy(buf_slice(&b)), .from = m->from, .to = m->to};
    buf_free(&b);
}

static void queue_save(struct node *n, const struct raft_update *u)
{
    CHECK(n->queued < QUEUE_MAX);
    struct save *s = &n->queue[n->queued++];
    *s = (struct save){
        .seq = u->persist_seq,
        .hard = u->hard_state_changed,
        .hard_state = u->hard_state,
        .entries = mem_array(u->append_count, sizeof *s->entries),
        .count = u->append_count,
    };
    for (uint32_t i = 0; i < u->append_count; i++) {
        s->entries[i] = u->append[i];
        bytes_ref(u->append[i].data);
    }
}

static void save_free(struct save *s)
{
    for (uint32_t i = 0; i < s->count; i++) {
        bytes_unref(s->entries[i].data);
    }
    mem_free(s->entries);
}

static void disk_cut(struct disk_state *d, raft_index last)
{
    while (d->count > 0 && d->base + d->count > last) {
        bytes_unref(d->entries[--d->count].data);
    }
}

static void disk_write(struct disk_state *d, const struct save *s)
{
    if (s->hard) {
        d->hard = s->hard_state;
    }
    if (s->count == 0) {
        return;
    }
    CHECK(s->entries[0].index <= d->base + d->count + 1);
    for (uint32_t i = 0; i < s->count; i++) {
        if (s->entries[i].index <= d->base) {
            continue;
        }
        if (i == 0 || s->entries[i - 1].index == d->base) {
            disk_cut(d, s->entries[i].index - 1);
        }
        CHECK(s->entries[i].index == d->base + d->count + 1);
        d->entries[d->count] = s->entries[i];
        bytes_ref(s->entries[i].data);
        d->count++;
    }
}

static void disk_compact(struct node *n, raft_index index)
{
    struct disk_state *d = &n->disk;
    CHECK(index <= d->base + d->count);
    if (index <= d->base) {
        return;
    }
    raft_conf_at(n->r, index, &d->conf);
    uint32_t gone = (uint32_t)(index - d->base);
    d->base_term = d->entries[gone - 1].term;
    for (uint32_t i = 0; i < gone; i++) {
        bytes_unref(d->entries[i].data);
    }
    memmove(d->entries, d->entries + gone,
            (d->count - gone) * sizeof *d->entries);
    d->count -= gone;
    d->base = index;
}

static void propose(struct world *w, struct node *n, enum raft_entry_type type,
                    struct bytes *data);

static enum err step(struct world *w, struct node *n, struct raft_event ev)
{
    struct raft_update u;
    ev.now_ms = w->now_ms;
    enum err rc = raft_step(n->r, &ev, &u);
    struct raft_status s;
    raft_status(n->r, &s);
    CHECK(s.term >= n->seen_term);
    n->seen_term = s.term;
    CHECK(u.commit >= n->applied);
    n->applied = u.commit;
    check_matching(w, n, &u);
    if (s.role == RAFT_LEADER) {
        CHECK(w->leader_of[s.term] == n->id || u.became_leader);
    }
    check_committed(w, n, s.commit);
    if (u.became_leader) {
        check_leader(w, n);
    }
    check_reads(w, n, &u);
    if (u.persist_seq != 0) {
        queue_save(n, &u);
    }
    for (uint32_t i = 0; i < u.send_count; i++) {
        put_on_wire(w, &u.send[i]);
    }
    raft_id need[NODES_MAX];
    uint32_t need_count = u.need_snapshot_count;
    CHECK(need_count <= NODES_MAX);
    memcpy(need, u.need_snapshot, need_count * sizeof *need);
    bool elected = u.became_leader;
    for (uint32_t i = 0; i < need_count; i++) {
        /* The stream may fail, and its end may come at any time. */
        struct node *to = node_of(w, need[i]);
        raft_index at = n->applied;
        raft_term term = 0;
        struct raft_event sent = {.type = RAFT_EV_SNAPSHOT_SENT,
                                  .u.sent = {.peer = to->id, .index = at}};
        if (to->r != NULL && raft_term_at(n->r, at, &term) &&
            (w->calm || rng_chance(&w->rng, 700)) &&
            raft_install_begin(to->r, at, term)) {
            struct raft_event in = {.type = RAFT_EV_SNAPSHOT_INSTALLED,
                                    .u.snapshot = {.index = at, .term = term}};
            raft_conf_at(n->r, at, &in.u.snapshot.conf);
            /* Saves before it reach the disk before it. */
            for (uint32_t k = 0; k < to->queued; k++) {
                disk_write(&to->disk, &to->queue[k]);
                save_free(&to->queue[k]);
            }
            to->queued = 0;
            disk_cut(&to->disk, 0);
            to->disk.base = at;
            to->disk.base_term = term;
            to->disk.conf = in.u.snapshot.conf;
            CHECK(step(w, to, in) == ERR_OK);
            sent.u.sent.ok = true;
            w->snapshots++;
        }
        (void)step(w, n, sent);
    }
    if (elected) {
        propose(w, n, RAFT_ENTRY_NOOP, NULL);
    }
    return rc;
}

static void propose(struct world *w, struct node *n, enum raft_entry_type type,
                    struct bytes *data)
{
    struct raft_entry e = {.type = type, .data = data};
    (void)step(w, n,
               (struct raft_event){.type = RAFT_EV_PROPOSE,
                                   .u.propose = {.entries = &e, .count = 1}});
}

static void start(struct world *w, struct node *n)
{
    struct raft_config config = {
        .id = n->id,
        .seed = rng_next(&w->rng),
        .append_size_max = 200,
        .inflight_size_max = 600,
        .hard_state = n->disk.hard,
        .snapshot_index = n->disk.base,
        .snapshot_term = n->disk.base_term,
        .conf = n->disk.conf,
        .entries = n->disk.entries,
        .entry_count = n->disk.count,
        .now_ms = w->now_ms,
    };
    CHECK(raft_new(&config, &n->r) == ERR_OK);
    n->applied = n->disk.base;
    n->seen_term = n->disk.hard.term;
}

/* Some of the saves may have reached the disk, in order; the rest is gone. */
static void crash(struct world *w, struct node *n)
{
    uint32_t kept = (uint32_t)rng_between(&w->rng, 0, n->queued);
    for (uint32_t i = 0; i < n->queued; i++) {
        if (i < kept) {
            disk_write(&n->disk, &n->queue[i]);
        }
        save_free(&n->queue[i]);
    }
    n->queued = 0;
    raft_free(n->r);
    n->r = NULL;
    for (uint32_t i = 0; i < w->read_count; i++) {
        if (w->reads[i].by == n->id) {
            w->reads[i].open = false;
        }
    }
}

/* ---- what may happen ---- */

static void do_tick(struct world *w, struct node *n)
{
    if (raft_next_tick_ms(n->r) <= w->now_ms) {
        (void)step(w, n, (struct raft_event){.type = RAFT_EV_TICK});
    }
}

static void do_sync(struct world *w, struct node *n)
{
    if (n->queued == 0) {
        return;
    }
    /* Group commit: the first few, told with the number of the last. */
    uint32_t count = (uint32_t)rng_between(&w->rng, 1, n->queued);
    uint64_t seq = n->queue[count - 1].seq;
    for (uint32_t i = 0; i < count; i++) {
        disk_write(&n->disk, &n->queue[i]);
        save_free(&n->queue[i]);
    }
    n->queued -= count;
    memmove(n->queue, n->queue + count, n->queued * sizeof *n->queue);
    (void)step(
        w, n,
        (struct raft_event){.type = RAFT_EV_PERSISTED, .u.persisted = seq});
}

static void do_deliver(struct world *w)
{
    if (w->on_wire == 0) {
        return;
    }
    /* Mostly in order; else anything, and perhaps twice. */
    uint32_t at = !w->calm && rng_chance(&w->rng, 300)
                      ? (uint32_t)rng_below(&w->rng, w->on_wire)
                      : 0;
    struct packet p = w->wire[at];
    bool again = !w->calm && rng_chance(&w->rng, 50);
    if (!again) {
        w->on_wire--;
        memmove(w->wire + at, w->wire + at + 1,
                (w->on_wire - at) * sizeof *w->wire);
    }
    struct node *n = node_of(w, p.to);
    if (n->r != NULL) {
        struct arena a = {0};
        struct raft_msg m;
        CHECK(raft_msg_decode(bytes_slice(p.bytes), &a, &m) == ERR_OK);
        CHECK(step(w, n,
                   (struct raft_event){.type = RAFT_EV_RECV, .u.msg = &m}) ==
              ERR_OK);
        raft_msg_release(&m);
        arena_free(&a);
    }
    if (!again) {
        bytes_unref(p.bytes);
    }
}

static struct bytes *some_bytes(struct world *w)
{
    struct bytes *data = bytes_new(8 + rng_below(&w->rng, 60));
    memset(data->data, 0, data->size);
    set_u64(data->data, rng_next(&w->rng));
    return data;
}

static void do_propose(struct world *w, struct node *n)
{
    struct bytes *data = some_bytes(w);
    propose(w, n, RAFT_ENTRY_COMMAND, data);
    bytes_unref(data);
}

static void do_read(struct world *w, struct node *n)
{
    uint32_t name = w->read_count++;
    w->reads[name] = (struct read_asked){
        .floor = w->committed_last, .by = n->id, .open = true};
    if (step(w, n, (struct raft_event){.type = RAFT_EV_READ, .u.read = name}) !=
        ERR_OK) {
        w->reads[name].open = false;
    }
}

static void do_compact(struct world *w, struct node *n)
{
    struct raft_status s;
    raft_status(n->r, &s);
    if (n->applied > s.snapshot_index) {
        raft_index index =
            rng_between(&w->rng, s.snapshot_index + 1, n->applied);
        disk_compact(n, index);
        raft_compact(n->r, index);
    }
}

/* What the shell does: begin a change, and finish it when it is committed. */
static void do_conf(struct world *w, struct node *n)
{
    struct raft_status s;
    raft_status(n->r, &s);
    if (s.role != RAFT_LEADER) {
        return;
    }
    struct raft_conf to = s.conf;
    to.old_count = 0;
    if (s.conf.old_count == 0) {
        memcpy(to.old, s.conf.voters, sizeof to.old);
        to.old_count = s.conf.voter_count;
        to.voter_count = to.learner_count = 0;
        for (raft_id id = 1; id <= w->node_count; id++) {
            uint64_t dice = rng_below(&w->rng, 4);
            if (dice < 3) {
                to.voters[to.voter_count++] = id;
            } else {
                to.learners[to.learner_count++] = id;
            }
        }
        w->conf_changes++;
    } else if (s.conf_index > s.commit) {
        return;
    }
    struct buf b = {0};
    raft_conf_encode(&b, &to);
    struct bytes *data = bytes_copy(buf_slice(&b));
    propose(w, n, RAFT_ENTRY_CONF, data);
    bytes_unref(data);
    buf_free(&b);
}

static void do_hint(struct world *w, struct node *n)
{
    raft_id peer = rng_between(&w->rng, 1, w->node_count);
    (void)step(w, n,
               (struct raft_event){.type = RAFT_EV_PEER_DOWN, .u.peer = peer});
}

static void do_transfer(struct world *w, struct node *n)
{
    raft_id peer = rng_below(&w->rng, w->node_count + 1);
    (void)step(w, n,
               (struct raft_event){.type = RAFT_EV_TRANSFER, .u.peer = peer});
}

static void do_something(struct world *w, bool members)
{
    struct node *n = node_of(w, rng_between(&w->rng, 1, w->node_count));
    uint64_t dice = rng_below(&w->rng, 1000);
    w->now_ms += rng_below(&w->rng, 8);
    if (n->r == NULL) {
        if (dice < 50) {
            start(w, n);
        }
        return;
    }
    do_tick(w, n);
    if (members && rng_chance(&w->rng, 60)) {
        do_conf(w, n);
    }
    if (dice < 450) {
        for (int i = 0; i < 4; i++) {
            do_deliver(w);
        }
    } else if (dice < 650) {
        do_sync(w, n);
    } else if (dice < 850) {
        do_propose(w, n);
    } else if (dice < 930) {
        do_read(w, n);
    } else if (dice < 955) {
        do_compact(w, n);
    } else if (dice < 965) {
        crash(w, n);
    } else if (dice < 972) {
        w->cut = rng_below(&w->rng, w->node_count + 1);
    } else if (dice < 978) {
        do_hint(w, n);
    } else if (dice < 982) {
        do_transfer(w, n);
    }
}

/* ---- a run ---- */

static struct world *world_new(uint64_t seed, uint32_t node_count)
{
    struct world *w = mem_alloc(sizeof *w);
    w->seed = seed;
    w->rng.state = seed;
    w->node_count = node_count;
    w->loss_per_mille = (uint32_t)rng_below(&w->rng, 200);
    struct raft_conf conf = {.voter_count = node_count};
    for (uint32_t i = 0; i < node_count; i++) {
        conf.voters[i] = i + 1;
    }
    for (uint32_t i = 0; i < node_count; i++) {
        w->nodes[i].id = i + 1;
        w->nodes[i].disk.conf = conf;
        start(w, &w->nodes[i]);
    }
    return w;
}

static void world_free(struct world *w)
{
    for (uint32_t i = 0; i < w->on_wire; i++) {
        bytes_unref(w->wire[i].bytes);
    }
    for (uint32_t i = 0; i < w->node_count; i++) {
        struct node *n = &w->nodes[i];
        if (n->r != NULL) {
            crash(w, n);
        }
        disk_cut(&n->disk, 0);
    }
    mem_free(w);
}

static struct node *current_leader(struct world *w)
{
    struct node *best = NULL;
    raft_term term = 0;
    for (uint32_t i = 0; i < w->node_count; i++) {
        struct raft_status s;
        raft_status(w->nodes[i].r, &s);
        if (s.role == RAFT_LEADER && s.term >= term) {
            best = &w->nodes[i];
            term = s.term;
        }
    }
    return best;
}

/* When the faults end the group must come to life by itself: a leader, a commit
 * of its own, every voter with the whole log. */
static bool settled(struct world *w, raft_index goal)
{
    struct node *leader = current_leader(w);
    if (leader == NULL) {
        return false;
    }
    struct raft_status s;
    raft_status(leader->r, &s);
    if (s.commit < goal || s.commit != s.last_index || s.conf.old_count > 0) {
        return false;
    }
    for (uint32_t i = 0; i < s.conf.voter_count; i++) {
        struct raft_status v;
        raft_status(node_of(w, s.conf.voters[i])->r, &v);
        if (v.commit != s.commit) {
            return false;
        }
    }
    return true;
}

static void say_states(struct world *w)
{
    for (uint32_t i = 0; i < w->node_count; i++) {
        struct raft_status s;
        raft_status(w->nodes[i].r, &s);
        fprintf(stderr,
                "%u %s term=%llu leader=%llu first=%llu last=%llu "
                "persisted=%llu commit=%llu voters=%u old=%u conf=%llu\n",
                i + 1, raft_role_text(s.role), (unsigned long long)s.term,
                (unsigned long long)s.leader, (unsigned long long)s.first_index,
                (unsigned long long)s.last_index,
                (unsigned long long)s.persisted, (unsigned long long)s.commit,
                s.conf.voter_count, s.conf.old_count,
                (unsigned long long)s.conf_index);
        for (uint32_t k = 0; k < RAFT_PEERS_MAX; k++) {
            if (s.conf.voters[k] + s.conf.old[k] + s.conf.learners[k] > 0) {
                fprintf(stderr, "    conf: voter=%llu old=%llu learner=%llu\n",
                        (unsigned long long)s.conf.voters[k],
                        (unsigned long long)s.conf.old[k],
                        (unsigned long long)s.conf.learners[k]);
            }
        }
        for (uint32_t k = 0; k < s.peer_count; k++) {
            fprintf(stderr, "    %llu match=%llu next=%llu%s%s\n",
                    (unsigned long long)s.peers[k].id,
                    (unsigned long long)s.peers[k].match,
                    (unsigned long long)s.peers[k].next,
                    s.peers[k].snapshot ? " snapshot" : "",
                    s.peers[k].active ? " active" : "");
        }
    }
}

static void heal(struct world *w)
{
    w->calm = true;
    for (uint32_t i = 0; i < w->node_count; i++) {
        if (w->nodes[i].r == NULL) {
            start(w, &w->nodes[i]);
        }
    }
    raft_index goal = w->committed_last;
    uint64_t end_ms = w->now_ms + 20000;
    while (!settled(w, goal)) {
        if (w->now_ms >= end_ms) {
            say_states(w);
        }
        CHECK(w->now_ms < end_ms);
        w->now_ms += 5;
        for (uint32_t i = 0; i < w->node_count; i++) {
            do_tick(w, &w->nodes[i]);
            do_sync(w, &w->nodes[i]);
        }
        for (uint32_t i = 0; i < 64; i++) {
            do_deliver(w);
        }
        struct node *leader = current_leader(w);
        struct raft_status s;
        if (leader != NULL) {
            raft_status(leader->r, &s);
            if (s.conf.old_count > 0) {
                do_conf(w, leader);
            }
        }
    }
}

static uint64_t running_seed;

static void say_seed(void)
{
    fprintf(stderr, "repeat with RAFT_SEED=%llu\n",
            (unsigned long long)running_seed);
}

static uint32_t elections, snapshots, reads_served, conf_changes;
static uint64_t commits;

static void run(uint64_t seed)
{
    running_seed = seed;
    struct world *w = world_new(seed, seed % 2 == 0 ? 3 : 5);
    for (uint32_t i = 0; i < STEPS; i++) {
        do_something(w, seed % 4 >= 2);
    }
    heal(w);
    elections += w->elections;
    snapshots += w->snapshots;
    reads_served += w->reads_served;
    conf_changes += w->conf_changes;
    commits += w->committed_last;
    world_free(w);
}

static void on_abort(int signal_number)
{
    (void)signal_number;
    say_seed();
}

static void groups_stay_safe_and_come_back(void **state)
{
    (void)state;
    signal(SIGABRT, on_abort);
    const char *one = getenv("RAFT_SEED");
    const char *many = getenv("RAFT_SEEDS");
    if (one != NULL) {
        run(strtoull(one, NULL, 10));
        return;
    }
    uint64_t seeds = many != NULL ? strtoull(many, NULL, 10) : 200;
    for (uint64_t seed = 1; seed <= seeds; seed++) {
        run(seed);
    }
    printf("%llu seeds: %u elections, %llu commits, %u snapshots, %u reads, "
           "%u changes of members\n",
           (unsigned long long)seeds, elections, (unsigned long long)commits,
           snapshots, reads_served, conf_changes);
    /* The test is worth something only if all this took place. */
    assert_true(elections > seeds);
    assert_true(commits > seeds * 20);
    assert_true(snapshots > 0);
    assert_true(reads_served > seeds);
    assert_true(conf_changes > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(groups_stay_safe_and_come_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

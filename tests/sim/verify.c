/* Raft's properties (paper, figure 3), looked at after each event and at each
 * message, over all lives of all nodes:
 *
 *  1. Election safety: a term has one leader, by what nodes are and by what
 *     they send.
 *  2. One vote a term: a node never grants two, also not in two lives.
 *  3. A node never acts in a term below one it has acted in: what it promised
 *     was on its disk.
 *  4. A commit index never goes back in a life, and never passes the log.
 *  5. State machine safety: the committed entry at an index is the same
 *     everywhere, for ever.
 *  6. Leader completeness: a new leader's log has every entry committed in
 *     earlier terms.
 *  7. While a leader may answer reads by its lease, nobody leads a later term.
 *  8. Nobody's loop spins.
 *  9. At the end, replicas of a group hold the same keys and values. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "base/codec.h"
#include "raft/raft_int.h"
#include "shardkv/clerk_int.h"
#include "shardkv/server_int.h"
#include "tests/sim/cluster.h"

struct committed {
    raft_term term;
    raft_term in_term; /* of the leader that committed it */
    uint32_t hash;
};

/* Of each term: who led, and for whom each node voted. */
struct term_record {
    raft_id leader;
    raft_id votes[SIM_IDS_MAX + 1]; /* by voter */
};

struct group_record {
    struct committed *entries; /* [i]: of index i + 1 */
    raft_index count, capacity;
    struct term_record *terms;
    raft_term term_count;
    raft_term newest_led;
};

struct verify {
    struct cluster *cluster;
    struct sim_world *world;
    struct group_record groups[SIM_GROUPS_MAX + 1];
    uint32_t elections;
};

enum { TERM_MAX = 1 << 20 };

struct verify *verify_new(struct cluster *c)
{
    struct verify *v = mem_alloc(sizeof *v);
    v->cluster = c;
    v->world = c->world;
    return v;
}

void verify_free(struct verify *v)
{
    for (uint32_t i = 0; i <= SIM_GROUPS_MAX; i++) {
        mem_free(v->groups[i].entries);
        mem_free(v->groups[i].terms);
    }
    mem_free(v);
}

uint32_t verify_elections(const struct verify *v)
{
    return v->elections;
}

raft_index verify_committed(const struct verify *v)
{
    raft_index sum = 0;
    for (uint32_t i = 0; i <= SIM_GROUPS_MAX; i++) {
        sum += v->groups[i].count;
    }
    return sum;
}

static struct term_record *term_of(struct verify *v, uint32_t gid,
                                   raft_term term)
{
    struct group_record *g = &v->groups[gid];
    if (term >= TERM_MAX) {
        sim_fail(v->world, "group %u: absurd term %" PRIu64, gid, term);
        term = 0;
    }
    if (term >= g->term_count) {
        raft_term count = 2 * term + 64;
        g->terms = mem_resize(g->terms, count * sizeof *g->terms);
        memset(g->terms + g->term_count, 0,
               (count - g->term_count) * sizeof *g->terms);
        g->term_count = count;
    }
    return &g->terms[term];
}

/* ---- elections (1, 2, 3) ---- */

static void saw_leader(struct verify *v, const struct node *n, raft_term term)
{
    struct term_record *t = term_of(v, n->gid, term);
    if (t->leader == 0) {
        t->leader = n->id;
        v->elections++;
    } else if (t->leader != n->id) {
        sim_fail(v->world,
                 "two leaders: group %u term %" PRIu64 ": %" PRIu64
                 " and %" PRIu64,
                 n->gid, term, t->leader, n->id);
    }
}

static void saw_vote(struct verify *v, const struct node *n, raft_term term,
                     raft_id candidate)
{
    raft_id *vote = &term_of(v, n->gid, term)->votes[n->id];
    if (*vote != 0 && *vote != candidate) {
        sim_fail(v->world,
                 "two votes: group %u: %" PRIu64 " voted for %" PRIu64
                 " and for %" PRIu64 " in term %" PRIu64,
                 n->gid, n->id, *vote, candidate, term);
    }
    *vote = candidate;
}

/* It acts in `term` towards others, so that term must be on its disk. */
static void saw_promise(struct verify *v, struct node *n, raft_term term)
{
    if (term < n->promised) {
        sim_fail(v->world,
                 "term forgotten: group %u: %" PRIu64 " acts in term %" PRIu64
                 " after %" PRIu64,
                 n->gid, n->id, term, n->promised);
    }
    n->promised = term;
}

/* The head of a message (raft/message.c). */
struct head {
    uint8_t type;
    raft_id from, to;
    raft_term term;
    bool reject;
};

static bool head_decode(struct slice body, struct head *h)
{
    enum { FROM = 1, TO = 9, TERM = 17, FLAGS = 57 };
    if (body.size <= FLAGS) {
        return false;
    }
    h->type = body.data[0];
    h->from = get_u64(body.data + FROM);
    h->to = get_u64(body.data + TO);
    h->term = get_u64(body.data + TERM);
    h->reject = (body.data[FLAGS] & 1) != 0;
    return true;
}

void verify_message(struct verify *v, uint32_t from, net_method method,
                    struct slice body)
{
    struct node *n = &v->cluster->nodes[from];
    struct head h;
    if (method != RSM_METHOD_RAFT || !head_decode(body, &h)) {
        return;
    }
    if (h.from != n->id) {
        sim_fail(v->world, "n%u speaks for %" PRIu64, from, h.from);
    }
    switch (h.type) {
    case RAFT_MSG_VOTE:
        saw_promise(v, n, h.term);
        saw_vote(v, n, h.term, n->id);
        break;
    case RAFT_MSG_VOTE_REPLY:
        if (!h.reject) {
            saw_promise(v, n, h.term);
            saw_vote(v, n, h.term, h.to);
        }
        break;
    case RAFT_MSG_APPEND:
        saw_promise(v, n, h.term);
        saw_leader(v, n, h.term);
        break;
    case RAFT_MSG_APPEND_REPLY:
        if (!h.reject) {
            saw_promise(v, n, h.term);
        }
        break;
    default: break;
    }
}

/* ---- the log (4, 5, 6) ---- */

static uint32_t entry_hash(const struct raft_entry *e)
{
    uint8_t type = (uint8_t)e->type;
    return crc32c(crc32c(0, slice_of(&type, 1)), bytes_slice(e->data));
}

static void saw_committed(struct verify *v, const struct node *n,
                          const struct raft_entry *e, raft_term in_term)
{
    struct group_record *g = &v->groups[n->gid];
    struct committed now = {
        .term = e->term, .in_term = in_term, .hash = entry_hash(e)};
    if (e->index <= g->count) {
        const struct committed *was = &g->entries[e->index - 1];
        if (was->term != now.term || was->hash != now.hash) {
            sim_fail(v->world,
                     "committed entry changed: group %u index %" PRIu64
                     ": term %" PRIu64 ", at n%u term %" PRIu64,
                     n->gid, e->index, was->term, n->number, now.term);
        }
        return;
    }
    if (e->index != g->count + 1) {
        sim_fail(v->world,
                 "group %u: n%u commits %" PRIu64
                 " and nobody has committed what is before it",
                 n->gid, n->number, e->index);
        return;
    }
    if (g->count == g->capacity) {
        g->capacity = g->capacity == 0 ? 256 : 2 * g->capacity;
        g->entries = mem_resize(g->entries, g->capacity * sizeof *g->entries);
    }
    g->entries[g->count++] = now;
}

static void compare_commits(struct verify *v, struct node *n,
                            const struct raft *raft)
{
    raft_index next = n->seen_commit + 1;
    if (next <= raft->log.base) {
        next = raft->log.base + 1; /* it is in a snapshot */
    }
    while (next <= raft->commit && !v->world->failed) {
        uint32_t count = 0;
        const struct raft_entry *e =
            raft_entries(raft, next, raft->commit, 64, SIZE_MAX, &count);
        if (count == 0) {
            sim_fail(v->world, "n%u: its log lacks %" PRIu64 " below commit",
                     n->number, next);
            return;
        }
        for (uint32_t i = 0; i < count; i++) {
            saw_committed(v, n, &e[i], raft->term);
        }
        next += count;
    }
    n->seen_commit = raft->commit;
}

static void compare_leader(struct verify *v, struct node *n,
                           const struct raft *raft)
{
    const struct group_record *g = &v->groups[n->gid];
    raft_index last = g->count;
    while (last > 0 && g->entries[last - 1].in_term >= raft->term) {
        last--;
    }
    raft_term term = 0;
    if (last == 0 || last <= raft->log.base) {
        return;
    }
    if (!raft_term_at(raft, last, &term) || term != g->entries[last - 1].term) {
        sim_fail(v->world,
                 "leader completeness: group %u: n%u leads term %" PRIu64
                 " without entry %" PRIu64 " of term %" PRIu64,
                 n->gid, n->number, raft->term, last,
                 g->entries[last - 1].term);
    }
}

/* ---- leases (7) ---- */

static void check_lease(struct verify *v, struct node *n)
{
    struct rsm *rsm = n->env.dead ? NULL : node_rsm(n);
    raft_term newest = v->groups[n->gid].newest_led;
    if (rsm == NULL || rsm_raft(rsm)->term >= newest) {
        return;
    }
    struct raft_status s;
    raft_status(rsm_raft(rsm), &s);
    if (env_now_ms(&n->env.env) < s.lease_until_ms) {
        sim_fail(v->world,
                 "a lease outlives its leader: group %u: n%u of term %" PRIu64
                 " may read for %" PRIu64 " ms more, term %" PRIu64 " is led",
                 n->gid, n->number, s.term,
                 s.lease_until_ms - env_now_ms(&n->env.env), newest);
    }
}

static void check_leases(struct verify *v, uint32_t gid, raft_term led)
{
    struct cluster *c = v->cluster;
    if (led <= v->groups[gid].newest_led) {
        return;
    }
    v->groups[gid].newest_led = led;
    for (uint32_t i = 0; i < c->node_count && c->plan.lease_reads; i++) {
        struct node *n = &c->nodes[i];
        if (node_is_server(n) && n->gid == gid) {
            check_lease(v, n);
        }
    }
}

/* ---- loops (8) ---- */

/* A timer that starts itself anew without a delay fires some 30,000 times a
 * second, and on a real machine takes a core. For what a node hears it may set
 * timers as often as it hears: thousands of clerks live on one at times. */
static void check_loop(struct verify *v, struct node *n)
{
    enum { WINDOW_US = 1000000, TIMERS_MAX = 15000, TIMERS_EACH = 4 };
    if (n->looked_life == n->env.life &&
        v->world->now_us < n->looked_us + WINDOW_US) {
        return;
    }
    uint64_t heard = n->env.heard - n->looked_heard;
    if (n->looked_life == n->env.life &&
        n->env.timers_fired >
            n->looked_timers + TIMERS_MAX + TIMERS_EACH * heard) {
        sim_fail(v->world, "n%u spins: %" PRIu64 " timers in %" PRIu64 " us",
                 n->number, n->env.timers_fired - n->looked_timers,
                 v->world->now_us - n->looked_us);
    }
    n->looked_life = n->env.life;
    n->looked_us = v->world->now_us;
    n->looked_timers = n->env.timers_fired;
    n->looked_heard = n->env.heard;
}

void verify_after(struct verify *v, struct node *n)
{
    check_loop(v, n);
    struct rsm *rsm = node_is_server(n) ? node_rsm(n) : NULL;
    if (rsm == NULL) {
        return;
    }
    const struct raft *raft = rsm_raft(rsm);
    if (n->seen_life != n->env.life) {
        n->seen_life = n->env.life;
        n->seen_commit = 0;
        n->led = false;
        if (raft->term < n->promised) {
            saw_promise(v, n, raft->term);
        }
    }
    if (raft->commit < n->seen_commit ||
        raft->commit > raft_log_last(&raft->log)) {
        sim_fail(v->world,
                 "commit goes back or past the log: n%u: %" PRIu64
                 " after %" PRIu64 ", log ends at %" PRIu64,
                 n->number, raft->commit, n->seen_commit,
                 raft_log_last(&raft->log));
    } else if (raft->commit > n->seen_commit) {
        compare_commits(v, n, raft);
    }
    bool leads = raft->role == RAFT_LEADER;
    if (leads && (!n->led || n->led_term != raft->term)) {
        saw_leader(v, n, raft->term);
        compare_leader(v, n, raft);
        check_leases(v, n->gid, raft->term);
        sim_trace(v->world, "n%u leads group %u in term %" PRIu64, n->number,
                  n->gid, raft->term);
        n->led_term = raft->term;
        if (v->cluster->leader_seen != NULL) {
            v->cluster->leader_seen(n);
        }
    }
    n->led = leads;
    if (leads) {
        check_lease(v, n);
    }
}

/* ---- replicas (9) ---- */

/* A key and a hash of its value. */
struct pair {
    struct slice key;
    uint64_t hash;
    uint64_t length;
};

struct digest {
    struct skv_store *store;
    struct arena arena;
    struct pair *pairs;
    uint64_t count, capacity;
};

static uint64_t value_hash(struct digest *d, struct slice key, uint64_t length)
{
    uint64_t hash = length;
    uint8_t bytes[4096];
    for (uint64_t at = 0; at < length;) {
        size_t got = 0;
        enum err rc =
            d->store->ops->read(d->store, key, at, bytes, sizeof bytes, &got);
        CHECK(rc == ERR_OK && got > 0);
        hash = hash << 32 | crc32c((uint32_t)(hash >> 7), slice_of(bytes, got));
        at += got;
    }
    return hash;
}

/* The replicated clock is written by checkpoints only, which each replica makes
 * in its own time (shardkv/fsm.c). */
static bool is_clock(struct slice key)
{
    static const uint8_t name[] = {0xff, 0xff, 0, 0, 0, 0, 0, 0, 'T'};
    return slice_compare(key, slice_of(name, sizeof name)) == 0;
}

static bool digest_key(void *arg, struct slice key,
                       const struct skv_value *value)
{
    struct digest *d = arg;
    if (is_clock(key)) {
        return true;
    }
    if (d->count == d->capacity) {
        d->capacity = d->capacity == 0 ? 64 : 2 * d->capacity;
        d->pairs = mem_resize(d->pairs, d->capacity * sizeof *d->pairs);
    }
    d->pairs[d->count++] =
        (struct pair){.key = arena_copy(&d->arena, key),
                      .hash = value_hash(d, key, value->length),
                      .length = value->length};
    return true;
}

static struct digest digest_of(struct node *n)
{
    struct digest d = {.store = n->store};
    enum err rc = n->store->ops->scan(n->store, slice_of(NULL, 0),
                                      slice_of(NULL, 0), digest_key, &d);
    CHECK(rc == ERR_OK);
    return d;
}

static void digest_free(struct digest *d)
{
    arena_free(&d->arena);
    mem_free(d->pairs);
    *d = (struct digest){0};
}

/* NULL when they are the same; else the first key that differs, from either. */
static const struct pair *digest_differ(const struct digest *a,
                                        const struct digest *b)
{
    for (uint64_t i = 0; i < a->count || i < b->count; i++) {
        if (i >= b->count) {
            return &a->pairs[i];
        }
        if (i >= a->count) {
            return &b->pairs[i];
        }
        int order = slice_compare(a->pairs[i].key, b->pairs[i].key);
        if (order != 0 || a->pairs[i].hash != b->pairs[i].hash) {
            return order > 0 ? &b->pairs[i] : &a->pairs[i];
        }
    }
    return NULL;
}

static bool group_settled(struct cluster *c, uint32_t gid)
{
    raft_index applied = 0;
    for (uint32_t i = 0; i < c->node_count; i++) {
        struct node *n = &c->nodes[i];
        if (!node_is_member(n) || n->gid != gid || n->lost) {
            continue;
        }
        struct rsm *rsm = node_rsm(n);
        if (rsm == NULL) {
            return false;
        }
        struct rsm_status s;
        rsm_status(rsm, &s);
        if (s.applied != s.raft.last_index ||
            (applied != 0 && applied != s.applied)) {
            return false;
        }
        applied = s.applied;
    }
    return true;
}

static void differ_fail(struct cluster *c, const struct node *first,
                        const struct node *n, const struct pair *pair)
{
    char hex[2 * 40 + 1] = "";
    for (size_t i = 0; i < pair->key.size && i < 40; i++) {
        snprintf(hex + 2 * i, 3, "%02x", pair->key.data[i]);
    }
    sim_fail(c->world,
             "replicas differ: group %u: n%u and n%u at the same index, first "
             "at key %s, length %" PRIu64,
             n->gid, first->number, n->number, hex, pair->length);
}

static void group_compare(struct cluster *c, uint32_t gid)
{
    struct node *first = NULL;
    struct digest all = {0};
    for (uint32_t i = 0; i < c->node_count; i++) {
        struct node *n = &c->nodes[i];
        if (n->kind != NODE_SERVER || n->gid != gid || !node_is_member(n) ||
            n->lost) {
            continue;
        }
        struct digest d = digest_of(n);
        if (first == NULL) {
            first = n;
            all = d;
            continue;
        }
        const struct pair *pair = digest_differ(&all, &d);
        if (pair != NULL) {
            differ_fail(c, first, n, pair);
        }
        digest_free(&d);
    }
    digest_free(&all);
}

bool verify_replicas_agree(struct cluster *c)
{
    for (uint32_t gid = 0; gid <= c->plan.groups; gid++) {
        if (!group_settled(c, gid)) {
            return false;
        }
    }
    for (uint32_t gid = 1; gid <= c->plan.groups; gid++) {
        group_compare(c, gid);
    }
    return true;
}

bool verify_locks_gone(struct cluster *c)
{
    for (uint32_t i = 0; i < c->node_count; i++) {
        struct node *n = &c->nodes[i];
        const struct skv_fsm *fsm = n->skv != NULL ? n->skv->fsm : NULL;
        for (uint32_t s = 0; fsm != NULL && !n->lost && s < fsm->shards_count;
             s++) {
            if (fsm->shards[s].prepared != NULL) {
                return false;
            }
        }
    }
    return true;
}

static bool hears(const struct cluster *c, const struct ctl_client *ctl)
{
    return ctl == NULL ||
           ctl_client_silent_ms(ctl) < (c->world->now_us - c->done_us) / 1000;
}

bool verify_controllers_found(struct cluster *c)
{
    for (uint32_t i = 0; i < c->node_count; i++) {
        const struct node *n = &c->nodes[i];
        if (!n->env.dead && !n->lost &&
            !(hears(c, n->admin) &&
              hears(c, n->skv != NULL ? n->skv->mover.ctl : NULL) &&
              hears(c, n->clerk != NULL ? n->clerk->ctl : NULL))) {
            return false;
        }
    }
    return true;
}

void verify_describe(struct cluster *c)
{
    for (uint32_t i = 0; i < c->node_count; i++) {
        struct node *n = &c->nodes[i];
        struct rsm *rsm = node_is_server(n) ? node_rsm(n) : NULL;
        if (rsm == NULL) {
            continue;
        }
        struct rsm_status s;
        rsm_status(rsm, &s);
        sim_trace(c->world,
                  "n%u group %u: %s term %" PRIu64 " leader %" PRIu64
                  " log %" PRIu64 "..%" PRIu64 " commit %" PRIu64
                  " applied %" PRIu64 " durable %" PRIu64 " waiting %u",
                  n->number, n->gid, raft_role_text(s.raft.role), s.raft.term,
                  s.raft.leader, s.raft.first_index, s.raft.last_index,
                  s.raft.commit, s.applied, s.durable, s.proposals_waiting);
    }
}

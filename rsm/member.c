/* Changing who is in the group. What is asked for is a wish: a state of the
 * configuration that is to be reached. The leader looks, whenever something
 * happened, what the next step to each wish is; so a wish that is repeated, or
 * goes on with another leader, does no harm.
 *
 *   add       voters | learners + id
 *   promote   joint: voters + id, then final   (once it has caught up)
 *   remove    joint: voters - id, then final   (a learner: in one step)
 *   transfer  somebody else leads
 *
 * Invariants:
 *  1. One change at a time, and a joint configuration is always led on to its
 *     final one, by whoever leads (paper, section 6).
 *  2. No change is begun after which no majority answers: it could never be
 *     committed, and no other could be made.
 *  3. A wish is answered once: when it is reached, by a refusal, at its
 *     deadline, or when this replica does not lead.
 *  4. No wish is looked at before a majority has confirmed, since it came, that
 *     we lead: a leader that was deposed and has not heard of it knows an old
 *     configuration, in which a new replica is not there, or one that is to go
 *     has never been. */
#include "rsm/rsm_int.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"

MSG_CODEC(rsm_wish, RSM_WISH_FIELDS)
MSG_CODEC(rsm_member, RSM_MEMBER_FIELDS)
MSG_CODEC(rsm_members, RSM_MEMBERS_FIELDS)

enum { WISHES_MAX = 64, WISH_MS_MAX = 60000 };

struct rsm_wanted {
    struct rsm_read confirm; /* invariant 4; first: it is cast */
    struct rsm *rsm;
    struct rsm_wanted *next;
    struct net_request *request;
    enum rsm_change_kind kind;
    raft_id id;
    char address[NET_ADDRESS_SIZE_MAX];
    uint64_t deadline_ms;
    raft_index caught_up; /* PROMOTE: it must have this */
    bool transferring;    /* TRANSFER was begun */
};

/* ---- configurations ---- */

static void drop_id(raft_id *ids, uint32_t *count, raft_id id)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < *count; i++) {
        if (ids[i] != id) {
            ids[kept++] = ids[i];
        }
    }
    *count = kept;
}

/* The places of exactly those who are in it. */
static void set_places(const struct rsm *r, struct raft_conf *conf,
                       const struct rsm_wanted *w)
{
    raft_id ids[3 * RAFT_PEERS_MAX];
    uint32_t count = raft_conf_all(conf, ids);
    conf->place_count = 0;
    for (uint32_t i = 0; i < count; i++) {
        const char *address = w != NULL && w->kind == RSM_ADD && w->id == ids[i]
                                  ? w->address
                                  : rsm_address(r, ids[i]);
        if (address[0] != '\0') {
            struct raft_place *p = &conf->places[conf->place_count++];
            *p = (struct raft_place){.id = ids[i]};
            memcpy(p->address, address, strlen(address));
        }
    }
}

static bool has(const struct raft_conf *conf, raft_id id)
{
    return raft_conf_votes(conf, id) || raft_conf_learns(conf, id);
}

static struct raft_conf conf_joint(const struct raft_conf *now)
{
    struct raft_conf to = *now;
    memcpy(to.old, now->voters, sizeof to.old);
    to.old_count = now->voter_count;
    return to;
}

/* The configuration that leads to the wish, from one that is settled. */
static struct raft_conf conf_next(const struct raft_conf *now,
                                  const struct rsm_wanted *w)
{
    struct raft_conf to = *now;
    to.last_id = raft_conf_last_id(now);
    switch (w->kind) {
    case RSM_ADD: to.learners[to.learner_count++] = w->id; break;
    case RSM_PROMOTE:
        to = conf_joint(&to);
        drop_id(to.learners, &to.learner_count, w->id);
        to.voters[to.voter_count++] = w->id;
        break;
    case RSM_REMOVE:
        if (raft_conf_votes(now, w->id)) {
            to = conf_joint(&to);
            drop_id(to.voters, &to.voter_count, w->id);
        } else {
            drop_id(to.learners, &to.learner_count, w->id);
        }
        break;
    case RSM_TRANSFER: break;
    }
    return to;
}

static enum err propose(struct rsm *r, const struct raft_conf *to)
{
    struct buf b = {0};
    raft_conf_encode(&b, to);
    struct raft_entry entry = {.type = RAFT_ENTRY_CONF,
                               .data = bytes_copy(buf_slice(&b))};
    struct raft_event event = {
        .type = RAFT_EV_PROPOSE,
        .u.propose = {.entries = &entry, .count = 1},
    };
    enum err rc = rsm_step(r, &event, NULL);
    bytes_unref(entry.data);
    buf_free(&b);
    log_info("rsm",
             "proposed a configuration group=%u voters=%u old=%u learners=%u: "
             "%s",
             r->config.group, to->voter_count, to->old_count, to->learner_count,
             err_text(rc));
    return rc;
}

/* ---- one wish ---- */

static const struct raft_peer_status *peer_of(const struct raft_status *s,
                                              raft_id id)
{
    for (uint32_t i = 0; i < s->peer_count; i++) {
        if (s->peers[i].id == id) {
            return &s->peers[i];
        }
    }
    return NULL;
}

/* Invariant 2. */
static bool majority_answers(const struct rsm *r, const struct raft_status *s,
                             const struct raft_conf *to, raft_id arriving)
{
    uint32_t answer = 0;
    for (uint32_t i = 0; i < to->voter_count; i++) {
        const struct raft_peer_status *p = peer_of(s, to->voters[i]);
        answer += to->voters[i] == r->config.id || to->voters[i] == arriving ||
                  (p != NULL && p->active);
    }
    return answer > to->voter_count / 2;
}

static bool is_reached(const struct rsm *r, const struct raft_conf *now,
                       const struct rsm_wanted *w)
{
    switch (w->kind) {
    case RSM_ADD: return has(now, w->id);
    case RSM_PROMOTE: return raft_conf_votes(now, w->id);
    case RSM_REMOVE: return !has(now, w->id);
    case RSM_TRANSFER: return !r->leading || w->id == r->config.id;
    }
    return false;
}

static bool address_taken(const struct rsm *r, const struct raft_conf *now,
                          const char *address)
{
    raft_id ids[3 * RAFT_PEERS_MAX];
    uint32_t count = raft_conf_all(now, ids);
    for (uint32_t i = 0; i < count; i++) {
        if (strcmp(rsm_address(r, ids[i]), address) == 0) {
            return true;
        }
    }
    return false;
}

/* What cannot be, whatever happens. */
static enum err refusal(const struct rsm *r, const struct raft_conf *now,
                        const struct rsm_wanted *w)
{
    raft_id ids[3 * RAFT_PEERS_MAX];
    switch (w->kind) {
    case RSM_ADD:
        if (raft_conf_all(now, ids) == RAFT_PEERS_MAX) {
            return ERR_TOOBIG;
        }
        return w->id <= raft_conf_last_id(now) ||
                       address_taken(r, now, w->address)
                   ? ERR_EXISTS
                   : ERR_OK;
    case RSM_PROMOTE: return has(now, w->id) ? ERR_OK : ERR_NOTFOUND;
    case RSM_REMOVE:
        return now->voter_count == 1 && raft_conf_votes(now, w->id)
                   ? ERR_INVALID
                   : ERR_OK;
    case RSM_TRANSFER:
        return w->id == 0 || raft_conf_votes(now, w->id) ? ERR_OK
                                                         : ERR_NOTFOUND;
    }
    return ERR_INVALID;
}

static enum err begin_transfer(struct rsm *r, struct rsm_wanted *w)
{
    struct raft_event event = {.type = RAFT_EV_TRANSFER, .u.peer = w->id};
    if (w->transferring) {
        return ERR_OK;
    }
    w->transferring = true;
    return rsm_step(r, &event, NULL);
}

/* The next step to the wish; an error ends it. */
static enum err go_on(struct rsm *r, const struct raft_status *s,
                      struct rsm_wanted *w)
{
    const struct raft_conf *now = &s->conf;
    enum err rc = refusal(r, now, w);
    if (rc != ERR_OK) {
        return rc;
    }
    if (w->kind == RSM_TRANSFER) {
        return begin_transfer(r, w);
    }
    const struct raft_peer_status *p = peer_of(s, w->id);
    if (w->kind == RSM_PROMOTE &&
        (p == NULL || !p->active || p->match < w->caught_up)) {
        return ERR_OK; /* catching up */
    }
    struct raft_conf to = conf_next(now, w);
    set_places(r, &to, w);
    if (!majority_answers(r, s, &to, w->kind == RSM_PROMOTE ? w->id : 0)) {
        return ERR_BUSY;
    }
    rc = propose(r, &to);
    return rc == ERR_BUSY ? ERR_OK : rc; /* something is before it */
}

static bool is_settled(const struct rsm *r, const struct raft_status *s)
{
    return s->conf.old_count == 0 && s->conf_index <= r->commit;
}

/* True when it has its answer. */
static bool look_at(struct rsm *r, struct rsm_wanted *w)
{
    struct raft_status s;
    raft_status(r->raft, &s);
    enum err rc = ERR_OK;
    bool settled = is_settled(r, &s);
    if (settled && is_reached(r, &s.conf, w)) {
        rc = ERR_OK;
    } else if (!r->leading) {
        rc = ERR_NOTLEADER;
    } else if (env_now_ms(r->env) >= w->deadline_ms) {
        rc = ERR_TIMEDOUT;
    } else {
        if (settled) {
            rc = go_on(r, &s, w);
        }
        if (rc == ERR_OK) {
            return false;
        }
    }
    net_reply(r->config.net, w->request, rc, slice_of(NULL, 0));
    return true;
}

/* ---- all of them ---- */

/* Invariant 1. */
static void finish_joint(struct rsm *r)
{
    raft_index index = 0;
    const struct raft_conf *now = raft_conf_newest(r->raft, &index);
    if (!r->leading || now->old_count == 0 || index > r->commit) {
        return;
    }
    struct raft_conf to = *now;
    to.old_count = 0;
    to.last_id = raft_conf_last_id(now);
    set_places(r, &to, NULL);
    (void)propose(r, &to); /* ERR_BUSY: at the next look */
}

bool rsm_member_is_due(const struct rsm *r)
{
    raft_index index = 0;
    return r->wishes != NULL ||
           (r->leading && raft_conf_newest(r->raft, &index)->old_count > 0);
}

void rsm_member_pump(struct rsm *r)
{
    if (rsm_stopped(r)) {
        return;
    }
    r->looking = true;
    finish_joint(r);
    struct rsm_wanted **at = &r->wishes;
    while (*at != NULL && !rsm_stopped(r)) {
        struct rsm_wanted *w = *at;
        if (look_at(r, w)) {
            *at = w->next;
            mem_free(w);
            r->wish_count--;
        } else {
            at = &w->next;
        }
    }
    r->looking = false;
}

void rsm_member_close(struct rsm *r)
{
    while (r->wishes != NULL) {
        struct rsm_wanted *w = r->wishes;
        r->wishes = w->next;
        net_reply(r->config.net, w->request, ERR_CLOSED, slice_of(NULL, 0));
        mem_free(w);
    }
}

/* ---- from the network ---- */

static bool wish_makes_sense(const struct rsm_wish *m)
{
    bool has_address = m->address.size > 0 &&
                       m->address.size < NET_ADDRESS_SIZE_MAX &&
                       memchr(m->address.data, 0, m->address.size) == NULL;
    switch ((enum rsm_change_kind)m->kind) {
    case RSM_ADD: return m->id != 0 && has_address;
    case RSM_PROMOTE:
    case RSM_REMOVE: return m->id != 0;
    case RSM_TRANSFER: return true;
    }
    return false;
}

static void confirm_run(struct rsm_read *rd)
{
    (void)rd; /* that it may run is all */
}

/* ERR_BUSY of a read is about this replica, not about the change. */
static void confirm_done(struct rsm_read *rd, enum err rc)
{
    struct rsm_wanted *w = (struct rsm_wanted *)rd;
    struct rsm *r = w->rsm;
    if (rsm_stopped(r)) {
        rc = ERR_CLOSED; /* nobody looks at wishes any more */
    }
    if (rc != ERR_OK) {
        net_reply(r->config.net, w->request, rc == ERR_BUSY ? ERR_TIMEDOUT : rc,
                  slice_of(NULL, 0));
        mem_free(w);
        r->wish_count--;
        return;
    }
    struct raft_status s;
    raft_status(r->raft, &s);
    w->caught_up = s.last_index;
    w->next = r->wishes;
    r->wishes = w;
    rsm_flush_later(r);
}

void rsm_member_change(struct rsm *r, struct net_request *request,
                       const struct net_peer *peer, struct slice body)
{
    struct arena arena = {0};
    struct rsm_wish m;
    enum err rc = rsm_wish_decode(body, &arena, &m);
    if (peer->role != NET_ROLE_ADMIN) {
        rc = ERR_DENIED;
    } else if (rc != ERR_OK || !wish_makes_sense(&m)) {
        rc = ERR_INVALID;
    } else if (!r->leading) {
        rc = ERR_NOTLEADER;
    } else if (r->wish_count == WISHES_MAX) {
        rc = ERR_BUSY;
    }
    if (rc != ERR_OK) {
        net_reply(r->config.net, request, rc, slice_of(NULL, 0));
        arena_free(&arena);
        return;
    }
    struct rsm_wanted *w = mem_alloc(sizeof *w);
    w->request = request;
    w->kind = (enum rsm_change_kind)m.kind;
    w->id = m.id;
    if (w->kind == RSM_ADD) {
        memcpy(w->address, m.address.data, m.address.size);
    }
    w->deadline_ms = env_now_ms(r->env) +
                     (m.timeout_ms < WISH_MS_MAX ? m.timeout_ms : WISH_MS_MAX);
    w->rsm = r;
    w->confirm.run = confirm_run;
    w->confirm.done = confirm_done;
    r->wish_count++;
    arena_free(&arena);
    rsm_read(r, &w->confirm);
}

static uint8_t role_of(const struct raft_conf *conf, raft_id id)
{
    if (raft_conf_learns(conf, id)) {
        return RSM_LEARNER;
    }
    if (conf->old_count == 0) {
        return RSM_VOTER;
    }
    bool is_new = false, was = false;
    for (uint32_t i = 0; i < conf->voter_count; i++) {
        is_new |= conf->voters[i] == id;
    }
    for (uint32_t i = 0; i < conf->old_count; i++) {
        was |= conf->old[i] == id;
    }
    return is_new ? (was ? RSM_VOTER : RSM_ARRIVING) : RSM_LEAVING;
}

uint32_t rsm_member_list(const struct rsm *r,
                         struct rsm_member members[RAFT_PEERS_MAX])
{
    struct raft_status s;
    raft_id ids[3 * RAFT_PEERS_MAX];
    raft_status(r->raft, &s);
    uint32_t count = raft_conf_all(&s.conf, ids);
    for (uint32_t i = 0; i < count; i++) {
        const struct raft_peer_status *p = peer_of(&s, ids[i]);
        bool is_self = ids[i] == r->config.id;
        members[i] = (struct rsm_member){
            .id = ids[i],
            .address = slice_text(rsm_address(r, ids[i])),
            .role = role_of(&s.conf, ids[i]),
            .match = is_self     ? s.persisted
                     : p != NULL ? p->match
                                 : 0,
            .active = is_self || (p != NULL && p->active),
        };
        rsm_outgoing_show(r, &members[i]);
    }
    return count;
}

void rsm_member_show(struct rsm *r, struct net_request *request)
{
    struct rsm_member members[RAFT_PEERS_MAX];
    struct raft_status s;
    raft_status(r->raft, &s);
    struct rsm_members m = {
        .group = r->config.group,
        .leader = s.leader,
        .term = s.term,
        .last_index = s.last_index,
        .settled = is_settled(r, &s),
        .last_id = raft_conf_last_id(&s.conf),
        .members = members,
        .members_count = rsm_member_list(r, members),
    };
    struct buf body = {0};
    rsm_members_encode(&body, &m);
    net_reply(r->config.net, request, ERR_OK, buf_slice(&body));
    buf_free(&body);
}

void rsm_forgot_problem(const struct rsm_status *status, uint32_t group,
                        char *words, size_t size)
{
    words[0] = '\0';
    for (uint32_t i = 0; i < status->raft.peer_count; i++) {
        const struct raft_peer_status *p = &status->raft.peers[i];
        if (p->forgot && status->raft.role == RAFT_LEADER) {
            snprintf(words, size,
                     "replica %" PRIu64 " has lost entries that it had stored: "
                     "its disk was set back; `flotilla member replace %u "
                     "%" PRIu64 "`",
                     p->id, group, p->id);
        }
    }
}

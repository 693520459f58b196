/* What one committed command does to the state. Invariants:
 *
 *  1. Time is the highest stamp seen in the log (clock_us): replicas that
 *     applied the same entries agree on who is silent and who is idle.
 *  2. A change is made at most once: its session remembers the last sequence
 *     and its answer; a lower sequence, or one above 1 in a session that is
 *     not known (any more), is refused with ERR_EXPIRED.
 *  3. The number of configurations only grows, by one a change.
 *  4. Sessions and mounts are sorted by session, and bounded. */
#include "shardctrler/fsm_int.h"

#include <string.h>

#include "base/check.h"

MSG_CODEC(ctl_command, CTL_COMMAND_FIELDS)
MSG_CODEC(ctl_init, CTL_INIT_FIELDS)

enum { SWEEP_EVERY_US = 1000000 };

enum err ctl_mount_check(const struct ctl_mount *m)
{
    bool fits =
        m->host.size <= CTL_HOST_SIZE_MAX && m->path.size <= CTL_PATH_SIZE_MAX;
    return fits ? (m->session != 0 ? ERR_OK : ERR_INVALID) : ERR_TOOBIG;
}

/* ---- sessions ---- */

/* Where `session` is, or would be inserted. */
static uint32_t session_place(const struct ctl_state *s, uint64_t session)
{
    uint32_t low = 0;
    uint32_t high = s->session_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (s->sessions[middle].session < session) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static struct ctl_session *session_find(const struct ctl_state *s,
                                        uint64_t session)
{
    uint32_t at = session_place(s, session);
    bool found = at < s->session_count && s->sessions[at].session == session;
    return found ? &s->sessions[at] : NULL;
}

static void session_remove(struct ctl_state *s, uint32_t at)
{
    s->session_count--;
    memmove(&s->sessions[at], &s->sessions[at + 1],
            (s->session_count - at) * sizeof *s->sessions);
}

/* Room for one more: the one idle longest goes, but not before a clerk's last
 * retry of its change is long over (ctl_client gives up after five minutes). */
static bool session_make_room(struct ctl_state *s)
{
    if (s->session_count < CTL_SESSIONS_MAX) {
        return true;
    }
    uint32_t oldest = 0;
    for (uint32_t i = 1; i < s->session_count; i++) {
        if (s->sessions[i].heard_us < s->sessions[oldest].heard_us) {
            oldest = i;
        }
    }
    if (s->clock_us - s->sessions[oldest].heard_us < CTL_SESSION_KEEP_US) {
        return false;
    }
    session_remove(s, oldest);
    return true;
}

static struct ctl_session *session_insert(struct ctl_state *s, uint64_t session)
{
    uint32_t at = session_place(s, session);
    ctl_state_reserve(s, s->session_count + 1, 0);
    memmove(&s->sessions[at + 1], &s->sessions[at],
            (s->session_count - at) * sizeof *s->sessions);
    s->session_count++;
    s->sessions[at] = (struct ctl_session){.session = session};
    return &s->sessions[at];
}

/* ---- changes ---- */

static enum err change_make(struct ctl_state *s, struct arena *a,
                            const struct ctl_change *c, struct ctl_config *next)
{
    const struct ctl_config *last = &s->history.newest;
    switch ((enum ctl_change_kind)c->kind) {
    case CTL_JOIN:
        return ctl_config_join(a, last, c->join, c->join_count, next);
    case CTL_LEAVE: {
        ctl_gid *gids = arena_array(a, c->leave_count, sizeof *gids);
        for (uint32_t i = 0; i < c->leave_count; i++) {
            gids[i] = c->leave[i].gid;
        }
        return ctl_config_leave(a, last, gids, c->leave_count, next);
    }
    case CTL_SERVERS:
        return c->join_count == 1 ? ctl_config_servers(a, last, c->join, next)
                                  : ERR_INVALID;
    case CTL_MOVE:
        return ctl_config_move(a, last, c->move_shard, c->move_gid, next);
    case CTL_WEIGH:
        return ctl_config_reweigh(a, last, c->weigh.gid, c->weigh.weight, next);
    case CTL_LIMIT: return ctl_config_limit(a, last, c->limit, next);
    }
    return ERR_INVALID;
}

static enum err change_execute(struct ctl_state *s, struct arena *a,
                               const struct ctl_change *c)
{
    struct ctl_config next;
    if (s->history.bytes.size > CTL_HISTORY_SIZE_MAX) {
        return ERR_TOOBIG;
    }
    enum err rc = change_make(s, a, c, &next);
    if (rc == ERR_OK) {
        ctl_history_append(&s->history, &next);
    }
    return rc;
}

/* Invariant 2. NULL when the change must not be made, and then the answer is
 * `*changed`. */
static struct ctl_session *change_admit(struct ctl_state *s,
                                        const struct ctl_change *c,
                                        struct ctl_changed *changed)
{
    if (c->session == 0 || c->sequence == 0) {
        changed->rc = ERR_INVALID;
        return NULL;
    }
    struct ctl_session *known = session_find(s, c->session);
    if (known != NULL && c->sequence == known->sequence) {
        changed->rc = known->rc;
        changed->number = known->number;
        return NULL;
    }
    if (known != NULL ? c->sequence < known->sequence : c->sequence != 1) {
        changed->rc = ERR_EXPIRED;
        return NULL;
    }
    if (known == NULL && !session_make_room(s)) {
        changed->rc = ERR_BUSY;
        return NULL;
    }
    return known != NULL ? known : session_insert(s, c->session);
}

static void apply_change(struct ctl_state *s, struct slice body,
                         struct buf *reply)
{
    struct arena a = {0};
    struct ctl_change c;
    struct ctl_changed changed = {.number = s->history.count};
    if (ctl_change_decode(body, &a, &c) != ERR_OK) {
        changed.rc = ERR_CORRUPT;
    } else if (s->shard_count == 0) {
        changed.rc = ERR_BUSY;
    } else {
        struct ctl_session *known = change_admit(s, &c, &changed);
        if (known != NULL) {
            changed.rc = change_execute(s, &a, &c);
            changed.number = s->history.count;
            known->sequence = c.sequence;
            known->rc = changed.rc;
            known->number = changed.number;
            known->heard_us = s->clock_us;
        }
    }
    ctl_changed_encode(reply, &changed);
    arena_free(&a);
}

/* ---- mounts ---- */

static uint32_t mount_place(const struct ctl_state *s, uint64_t session)
{
    uint32_t low = 0;
    uint32_t high = s->mount_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (s->mounts[middle].mount.session < session) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static void mount_release(struct ctl_mounted *m)
{
    ctl_text_disown(m->mount.host);
    ctl_text_disown(m->mount.path);
}

static void mount_remove(struct ctl_state *s, uint32_t at)
{
    mount_release(&s->mounts[at]);
    s->mount_count--;
    memmove(&s->mounts[at], &s->mounts[at + 1],
            (s->mount_count - at) * sizeof *s->mounts);
}

static enum err mount_set(struct ctl_state *s, const struct ctl_mount *m)
{
    enum err rc = ctl_mount_check(m);
    if (rc != ERR_OK) {
        return rc;
    }
    uint32_t at = mount_place(s, m->session);
    bool known =
        at < s->mount_count && s->mounts[at].mount.session == m->session;
    if (m->gone != 0) {
        if (known) {
            mount_remove(s, at);
        }
        return ERR_OK;
    }
    if (!known && s->mount_count == CTL_MOUNTS_MAX) {
        return ERR_BUSY;
    }
    if (known) {
        mount_release(&s->mounts[at]);
    } else {
        ctl_state_reserve(s, 0, s->mount_count + 1);
        memmove(&s->mounts[at + 1], &s->mounts[at],
                (s->mount_count - at) * sizeof *s->mounts);
        s->mount_count++;
    }
    s->mounts[at] = (struct ctl_mounted){.mount = *m, .heard_us = s->clock_us};
    s->mounts[at].mount.host = ctl_text_own(m->host);
    s->mounts[at].mount.path = ctl_text_own(m->path);
    return ERR_OK;
}

static void apply_mount(struct ctl_state *s, struct slice body,
                        struct buf *reply)
{
    struct arena a = {0};
    struct ctl_mount m;
    enum err rc = ctl_mount_decode(body, &a, &m);
    enc_u32(reply, rc == ERR_OK ? mount_set(s, &m) : rc);
    arena_free(&a);
}

/* ---- the replicated clock ---- */

static void sweep(struct ctl_state *s)
{
    for (uint32_t i = s->mount_count; i-- > 0;) {
        if (s->clock_us - s->mounts[i].heard_us > CTL_MOUNT_SILENT_US) {
            mount_remove(s, i);
        }
    }
    uint32_t kept = 0;
    for (uint32_t i = 0; i < s->session_count; i++) {
        if (s->clock_us - s->sessions[i].heard_us <= CTL_SESSION_IDLE_US) {
            s->sessions[kept++] = s->sessions[i];
        }
    }
    s->session_count = kept;
}

/* Invariant 1. Sweeping once a second of the replicated clock is as
 * deterministic as at each command, and costs nothing. */
static void clock_advance(struct ctl_state *s, uint64_t stamp_us)
{
    if (stamp_us <= s->clock_us) {
        return;
    }
    bool due = stamp_us / SWEEP_EVERY_US != s->clock_us / SWEEP_EVERY_US;
    s->clock_us = stamp_us;
    if (due) {
        sweep(s);
    }
}

/* ---- commands ---- */

/* The first leader's; others that were proposed before it was seen do nothing.
 */
static void apply_init(struct ctl_state *s, struct slice body)
{
    struct arena a = {0};
    struct ctl_init init;
    bool good = ctl_init_decode(body, &a, &init) == ERR_OK &&
                init.shard_count > 0 && init.shard_count <= CTL_SHARDS_MAX;
    if (good && s->shard_count == 0) {
        s->shard_count = init.shard_count;
        ctl_history_init(&s->history, init.shard_count);
    }
    arena_free(&a);
}

void ctl_state_apply(struct ctl_state *s, const struct rsm_entry *entry,
                     struct buf *reply)
{
    CHECK(entry->index == s->index + 1);
    s->index = entry->index;
    s->term = entry->term;
    if (entry->type != RAFT_ENTRY_COMMAND) {
        return;
    }
    struct arena a = {0};
    struct ctl_command c;
    if (ctl_command_decode(entry->command, &a, &c) == ERR_OK) {
        clock_advance(s, c.stamp_us);
        switch ((enum ctl_command_kind)c.kind) {
        case CTL_COMMAND_INIT: apply_init(s, c.body); break;
        case CTL_COMMAND_CHANGE: apply_change(s, c.body, reply); break;
        case CTL_COMMAND_MOUNT: apply_mount(s, c.body, reply); break;
        }
    }
    arena_free(&a);
}

/* ---- reads ---- */

enum err ctl_state_query(const struct ctl_state *s, uint64_t number,
                         struct buf *out)
{
    if (s->shard_count == 0) {
        return ERR_BUSY;
    }
    if (number == CTL_LATEST || number == s->history.count) {
        ctl_config_encode(out, &s->history.newest);
        return ERR_OK;
    }
    if (number > s->history.count) {
        return ERR_NOTFOUND;
    }
    struct arena a = {0};
    struct ctl_config c;
    ctl_history_at(&s->history, number, &a, &c);
    ctl_config_encode(out, &c);
    arena_free(&a);
    return ERR_OK;
}

void ctl_state_list_mounts(const struct ctl_state *s, struct buf *out)
{
    enc_u32(out, s->mount_count);
    for (uint32_t i = 0; i < s->mount_count; i++) {
        ctl_mount_encode(out, &s->mounts[i].mount);
    }
}

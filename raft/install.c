/* Followers that need what the log no longer has, and logs that were replaced
 * by a snapshot. Raft paper, section 7. The bytes of a snapshot pass by the
 * core: the shell streams them, and tells how it went. */
#include "raft/raft_int.h"

void raft_install_need(struct raft *r, struct raft_progress *p)
{
    if (p->state == RAFT_PROGRESS_SNAPSHOT) {
        return;
    }
    p->state = RAFT_PROGRESS_SNAPSHOT;
    CHECK(r->need_count < RAFT_PEERS_MAX);
    r->need[r->need_count++] = p->id;
}

/* After a failure the follower must answer a heartbeat before it is named
 * again: that is the pause between attempts, and its proof of life. */
enum err raft_install_sent(struct raft *r, raft_id peer, raft_index index,
                           bool ok)
{
    if (r->role != RAFT_LEADER) {
        return ERR_NOTLEADER;
    }
    struct raft_progress *p = raft_progress_of(r, peer);
    if (p == NULL || p->state != RAFT_PROGRESS_SNAPSHOT ||
        index > raft_log_last(&r->log)) {
        return ERR_INVALID;
    }
    raft_progress_probe(p, ok && index >= p->next ? index + 1 : p->next);
    p->probe_sent = true;
    if (ok) {
        raft_append_heartbeat(r, p);
    }
    return ERR_OK;
}

bool raft_wants_snapshot(const struct raft *r, raft_index index, raft_term term)
{
    return index > r->commit && !raft_log_has(&r->log, index, term);
}

bool raft_install_begin(struct raft *r, raft_index index, raft_term term)
{
    if (r->role == RAFT_LEADER || r->installing ||
        !raft_wants_snapshot(r, index, term)) {
        return false;
    }
    /* A candidate gives up: its log is older than what is committed. */
    raft_become_follower(r, r->term, r->leader);
    r->installing = true;
    return true;
}

void raft_install_abort(struct raft *r)
{
    r->installing = false;
}

/* "If existing log entry has same index and term as snapshot's last included
 * entry, retain log entries following it" (Figure 13); else all are gone. */
enum err raft_install_done(struct raft *r, raft_index index, raft_term term,
                           const struct raft_conf *conf)
{
    if (r->role == RAFT_LEADER || index < r->log.base || index < r->told ||
        term == 0 || raft_conf_check(conf) != ERR_OK) {
        return ERR_INVALID;
    }
    if (term > r->term) {
        raft_become_follower(r, term, 0);
    }
    if (raft_log_has(&r->log, index, term)) {
        raft_log_compact(&r->log, index);
        raft_conf_reset(r, index, conf);
    } else if (index > r->commit) {
        raft_log_reset(&r->log, index, term);
        r->conf_count = 0;
        raft_conf_push(r, index, conf);
        r->leader_match = 0;
    } else {
        return ERR_INVALID;
    }
    r->installing = false;
    raft_persist_restart(r, index);
    if (index > r->commit) {
        r->commit = index;
    }
    /* Tell the leader at once; it may have given up on the stream. */
    if (r->role == RAFT_FOLLOWER && r->leader != 0) {
        raft_append_acknowledge(r);
    }
    return ERR_OK;
}

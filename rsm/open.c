/* Starting: what the log, the state machine and an interrupted install say must
 * fit together. With d the state machine's durable index:
 *
 *   log:     start -------- d -------- last      the usual: replay from d + 1
 *   log:     start -- last        d              an install was interrupted
 *   log:           d   start -------- last       entries are missing: refused
 *
 * An install replaces the state machine first and the log after it. A crash in
 * between leaves the second picture (or the first with another term at d); the
 * received stream is still in "snap/in", and its label has the term and the
 * configuration that the log is to begin with. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "rsm/rsm_int.h"

_Static_assert(RAFT_ADDRESS_SIZE_MAX == NET_ADDRESS_SIZE_MAX, "the same text");

static struct raft_conf first_conf(const struct rsm_config *c)
{
    struct raft_conf conf = {0};
    for (uint32_t i = 0; i < c->peer_count; i++) {
        conf.voters[conf.voter_count++] = c->peers[i].id;
        if (c->peers[i].address[0] == '\0') {
            continue;
        }
        struct raft_place *p = &conf.places[conf.place_count++];
        p->id = c->peers[i].id;
        memcpy(p->address, c->peers[i].address, sizeof p->address);
    }
    return conf;
}

/* The first configuration goes into the log, so that a later start does not
 * depend on what the command line says then. */
static enum err begin_log(struct rsm *r, struct wal_recovery *rec)
{
    if (rec->start_conf.voter_count > 0 || r->identity.joining) {
        return ERR_OK; /* stored already; or the group will tell */
    }
    rec->start_conf = first_conf(&r->config);
    return wal_compact(r->wal, rec->start_index, rec->start_term,
                       &rec->start_conf);
}

static bool was_evicted(const struct wal_recovery *rec, raft_index index,
                        raft_term term)
{
    raft_term found = 0;
    for (uint32_t i = 0; i < rec->run_count && rec->runs[i].first <= index;
         i++) {
        found = rec->runs[i].term;
    }
    return index <= rec->evicted_index && found == term;
}

/* Entries from `durable` on are loaded, so it is the last that may be not. */
static bool has_entry(const struct wal_recovery *rec, raft_index index,
                      raft_term term)
{
    if (index == rec->start_index) {
        return index == 0 || rec->start_term == term;
    }
    return index > rec->start_index && was_evicted(rec, index, term);
}

static enum err finish_install(struct rsm *r, struct wal_recovery *rec,
                               raft_index durable, raft_term term)
{
    struct snap_label label;
    enum err rc = rsm_incoming_label(r, &label);
    if (rc != ERR_OK || label.index != durable || label.term != term) {
        log_error(
            "rsm",
            "the state machine is at index %" PRIu64
            ", which the log does not have. Give this replica's place to a "
            "new one: `flotilla member replace %u %" PRIu64 "`",
            durable, r->config.group, r->config.id);
        return rc == ERR_IO ? ERR_IO : ERR_CORRUPT;
    }
    log_info("rsm", "finishing an interrupted install index=%" PRIu64, durable);
    rc = wal_reset(r->wal, label.index, label.term, &label.conf);
    if (rc == ERR_OK) {
        rsm_incoming_forget(r);
    }
    struct raft_hard_state hard_state = rec->hard_state;
    wal_recovery_free(rec);
    rec->hard_state = hard_state;
    rec->start_index = label.index;
    rec->start_term = label.term;
    rec->start_conf = label.conf;
    return rc;
}

static enum err join_up(struct rsm *r, struct wal_recovery *rec,
                        raft_index durable, raft_term term)
{
    r->durable = r->submitted = r->applied = durable;
    if (durable < rec->start_index) {
        log_error("rsm",
                  "the log begins after index %" PRIu64
                  ", but the state machine ends at %" PRIu64
                  ". Give this replica's place to a new one: `flotilla member "
                  "replace %u %" PRIu64 "`",
                  rec->start_index, durable, r->config.group, r->config.id);
        return ERR_CORRUPT;
    }
    if (!has_entry(rec, durable, term)) {
        return finish_install(r, rec, durable, term);
    }
    return begin_log(r, rec);
}

static void note_places(struct rsm *r)
{
    struct wal_mark *marks = NULL;
    uint32_t count = 0;
    wal_take_marks(r->wal, &marks, &count);
    rsm_stored_note(r, marks, count);
    mem_free(marks);
}

static enum err make_raft(struct rsm *r, const struct wal_recovery *rec)
{
    const struct rsm_config *c = &r->config;
    struct raft_config config = {
        .id = c->id,
        .seed = env_random(r->env),
        .heartbeat_ms = c->heartbeat_ms,
        .election_min_ms = c->election_min_ms,
        .election_max_ms = c->election_max_ms,
        .append_size_max = c->append_size_max,
        .lease_reads = c->lease_reads,
        .restarted = rec->hard_state.term > 0,
        .hard_state = rec->hard_state,
        .snapshot_index = rec->start_index,
        .snapshot_term = rec->start_term,
        .conf = rec->start_conf,
        .evicted_index = rec->evicted_index,
        .runs = rec->runs,
        .run_count = rec->run_count,
        .confs = rec->confs,
        .conf_count = rec->conf_count,
        .entries = rec->entries,
        .entry_count = rec->entry_count,
        .now_ms = env_now_ms(r->env),
    };
    r->compacted = rec->start_index;
    note_places(r);
    rsm_checkpoint_recovered(r);
    log_info("rsm",
             "opened the log group=%u id=%" PRIu64 " term=%" PRIu64
             " start=%" PRIu64 " applied=%" PRIu64 " entries_after=%u",
             c->group, c->id, rec->hard_state.term, rec->start_index,
             r->applied, rec->entry_count);
    return raft_new(&config, &r->raft);
}

/* A log that was ever opened begins with a configuration. */
static bool is_new_log(const struct wal_recovery *rec)
{
    return rec->start_index == 0 && rec->entry_count == 0 &&
           rec->run_count == 0 && rec->start_conf.voter_count == 0 &&
           rec->hard_state.term == 0;
}

/* The log knows what is wrong with it, and not whose it is. */
static void say_damage(const struct rsm *r, enum err rc, const char *problem)
{
    uint32_t group = r->config.group;
    char repair[64] = "";
    if (rc != ERR_CORRUPT && rc != ERR_VERSION) {
        log_error("rsm", "cannot open the log: %s", err_text(rc));
        return;
    }
    if (rc == ERR_CORRUPT) {
        snprintf(repair, sizeof repair,
                 "; if most are damaged: `flotilla member repair %u`", group);
    }
    log_error("rsm",
              "cannot open the log: %s %s%s its place to a new one: `flotilla "
              "member replace %u %" PRIu64 "`%s",
              err_text(rc), problem, rc == ERR_VERSION ? ", or give" : ". Give",
              group, r->config.id, repair);
}

enum err rsm_open_log(struct rsm *r)
{
    struct disk *disk = r->config.disk;
    struct wal_recovery rec = {0};
    enum err rc = disk->ops->mkdir(disk, "snap");
    if (rc != ERR_OK) {
        return rc;
    }
    raft_term term = 0;
    raft_index durable = r->config.fsm->ops->durable(r->config.fsm, &term);
    rc = wal_open(disk, "wal", r->config.wal_segment_size, durable, &r->wal,
                  &rec);
    if (rc != ERR_OK) {
        say_damage(r, rc, rec.problem);
        wal_recovery_free(&rec);
        return rc;
    }
    rc = rsm_identity_log(r, is_new_log(&rec));
    if (rc == ERR_OK) {
        rc = join_up(r, &rec, durable, term);
    }
    if (rc == ERR_OK) {
        rc = make_raft(r, &rec);
    }
    wal_recovery_free(&rec);
    if (rc != ERR_OK) {
        wal_close(r->wal);
    }
    return rc;
}

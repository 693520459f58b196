/* Holds the election that damaged replicas cannot hold, and does what its
 * winner would do. Invariants:
 *
 *  1. The group's log is the log that would win: the highest (term, index) at
 *     its end, of those whose end is known. They are a majority, so it has
 *     every committed entry (Leader Completeness).
 *  2. What is known of another log up to an entry that is also in the group's
 *     log is the same there (Log Matching). So the term of each index is
 *     learnt; between two of one term there is only that one.
 *  3. An entry is taken from anywhere if index, term and checksum are right.
 *  4. A replica's log becomes the group's log from its own start marker on: all
 *     of it, or its files are not touched.
 *  5. A replica that may have forgotten a vote goes on in a term that nobody
 *     can have voted in: a term that no whole record shows was begun by a hard
 *     state that lay in a hole, so there are no more of those than fit.
 *  6. The new log is one more segment with the reset flag, complete and synced
 *     before it has its name: a crash leaves the old log or the new one. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/codec.h"
#include "raft/storage/wal_repair_int.h"

#define FILE_SIZE_MAX ((uint64_t)1 << 32)
enum { WRITE_SIZE = 4 << 20, HARD_STATE_SIZE = WAL_RECORD_HEAD_SIZE + 8 };

struct repair {
    struct wal_repair_replica *replicas;
    struct wal_holes holes[RAFT_PEERS_MAX];
    uint32_t count;
    const char *dir;
    struct wal_places places; /* by index and term */

    /* The group's log: of `first` + i the term; 0: not known (yet). */
    raft_index first, last;
    raft_term *terms;
    struct raft_conf conf; /* the newest in it */

    struct buf segment; /* the one that was read last */
    uint32_t segment_replica;
    uint64_t segment_sequence; /* 0: none */
    char *problem;
};

static enum err refuse(struct repair *p, const char *words)
{
    snprintf(p->problem, 256, "%s", words);
    return ERR_CORRUPT;
}

/* --- What is intact */

static int by_name(const void *a, const void *b)
{
    const struct wal_place *x = a, *y = b;
    if (x->index != y->index) {
        return x->index < y->index ? -1 : 1;
    }
    return (x->term > y->term) - (x->term < y->term);
}

static const struct wal_place *find(const struct repair *p, raft_index index,
                                    raft_term term)
{
    const struct wal_place name = {.index = index, .term = term};
    return p->places.count == 0
               ? NULL
               : bsearch(&name, p->places.items, p->places.count, sizeof name,
                         by_name);
}

static raft_index log_end(const struct wal_holes *h, raft_term *term)
{
    if (h->term_count > 0) {
        *term = h->terms[h->term_count - 1];
        return h->first_index + h->term_count - 1;
    }
    *term = h->start_term;
    return h->start_index;
}

/* What is gone may have held votes, too, as many as there was room for: so it
 * is not repaired, and its end does not count. */
static void look_at_end(struct wal_repair_replica *r, struct wal_holes *h)
{
    raft_term term = 0;
    raft_index end = log_end(h, &term);
    if (!h->readable || end >= r->durable) {
        return;
    }
    h->cut_off = h->end_lost = true;
    r->damaged = true;
    r->state = WAL_REPAIR_LEFT;
    snprintf(r->damage, sizeof r->damage,
             "its log ends at entry %" PRIu64 ", and its store holds %" PRIu64,
             end, r->durable);
}

static enum err read_all(struct repair *p)
{
    for (uint32_t i = 0; i < p->count; i++) {
        struct wal_repair_replica *r = &p->replicas[i];
        struct wal_holes *h = &p->holes[i];
        if (r->disk != NULL) {
            enum err rc = wal_holes_read(r->disk, p->dir, i, h, &p->places);
            if (rc == ERR_VERSION) {
                snprintf(p->problem, 256,
                         "the log of replica %" PRIu64 " has another format: "
                         "use the version of flotilla that wrote it",
                         r->id);
            }
            if (rc != ERR_OK) {
                return rc;
            }
        }
        r->holes = h->count;
        r->damaged = !h->readable || h->count > 0;
        r->state = r->damaged ? WAL_REPAIR_LEFT : WAL_REPAIR_WHOLE;
        r->missing = 0;
        r->missing_count = 0;
        snprintf(r->damage, sizeof r->damage, "%s",
                 h->readable ? h->first : "it has no log");
        look_at_end(r, h);
    }
    if (p->places.count > 0) {
        qsort(p->places.items, p->places.count, sizeof *p->places.items,
              by_name);
    }
    return ERR_OK;
}

/* Reads it again, and compares the checksum again. */
static enum err fetch(struct repair *p, const struct wal_place *place,
                      struct wal_record *record)
{
    if (p->segment_sequence != place->sequence ||
        p->segment_replica != place->replica) {
        p->segment_sequence = 0;
        enum err rc = wal_holes_load(p->replicas[place->replica].disk, p->dir,
                                     place->sequence, &p->segment);
        if (rc != ERR_OK) {
            return rc;
        }
        p->segment_sequence = place->sequence;
        p->segment_replica = place->replica;
    }
    if (place->offset >= p->segment.size ||
        wal_record_look(buf_slice(&p->segment), place->sequence, place->offset,
                        record) != WAL_LOOK_RECORD ||
        record->index != place->index || record->term != place->term) {
        return ERR_CORRUPT;
    }
    return ERR_OK;
}

/* --- The group's log */

static bool is_end_known(const struct wal_holes *h)
{
    return h->readable && !h->end_lost && (h->has_start || h->term_count > 0);
}

/* Whose log would win; `count` if nobody's can be told. */
static uint32_t elect(const struct repair *p)
{
    uint32_t best = p->count;
    raft_term best_term = 0;
    raft_index best_index = 0;
    for (uint32_t i = 0; i < p->count; i++) {
        raft_term term = 0;
        if (!is_end_known(&p->holes[i])) {
            continue;
        }
        raft_index index = log_end(&p->holes[i], &term);
        if (best == p->count || term > best_term ||
            (term == best_term && index > best_index)) {
            best = i;
            best_term = term;
            best_index = index;
        }
    }
    return best;
}

static raft_term term_at(const struct repair *p, raft_index index)
{
    return index >= p->first && index <= p->last ? p->terms[index - p->first]
                                                 : 0;
}

/* False: it was known as another one. */
static bool learn(struct repair *p, raft_index index, raft_term term,
                  bool *learnt)
{
    if (term == 0 || index < p->first) {
        return true;
    }
    if (index > p->last) {
        return false;
    }
    raft_term *known = &p->terms[index - p->first];
    *learnt |= *known == 0;
    if (*known == 0) {
        *known = term;
    }
    return *known == term;
}

/* Invariant 2, with one other log. */
static bool match(struct repair *p, const struct wal_holes *h, bool *learnt)
{
    uint32_t same = h->term_count;
    while (same > 0 &&
           (h->terms[same - 1] == 0 ||
            h->terms[same - 1] != term_at(p, h->first_index + same - 1))) {
        same--;
    }
    for (uint32_t i = 0; i < same; i++) {
        if (!learn(p, h->first_index + i, h->terms[i], learnt)) {
            return false;
        }
    }
    return true;
}

static void bracket(struct repair *p, bool *learnt)
{
    raft_index known = 0;
    for (raft_index at = p->first; at <= p->last; at++) {
        raft_term term = term_at(p, at);
        if (term == 0) {
            continue;
        }
        for (raft_index i = known + 1; known > 0 && i < at; i++) {
            if (term_at(p, known) == term) {
                p->terms[i - p->first] = term;
                *learnt = true;
            }
        }
        known = at;
    }
}

static bool learn_all(struct repair *p)
{
    bool ok = true, learnt = true;
    while (learnt && ok) {
        learnt = false;
        for (uint32_t i = 0; i < p->count; i++) {
            const struct wal_holes *h = &p->holes[i];
            if (!h->readable) {
                continue;
            }
            /* What a start marker names is committed, so it is in the log. */
            if (h->has_start && h->start_index > 0) {
                ok &= learn(p, h->start_index, h->start_term, &learnt);
            }
            ok &= match(p, h, &learnt);
        }
        bracket(p, &learnt);
    }
    return ok;
}

static enum err lay_out(struct repair *p, uint32_t winner)
{
    const struct wal_holes *w = &p->holes[winner];
    raft_term term = 0;
    p->last = log_end(w, &term);
    p->first = p->last;
    for (uint32_t i = 0; i < p->count; i++) {
        const struct wal_holes *h = &p->holes[i];
        if (h->has_start && h->start_index + 1 < p->first) {
            p->first = h->start_index + 1;
        }
        if (h->term_count > 0 && h->first_index < p->first) {
            p->first = h->first_index;
        }
    }
    if (p->first == 0) {
        p->first = 1; /* nothing but a beginning */
    }
    uint64_t size = p->last >= p->first ? p->last - p->first + 1 : 0;
    if (size > UINT32_MAX) {
        return refuse(p, "the replicas' logs are too far apart");
    }
    p->terms = mem_array((size_t)size + 1, sizeof *p->terms);
    bool learnt = false, ok = true;
    for (uint32_t i = 0; i < w->term_count && ok; i++) {
        ok = learn(p, w->first_index + i, w->terms[i], &learnt);
    }
    if (!ok || !learn_all(p)) {
        return refuse(p, "the replicas' logs contradict each other");
    }
    return ERR_OK;
}

/* The configuration that the winner would go by. */
static enum err newest_conf(struct repair *p)
{
    raft_index start = 0;
    bool has = false;
    for (uint32_t i = 0; i < p->count; i++) {
        const struct wal_holes *h = &p->holes[i];
        if (h->has_start && (!has || h->start_index > start)) {
            has = true;
            start = h->start_index;
            p->conf = h->start_conf;
        }
    }
    for (raft_index at = start + 1; at <= p->last; at++) {
        struct wal_record record;
        const struct wal_place *place =
            term_at(p, at) == 0 ? NULL : find(p, at, term_at(p, at));
        if (place == NULL) {
            snprintf(p->problem, 256,
                     "entry %" PRIu64 " may be committed, and is intact on no "
                     "replica",
                     at);
            return ERR_CORRUPT;
        }
        enum err rc = fetch(p, place, &record);
        if (rc == ERR_OK && record.entry_type == RAFT_ENTRY_CONF) {
            rc = raft_conf_decode(record.payload, &p->conf);
        }
        if (rc != ERR_OK) {
            return rc;
        }
    }
    return has && p->conf.voter_count > 0
               ? ERR_OK
               : refuse(p, "no log says who is in the group");
}

typedef bool (*is_counted)(const struct repair *p, uint32_t i);

static bool end_counts(const struct repair *p, uint32_t i)
{
    return is_end_known(&p->holes[i]);
}

static bool start_counts(const struct repair *p, uint32_t i)
{
    return p->replicas[i].state != WAL_REPAIR_LEFT;
}

static uint32_t count_of(const struct repair *p, const raft_id *ids,
                         uint32_t id_count, is_counted counted)
{
    uint32_t count = 0;
    for (uint32_t k = 0; k < id_count; k++) {
        for (uint32_t i = 0; i < p->count; i++) {
            count += p->replicas[i].id == ids[k] && counted(p, i);
        }
    }
    return count;
}

static bool is_majority(const struct repair *p, is_counted counted)
{
    const struct raft_conf *c = &p->conf;
    return count_of(p, c->voters, c->voter_count, counted) >
               c->voter_count / 2 &&
           (c->old_count == 0 ||
            count_of(p, c->old, c->old_count, counted) > c->old_count / 2);
}

/* --- What each replica lacks */

/* The start marker that its log may begin with: its own; or, if that is lost,
 * the very first one. */
static const struct wal_holes *start_for(const struct repair *p, uint32_t i)
{
    if (p->holes[i].has_start) {
        return &p->holes[i];
    }
    for (uint32_t k = 0; k < p->count; k++) {
        if (p->holes[k].has_start && p->holes[k].start_index == 0 &&
            p->holes[k].start_conf.voter_count > 0) {
            return &p->holes[k];
        }
    }
    return NULL;
}

static bool was_everybody_read(const struct repair *p)
{
    raft_id ids[3 * RAFT_PEERS_MAX];
    uint32_t count = raft_conf_all(&p->conf, ids);
    for (uint32_t k = 0; k < count; k++) {
        bool read = !raft_conf_votes(&p->conf, ids[k]);
        for (uint32_t i = 0; i < p->count; i++) {
            read |= p->replicas[i].id == ids[k] && p->holes[i].readable;
        }
        if (!read) {
            return false;
        }
    }
    return true;
}

static void judge(struct repair *p, uint32_t i)
{
    struct wal_repair_replica *r = &p->replicas[i];
    const struct wal_holes *start = start_for(p, i);
    if (!r->damaged || !p->holes[i].readable || p->holes[i].cut_off ||
        start == NULL ||
        (p->holes[i].hard_state_lost && !was_everybody_read(p))) {
        return;
    }
    for (raft_index at = start->start_index + 1; at <= p->last; at++) {
        raft_term term = term_at(p, at);
        if (term == 0 || find(p, at, term) == NULL) {
            r->missing = r->missing_count++ == 0 ? at : r->missing;
        }
    }
    if (r->missing_count == 0) {
        r->state = WAL_REPAIR_REPAIRED;
    }
}

/* Invariant 5. */
static raft_term term_of_nobody(const struct repair *p)
{
    raft_term term = 0;
    uint64_t size = 0;
    for (uint32_t i = 0; i < p->count; i++) {
        const struct wal_holes *h = &p->holes[i];
        term = h->term_max > term ? h->term_max : term;
        size += h->size;
    }
    return term + size / HARD_STATE_SIZE + 1;
}

static struct raft_hard_state hard_state_for(const struct repair *p, uint32_t i)
{
    struct raft_hard_state state = p->holes[i].hard_state;
    raft_term last = term_at(p, p->last);
    if (p->holes[i].hard_state_lost) {
        return (struct raft_hard_state){.term = term_of_nobody(p)};
    }
    if (last > state.term) {
        state = (struct raft_hard_state){.term = last};
    }
    return state;
}

/* --- Writing */

struct writing {
    struct disk *disk;
    struct disk_file *file;
    uint64_t sequence;
    uint64_t end; /* in the file */
    struct buf b;
};

static enum err flush(struct writing *w)
{
    struct slice part = buf_slice(&w->b);
    if (w->end + part.size > FILE_SIZE_MAX - WRITE_SIZE) {
        return ERR_TOOBIG;
    }
    enum err rc = w->disk->ops->write(w->file, w->end, &part, 1);
    w->end += part.size;
    buf_clear(&w->b);
    return rc;
}

/* Each a group commit of its own: all of them are synced before the segment has
 * its name. */
static enum err put(struct writing *w, struct wal_record *record)
{
    uint64_t at = w->end + w->b.size;
    record->batch = (uint32_t)at;
    wal_record_write(&w->b, w->sequence, at, record);
    return w->b.size > WRITE_SIZE ? flush(w) : ERR_OK;
}

static enum err put_beginning(struct repair *p, uint32_t i, struct writing *w)
{
    const struct wal_holes *start = start_for(p, i);
    const struct wal_head head = {.sequence = w->sequence, .reset = true};
    struct raft_hard_state state = hard_state_for(p, i);
    uint8_t vote[8];
    set_u64(vote, state.vote);
    struct wal_record record = {.type = WAL_HARD_STATE,
                                .term = state.term,
                                .payload = slice_of(vote, sizeof vote)};
    wal_head_write(buf_extend(&w->b, WAL_HEAD_SIZE), &head);
    enum err rc = put(w, &record);
    struct buf conf = {0};
    raft_conf_encode(&conf, &start->start_conf);
    record = (struct wal_record){.type = WAL_START,
                                 .term = start->start_term,
                                 .index = start->start_index,
                                 .payload = buf_slice(&conf)};
    rc = rc == ERR_OK ? put(w, &record) : rc;
    buf_free(&conf);
    return rc;
}

static enum err put_entries(struct repair *p, uint32_t i, struct writing *w)
{
    enum err rc = ERR_OK;
    raft_index at = start_for(p, i)->start_index + 1;
    for (; at <= p->last && rc == ERR_OK; at++) {
        struct wal_record record;
        const struct wal_place *place = find(p, at, term_at(p, at));
        CHECK(place != NULL);
        rc = fetch(p, place, &record);
        if (rc == ERR_OK) {
            rc = put(w, &record);
        }
    }
    return rc == ERR_OK ? flush(w) : rc;
}

static enum err write_log(struct repair *p, uint32_t i)
{
    char part[WAL_PATH_SIZE], path[WAL_PATH_SIZE];
    struct disk *disk = p->replicas[i].disk;
    struct writing w = {.disk = disk,
                        .sequence = p->holes[i].last_sequence + 1};
    snprintf(part, sizeof part, "%s/repair", p->dir);
    wal_path(p->dir, w.sequence, path);
    enum err rc = disk->ops->open(disk, part, true, &w.file);
    if (rc != ERR_OK) {
        return rc;
    }
    rc = disk->ops->truncate(w.file, 0);
    rc = rc == ERR_OK ? put_beginning(p, i, &w) : rc;
    rc = rc == ERR_OK ? put_entries(p, i, &w) : rc;
    rc = rc == ERR_OK ? disk->ops->sync(w.file) : rc;
    disk->ops->close(w.file);
    buf_free(&w.b);
    rc = rc == ERR_OK ? disk->ops->rename(disk, part, path) : rc;
    return rc == ERR_OK ? disk->ops->sync_dir(disk, p->dir) : rc;
}

/* --- All of it */

static enum err say_lost(struct repair *p)
{
    for (uint32_t i = 0; i < p->count; i++) {
        const struct wal_repair_replica *r = &p->replicas[i];
        if (r->missing_count > 0) {
            snprintf(p->problem, 256,
                     "%" PRIu32 " entries, from %" PRIu64
                     " on, may be committed, and are intact on no replica",
                     r->missing_count, r->missing);
            return ERR_CORRUPT;
        }
    }
    return refuse(p, "too few logs have a beginning that is whole");
}

static enum err plan(struct repair *p)
{
    uint32_t winner = elect(p);
    if (winner == p->count) {
        return refuse(p, "all logs are damaged at their ends: what was "
                         "acknowledged last is not known");
    }
    enum err rc = lay_out(p, winner);
    if (rc == ERR_OK) {
        rc = newest_conf(p);
    }
    if (rc != ERR_OK) {
        return rc;
    }
    if (!is_majority(p, end_counts)) {
        return refuse(p, "most logs are damaged at their ends: what was "
                         "acknowledged last is not known");
    }
    for (uint32_t i = 0; i < p->count; i++) {
        judge(p, i);
    }
    return is_majority(p, start_counts) ? ERR_OK : say_lost(p);
}

enum err wal_repair(struct wal_repair_replica *replicas, uint32_t count,
                    const char *dir, char problem[256])
{
    CHECK(count <= RAFT_PEERS_MAX);
    struct repair p = {
        .replicas = replicas, .count = count, .dir = dir, .problem = problem};
    problem[0] = 0;
    enum err rc = read_all(&p);
    if (rc == ERR_OK) {
        rc = plan(&p);
    }
    for (uint32_t i = 0; i < count && rc == ERR_OK; i++) {
        if (replicas[i].state == WAL_REPAIR_REPAIRED) {
            rc = write_log(&p, i);
        }
    }
    for (uint32_t i = 0; i < count; i++) {
        wal_holes_free(&p.holes[i]);
    }
    buf_free(&p.segment);
    mem_free(p.places.items);
    mem_free(p.terms);
    return rc;
}

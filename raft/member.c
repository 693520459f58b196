/* Configurations: their bytes, their history in the log, and which change is
 * allowed. Raft paper, section 6.
 *
 * Invariants:
 *  1. "A server always uses the latest configuration in its log, regardless of
 *     whether the entry is committed": confs[last] is in force from append on,
 *     and a truncation brings the one before back.
 *  2. confs[0] is in force at the start of the log, so that there always is
 *     one.
 *  3. From one to another set of voters the way leads through a joint one. */
#include <string.h>

#include "base/codec.h"
#include "raft/raft_int.h"

enum { CONF_BARE = 1, CONF_WITH_PLACES = 2 }; /* versions */

static void encode_ids(struct buf *b, const raft_id *ids, uint32_t count)
{
    enc_u8(b, (uint8_t)count);
    for (uint32_t i = 0; i < count; i++) {
        enc_u64(b, ids[i]);
    }
}

static bool is_bare(const struct raft_conf *conf)
{
    return conf->place_count == 0 && conf->last_id == 0;
}

/*   u8 version, then three lists: u8 count, count x u64 id
 *   voters, old, learners
 *   version 2 only: u64 last_id, u8 count, count x {u64 id, u32 size, address},
 *   and at least one of them is there: a configuration has one encoding */
void raft_conf_encode(struct buf *b, const struct raft_conf *conf)
{
    CHECK(conf->voter_count <= RAFT_PEERS_MAX);
    CHECK(conf->old_count <= RAFT_PEERS_MAX);
    CHECK(conf->learner_count <= RAFT_PEERS_MAX);
    CHECK(conf->place_count <= RAFT_PEERS_MAX);
    bool bare = is_bare(conf);
    enc_u8(b, bare ? CONF_BARE : CONF_WITH_PLACES);
    encode_ids(b, conf->voters, conf->voter_count);
    encode_ids(b, conf->old, conf->old_count);
    encode_ids(b, conf->learners, conf->learner_count);
    if (bare) {
        return;
    }
    enc_u64(b, conf->last_id);
    enc_u8(b, (uint8_t)conf->place_count);
    for (uint32_t i = 0; i < conf->place_count; i++) {
        enc_u64(b, conf->places[i].id);
        enc_bytes(b, slice_text(conf->places[i].address));
    }
}

static uint32_t decode_ids(struct dec *d, raft_id *ids)
{
    uint32_t count = dec_u8(d);
    if (count > RAFT_PEERS_MAX) {
        d->failed = true;
        return 0;
    }
    for (uint32_t i = 0; i < count; i++) {
        ids[i] = dec_u64(d);
    }
    return count;
}

static void decode_places(struct dec *d, struct raft_conf *c)
{
    c->last_id = dec_u64(d);
    uint32_t count = dec_u8(d);
    if (count > RAFT_PEERS_MAX) {
        d->failed = true;
        return;
    }
    for (; c->place_count < count && !d->failed; c->place_count++) {
        struct raft_place *p = &c->places[c->place_count];
        p->id = dec_u64(d);
        struct slice address = dec_bytes(d);
        if (d->failed || address.size == 0 ||
            address.size >= sizeof p->address ||
            memchr(address.data, 0, address.size) != NULL) {
            d->failed = true;
            return;
        }
        memcpy(p->address, address.data, address.size);
    }
}

enum err raft_conf_decode(struct slice from, struct raft_conf *conf)
{
    struct raft_conf c = {0};
    struct dec d = dec_of(from);
    uint8_t version = dec_u8(&d);
    if (version != CONF_BARE && version != CONF_WITH_PLACES) {
        return ERR_CORRUPT;
    }
    c.voter_count = decode_ids(&d, c.voters);
    c.old_count = decode_ids(&d, c.old);
    c.learner_count = decode_ids(&d, c.learners);
    if (version == CONF_WITH_PLACES) {
        decode_places(&d, &c);
        d.failed |= is_bare(&c);
    }
    if (dec_done(&d) != ERR_OK || raft_conf_check(&c) != ERR_OK) {
        return ERR_CORRUPT;
    }
    *conf = c;
    return ERR_OK;
}

static bool listed(const raft_id *ids, uint32_t count, raft_id id)
{
    for (uint32_t i = 0; i < count; i++) {
        if (ids[i] == id) {
            return true;
        }
    }
    return false;
}

/* No 0, nobody twice. */
static bool list_sane(const raft_id *ids, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        if (ids[i] == 0 || listed(ids, i, ids[i])) {
            return false;
        }
    }
    return true;
}

static bool list_same(const raft_id *a, uint32_t a_count, const raft_id *b,
                      uint32_t b_count)
{
    for (uint32_t i = 0; i < a_count; i++) {
        if (!listed(b, b_count, a[i])) {
            return false;
        }
    }
    return a_count == b_count;
}

uint32_t raft_conf_all(const struct raft_conf *conf, raft_id *ids)
{
    uint32_t count = 0;
    const raft_id *lists[] = {conf->voters, conf->old, conf->learners};
    uint32_t counts[] = {conf->voter_count, conf->old_count,
                         conf->learner_count};
    for (int l = 0; l < 3; l++) {
        for (uint32_t i = 0; i < counts[l]; i++) {
            if (!listed(ids, count, lists[l][i])) {
                ids[count++] = lists[l][i];
            }
        }
    }
    return count;
}

/* A voter of the newest configuration; but also one of those before it, back to
 * the committed one. "A server that is not part of its own latest configuration
 * should still start new elections, as it might still be needed until the C_new
 * entry is committed" (thesis 4.2.2): it may be the only one with a log that
 * the old majority will vote for. It gives itself no vote. */
bool raft_conf_may_campaign(const struct raft *r)
{
    for (size_t i = r->conf_count; i > 0; i--) {
        if (raft_conf_votes(&r->confs[i - 1].conf, r->id)) {
            return true;
        }
        if (r->confs[i - 1].index <= r->commit) {
            break;
        }
    }
    return false;
}

/* Only of those in it, each once, and not empty. */
static bool places_sane(const struct raft_conf *conf, const raft_id *ids,
                        uint32_t count)
{
    if (conf->place_count > RAFT_PEERS_MAX) {
        return false;
    }
    for (uint32_t i = 0; i < conf->place_count; i++) {
        const struct raft_place *p = &conf->places[i];
        if (!listed(ids, count, p->id) || p->address[0] == '\0') {
            return false;
        }
        for (uint32_t k = 0; k < i; k++) {
            if (conf->places[k].id == p->id) {
                return false;
            }
        }
    }
    return true;
}

/* A configuration with nobody in it is that of a new replica, which waits to be
 * told; a joint one has voters on both sides. */
enum err raft_conf_check(const struct raft_conf *conf)
{
    if (conf->voter_count > RAFT_PEERS_MAX ||
        conf->old_count > RAFT_PEERS_MAX ||
        conf->learner_count > RAFT_PEERS_MAX ||
        !list_sane(conf->voters, conf->voter_count) ||
        !list_sane(conf->old, conf->old_count) ||
        !list_sane(conf->learners, conf->learner_count)) {
        return ERR_INVALID;
    }
    if (conf->voter_count == 0 &&
        (conf->old_count > 0 || conf->learner_count > 0)) {
        return ERR_INVALID;
    }
    for (uint32_t i = 0; i < conf->learner_count; i++) {
        if (listed(conf->voters, conf->voter_count, conf->learners[i])) {
            return ERR_INVALID;
        }
    }
    raft_id ids[3 * RAFT_PEERS_MAX];
    uint32_t count = raft_conf_all(conf, ids);
    return count > RAFT_PEERS_MAX || !places_sane(conf, ids, count)
               ? ERR_INVALID
               : ERR_OK;
}

bool raft_conf_votes(const struct raft_conf *conf, raft_id id)
{
    return listed(conf->voters, conf->voter_count, id) ||
           listed(conf->old, conf->old_count, id);
}

raft_id raft_conf_last_id(const struct raft_conf *conf)
{
    raft_id ids[3 * RAFT_PEERS_MAX];
    uint32_t count = raft_conf_all(conf, ids);
    raft_id last = conf->last_id;
    for (uint32_t i = 0; i < count; i++) {
        last = ids[i] > last ? ids[i] : last;
    }
    return last;
}

bool raft_conf_learns(const struct raft_conf *conf, raft_id id)
{
    return listed(conf->learners, conf->learner_count, id);
}

const struct raft_conf *raft_conf_now(const struct raft *r)
{
    return &r->confs[r->conf_count - 1].conf;
}

raft_index raft_conf_index(const struct raft *r)
{
    return r->confs[r->conf_count - 1].index;
}

void raft_conf_push(struct raft *r, raft_index index,
                    const struct raft_conf *conf)
{
    CHECK(r->conf_count == 0 || index > raft_conf_index(r));
    r->confs =
        raft_grow(r->confs, &r->conf_capacity, r->conf_count, sizeof *r->confs);
    r->confs[r->conf_count++] =
        (struct raft_conf_record){.index = index, .conf = *conf};
}

void raft_conf_truncate(struct raft *r, raft_index from)
{
    while (r->conf_count > 1 && raft_conf_index(r) >= from) {
        r->conf_count--;
    }
}

void raft_conf_compact(struct raft *r, raft_index index)
{
    size_t gone = 0;
    while (gone + 1 < r->conf_count && r->confs[gone + 1].index <= index) {
        gone++;
    }
    r->conf_count -= gone;
    memmove(r->confs, r->confs + gone, r->conf_count * sizeof *r->confs);
}

/* `conf` is in force at `index`, where the log now begins; what is known of
 * later entries stays. */
void raft_conf_reset(struct raft *r, raft_index index,
                     const struct raft_conf *conf)
{
    raft_conf_compact(r, index);
    if (r->conf_count > 0 && r->confs[0].index > index) {
        return;
    }
    r->confs[0] = (struct raft_conf_record){.index = index, .conf = *conf};
}

raft_index raft_conf_at(const struct raft *r, raft_index index,
                        struct raft_conf *conf)
{
    size_t at = r->conf_count - 1;
    while (at > 0 && r->confs[at].index > index) {
        at--;
    }
    *conf = r->confs[at].conf;
    return r->confs[at].index;
}

const struct raft_conf *raft_conf_newest(const struct raft *r,
                                         raft_index *index)
{
    *index = raft_conf_index(r);
    return raft_conf_now(r);
}

/* May the leader append this configuration now? One change at a time; and only
 * after an entry of its own term is committed, so that it knows the last
 * committed configuration. */
enum err raft_conf_check_change(const struct raft *r,
                                const struct raft_entry *entry)
{
    struct raft_conf to;
    if (raft_conf_decode(bytes_slice(entry->data), &to) != ERR_OK ||
        to.voter_count == 0) {
        return ERR_INVALID;
    }
    const struct raft_conf *now = raft_conf_now(r);
    bool allowed;
    if (now->old_count == 0 && to.old_count > 0) {
        allowed =
            list_same(to.old, to.old_count, now->voters, now->voter_count);
    } else {
        allowed = to.old_count == 0 && list_same(to.voters, to.voter_count,
                                                 now->voters, now->voter_count);
    }
    if (!allowed) {
        return ERR_INVALID;
    }
    return raft_commit_in_term(r) && raft_conf_index(r) <= r->commit ? ERR_OK
                                                                     : ERR_BUSY;
}

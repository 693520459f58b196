/* Which shards are here, and how they come and go.
 *
 *    ABSENT --config: ours, nobody's before--> SERVING
 *    ABSENT --config: ours--> PULLING --the last INSTALL--> SERVING
 *    SERVING --config: another's--> LEAVING --FREEZE--> FROZEN
 *        --DROP--> DROPPING --...--> ABSENT
 *
 * A LEAVING shard is served; what changes in it is written down (track.c).
 * Invariants (docs/migration.md):
 *
 *  1. At most one group answers for a shard: the new owner serves it only after
 *     it has read all of it, and all changes, from the old one, which says that
 *     this is all only when its own log says FROZEN, and only to the new owner;
 *     and only what a group could have kept so (arrival.c).
 *  2. All of a shard's keys go together, its sessions and prepared transactions
 *     too: what was executed before the move is not executed again after it.
 *  3. The old copy is dropped only when the new owner's log says it has it all
 *     (the last INSTALL): a SETTLE comes after that, a DROP after a SETTLE.
 *  4. A step is named by shard and configuration, and is refused when the
 *     shard is not in the state that the step leaves; a batch also by its
 *     number. So all of them may come twice, late, and from leaders that have
 *     been replaced.
 *  5. Configurations are applied one by one, and the next only when no shard is
 *     on its way: PULLING, LEAVING or FROZEN; a shard is never given back while
 *     it is DROPPING. */
#include "shardkv/fsm_int.h"

#include <string.h>

#include "base/check.h"
#include "base/log.h"

enum { STATE_RECORD_SIZE = 1 + 8 };

#define TO(state) (1u << (state))
static const uint32_t moves_allowed[] = {
    [SKV_SHARD_ABSENT] = TO(SKV_SHARD_SERVING) | TO(SKV_SHARD_PULLING),
    [SKV_SHARD_SERVING] = TO(SKV_SHARD_LEAVING),
    [SKV_SHARD_LEAVING] = TO(SKV_SHARD_FROZEN),
    [SKV_SHARD_PULLING] = TO(SKV_SHARD_SERVING),
    [SKV_SHARD_FROZEN] = TO(SKV_SHARD_DROPPING),
    [SKV_SHARD_DROPPING] = TO(SKV_SHARD_ABSENT),
};

bool skv_shard_is_served(const struct skv_fsm *f, uint16_t shard)
{
    return shard < f->config.shards_count &&
           (f->shards[shard].state == SKV_SHARD_SERVING ||
            f->shards[shard].state == SKV_SHARD_LEAVING);
}

/* Those of a configuration; a table for the most there may be would be a third
 * of a megabyte, and most have a few. */
static void shards_reach(struct skv_fsm *f, uint32_t count)
{
    if (count > f->shards_count) {
        f->shards = mem_resize(f->shards, count * sizeof *f->shards);
        memset(f->shards + f->shards_count, 0,
               (count - f->shards_count) * sizeof *f->shards);
        f->shards_count = count;
    }
}

static struct skv_shard *shard_at(struct skv_fsm *f, uint32_t shard)
{
    CHECK(shard < f->shards_count);
    return &f->shards[shard];
}

static enum err state_save(struct skv_fsm *f, uint16_t shard)
{
    const struct skv_shard *s = &f->shards[shard];
    struct skv_name name = skv_name_state(shard);
    uint8_t record[STATE_RECORD_SIZE] = {s->state};
    if (s->state == SKV_SHARD_ABSENT) {
        return f->store->ops->remove(f->store, skv_name_slice(&name));
    }
    set_u64(record + 1, s->number);
    return f->store->ops->put(f->store, skv_name_slice(&name),
                              slice_of(record, sizeof record));
}

static enum err move(struct skv_fsm *f, uint16_t shard, enum skv_shard_state to,
                     uint64_t number)
{
    struct skv_shard *s = shard_at(f, shard);
    CHECK((moves_allowed[s->state] & TO(to)) != 0);
    s->state = (uint8_t)to;
    s->number = number;
    skv_fsm_changed(f);
    if (to == SKV_SHARD_FROZEN) {
        skv_prepared_forget(s);
    }
    return state_save(f, shard);
}

/* ---- debts ---- */

static void debt_remember(struct skv_fsm *f, uint16_t shard, uint64_t number,
                          struct slice record)
{
    struct skv_debt *d = mem_alloc(sizeof *d);
    d->shard = shard;
    d->number = number;
    enum err rc = ctl_group_decode(arena_copy(&d->arena, record), &d->arena,
                                   &d->creditor);
    CHECK(rc == ERR_OK); /* we encoded it, or the caller has tried */
    d->next = f->debts;
    f->debts = d;
}

static void debt_forget(struct skv_debt **at)
{
    struct skv_debt *d = *at;
    *at = d->next;
    arena_free(&d->arena);
    mem_free(d);
}

static enum err debt_add(struct skv_fsm *f, uint16_t shard, uint64_t number,
                         const struct ctl_group *creditor)
{
    struct skv_name name = skv_name_debt(shard, number);
    buf_clear(&f->scratch);
    ctl_group_encode(&f->scratch, creditor);
    struct slice record = buf_slice(&f->scratch);
    debt_remember(f, shard, number, record);
    return f->store->ops->put(f->store, skv_name_slice(&name), record);
}

/* ---- configurations ---- */

static ctl_gid owner(const struct ctl_config *c, uint32_t shard)
{
    return shard < c->shards_count ? c->shards[shard].gid : 0;
}

const struct ctl_group *skv_shard_owner(const struct ctl_config *config,
                                        const struct ctl_config *previous,
                                        ctl_gid self, uint16_t shard)
{
    bool ours = owner(config, shard) == self;
    const struct ctl_config *c = ours ? previous : config;
    return ctl_config_group(c, owner(c, shard));
}

/* ERR_BUSY: not yet (invariant 5). ERR_INVALID: never. */
static enum err shard_may_follow(const struct skv_fsm *f,
                                 const struct ctl_config *next, uint16_t shard)
{
    uint8_t state = f->shards[shard].state;
    bool ours_now = owner(&f->config, shard) == f->gid;
    bool ours_next = owner(next, shard) == f->gid;
    if (state == SKV_SHARD_PULLING || state == SKV_SHARD_LEAVING ||
        state == SKV_SHARD_FROZEN ||
        (state == SKV_SHARD_DROPPING && ours_next)) {
        return ERR_BUSY;
    }
    return ours_now && owner(next, shard) == 0 ? ERR_INVALID : ERR_OK;
}

static enum err config_may_follow(const struct skv_fsm *f,
                                  const struct ctl_config *next)
{
    if (next->number != f->config.number + 1 ||
        (f->config.number > 0 &&
         next->shards_count != f->config.shards_count)) {
        return ERR_INVALID;
    }
    for (uint32_t s = 0; s < next->shards_count; s++) {
        enum err rc = shard_may_follow(f, next, (uint16_t)s);
        if (rc != ERR_OK) {
            return rc;
        }
    }
    return ERR_OK;
}

/* ---- cursors ---- */

static void cursor_remember(struct skv_shard *s, struct slice record)
{
    buf_clear(&s->cursor);
    buf_append(&s->cursor, record.data, record.size);
}

static enum err cursor_save(struct skv_fsm *f, uint16_t shard,
                            const struct skv_cursor *cursor)
{
    struct skv_name name = skv_name_cursor(shard);
    buf_clear(&f->scratch);
    skv_cursor_encode(&f->scratch, cursor);
    cursor_remember(&f->shards[shard], buf_slice(&f->scratch));
    return f->store->ops->put(f->store, skv_name_slice(&name),
                              buf_slice(&f->scratch));
}

static enum err cursor_remove(struct skv_fsm *f, uint16_t shard)
{
    struct skv_name name = skv_name_cursor(shard);
    buf_free(&f->shards[shard].cursor);
    return f->store->ops->remove(f->store, skv_name_slice(&name));
}

static enum err pulling_begin(struct skv_fsm *f, uint16_t shard,
                              uint64_t number)
{
    struct skv_cursor start = {0};
    enum err rc = move(f, shard, SKV_SHARD_PULLING, number);
    return rc == ERR_OK ? cursor_save(f, shard, &start) : rc;
}

static enum err shard_follow(struct skv_fsm *f, const struct ctl_config *next,
                             uint16_t shard)
{
    ctl_gid before = owner(&f->config, shard);
    ctl_gid after = owner(next, shard);
    if (before == after || (before != f->gid && after != f->gid)) {
        return ERR_OK;
    }
    if (before == f->gid) {
        return move(f, shard, SKV_SHARD_LEAVING, next->number);
    }
    return before == 0 ? move(f, shard, SKV_SHARD_SERVING, next->number)
                       : pulling_begin(f, shard, next->number);
}

static enum err config_put(struct skv_fsm *f, struct skv_name name,
                           const struct ctl_config *config)
{
    buf_clear(&f->scratch);
    ctl_config_encode(&f->scratch, config);
    enum err rc = skv_chunks_remove(f->store, name, NULL);
    return rc == ERR_OK ? skv_chunks_put(f->store, name, buf_slice(&f->scratch))
                        : rc;
}

static void config_replace(struct arena *arena, struct ctl_config *config,
                           const struct ctl_config *by)
{
    struct arena fresh = {0};
    struct ctl_config copy;
    ctl_config_copy(&fresh, by, &copy);
    arena_free(arena);
    *arena = fresh;
    *config = copy;
}

enum err skv_shards_configure(struct skv_fsm *f, const struct ctl_config *next,
                              enum err *fault)
{
    shards_reach(f, next->shards_count);
    enum err refusal = config_may_follow(f, next);
    if (refusal != ERR_OK) {
        return refusal;
    }
    enum err rc = ERR_OK;
    for (uint32_t s = 0; rc == ERR_OK && s < next->shards_count; s++) {
        rc = shard_follow(f, next, (uint16_t)s);
    }
    if (rc == ERR_OK && f->config.number > 0) { /* else load_config() knows */
        rc = config_put(f, skv_name_previous(), &f->config);
    }
    if (rc == ERR_OK) {
        rc = config_put(f, skv_name_config(), next);
    }
    config_replace(&f->previous_arena, &f->previous, &f->config);
    config_replace(&f->config_arena, &f->config, next);
    skv_fsm_changed(f);
    *fault = rc;
    return ERR_OK;
}

/* ---- arriving ---- */

static bool is_in(const struct skv_fsm *f, uint16_t shard,
                  enum skv_shard_state state, uint64_t number)
{
    return shard < f->config.shards_count && f->shards[shard].state == state &&
           f->shards[shard].number == number;
}

/* It is batch number `batches` that comes next, and no other. */
static bool is_next(struct skv_fsm *f, const struct skv_install *install)
{
    struct skv_cursor at;
    enum err rc = skv_cursor_decode(
        buf_slice(&f->shards[install->shard].cursor), &f->arena, &at);
    CHECK(rc == ERR_OK); /* we encoded it */
    return install->cursor.batches == at.batches + 1;
}

static enum err install_check(struct skv_fsm *f,
                              const struct skv_install *install)
{
    if (!is_in(f, install->shard, SKV_SHARD_PULLING, install->number) ||
        !is_next(f, install) ||
        install->cursor.key.size > SKV_STORE_KEY_SIZE_MAX) {
        return ERR_INVALID;
    }
    for (uint32_t i = 0; i < install->records_count; i++) {
        enum err rc = skv_record_check(&install->records[i], install->shard);
        if (rc != ERR_OK) {
            return rc;
        }
    }
    return ERR_OK;
}

/* All of it is here: it is served from this entry on. */
static enum err installed(struct skv_fsm *f, uint16_t shard, uint64_t number)
{
    const struct ctl_group *from =
        ctl_config_group(&f->previous, owner(&f->previous, shard));
    enum err rc = cursor_remove(f, shard);
    if (rc == ERR_OK && from != NULL) {
        rc = debt_add(f, shard, number, from);
    }
    if (rc == ERR_OK) {
        rc = move(f, shard, SKV_SHARD_SERVING, number);
    }
    return rc == ERR_OK ? skv_prepared_load(f, shard) : rc;
}

static enum err arrived_check(struct skv_fsm *f, uint16_t shard,
                              enum err *fault)
{
    enum err refusal = skv_arrival_check(f, shard, fault);
    if (*fault == ERR_OK && refusal != ERR_OK) {
        log_error("shardkv",
                  "shard=%u does not come from group=%u as a group keeps it: "
                  "refused; look at that group",
                  shard, owner(&f->previous, shard));
    }
    return refusal;
}

/* While keys are copied no reply need follow a row: whatever went meanwhile has
 * left a change of its row. */
static enum err batch_write(struct skv_fsm *f,
                            const struct skv_install *install, bool follows)
{
    enum err rc = skv_batch_write(f, install);
    return rc == ERR_OK && follows && install->cursor.changes != 0
               ? skv_batch_follow(f, install)
               : rc;
}

enum err skv_shard_install(struct skv_fsm *f, const struct skv_install *install,
                           bool follows, enum err *fault)
{
    enum err refusal = install_check(f, install);
    if (refusal == ERR_OK && install->last != 0 && skv_is_held(f)) {
        refusal = ERR_BUSY; /* who serves what stays as it is (cut.c) */
    }
    if (refusal != ERR_OK) {
        return refusal;
    }
    *fault = batch_write(f, install, follows);
    if (*fault == ERR_OK && install->last != 0) {
        refusal = arrived_check(f, install->shard, fault);
    }
    if (*fault != ERR_OK || refusal != ERR_OK) {
        return refusal; /* then the batch comes again: it has no number yet */
    }
    *fault = install->last != 0
                 ? installed(f, install->shard, install->number)
                 : cursor_save(f, install->shard, &install->cursor);
    return ERR_OK;
}

enum err skv_shard_settled(struct skv_fsm *f, const struct skv_step *step,
                           enum err *fault)
{
    struct skv_debt **at = &f->debts;
    while (*at != NULL &&
           ((*at)->shard != step->shard || (*at)->number != step->number)) {
        at = &(*at)->next;
    }
    if (*at == NULL) {
        return ERR_OK; /* it came twice */
    }
    struct skv_name name = skv_name_debt(step->shard, step->number);
    debt_forget(at);
    skv_fsm_changed(f);
    *fault = f->store->ops->remove(f->store, skv_name_slice(&name));
    return ERR_OK;
}

/* ---- leaving ---- */

/* The new owner asks when it has nearly all. Sooner or twice does no harm. */
enum err skv_shard_freeze(struct skv_fsm *f, const struct skv_step *step,
                          enum err *fault)
{
    if (f->config.number < step->number) {
        return ERR_BUSY;
    }
    if (is_in(f, step->shard, SKV_SHARD_LEAVING, step->number)) {
        if (skv_is_held(f)) {
            return ERR_BUSY; /* likewise */
        }
        *fault = move(f, step->shard, SKV_SHARD_FROZEN, step->number);
        return ERR_OK;
    }
    return is_in(f, step->shard, SKV_SHARD_FROZEN, step->number) ? ERR_OK
                                                                 : ERR_INVALID;
}

/* While a shard is leaving no other configuration is applied (invariant 5), so
 * its new owner is the one that the newest names. Who names a move before that
 * one has not heard that it is over; denied, it would ask for as long as the
 * shard leaves, and could hold up who is to take it. */
enum err skv_shard_may_take(const struct skv_fsm *f, uint16_t shard,
                            uint64_t number, ctl_gid gid)
{
    bool leaving = shard < f->config.shards_count &&
                   f->shards[shard].number <= number &&
                   (f->shards[shard].state == SKV_SHARD_LEAVING ||
                    f->shards[shard].state == SKV_SHARD_FROZEN);
    return !leaving || owner(&f->config, shard) == gid ? ERR_OK : ERR_DENIED;
}

/* ERR_OK: some of it may go now. ERR_NOTFOUND: it is gone, or going by another
 * name. */
static enum err may_drop(const struct skv_fsm *f, const struct skv_step *step)
{
    if (f->config.number < step->number) {
        return ERR_BUSY; /* we have not come to that configuration */
    }
    if (step->shard >= f->config.shards_count) {
        return ERR_INVALID;
    }
    const struct skv_shard *s = &f->shards[step->shard];
    bool leaving =
        s->state == SKV_SHARD_FROZEN || s->state == SKV_SHARD_DROPPING;
    if (leaving && s->number == step->number) {
        return ERR_OK;
    }
    bool stale = s->state == SKV_SHARD_ABSENT || s->number > step->number;
    return stale ? ERR_NOTFOUND : ERR_INVALID;
}

static void drop_remember(struct skv_shard *s, struct skv_keys *keys)
{
    struct slice last;
    keys->at = 0;
    while (skv_keys_next(keys, &last)) {
    }
    buf_clear(&s->dropped);
    buf_append(&s->dropped, last.data, last.size);
}

static void drop_forget(struct skv_shard *s)
{
    s->drop_stage = 0;
    buf_free(&s->dropped);
}

/* Keys that were dropped since the last checkpoint are still in LMDB, and each
 * scan passes them one by one: from the beginning each time, a DROP would take
 * the longer the more there were before it. */
static enum err drop_keys(struct skv_fsm *f, struct skv_shard *s,
                          struct skv_name prefix, bool *more)
{
    struct skv_keys keys = {.max = SKV_DROP_KEYS_MAX};
    enum err rc = skv_keys_collect(f->store, skv_name_slice(&prefix),
                                   buf_slice(&s->dropped), &keys);
    if (rc == ERR_OK) {
        rc = skv_keys_remove(f->store, &keys);
    }
    *more = keys.more;
    if (rc == ERR_OK && *more) {
        drop_remember(s, &keys);
    } else if (rc == ERR_OK) {
        buf_clear(&s->dropped);
        s->drop_stage++;
    }
    skv_keys_free(&keys);
    return rc;
}

/* Its changes first, then its keys. */
static enum err drop_some(struct skv_fsm *f, uint16_t shard, uint64_t number,
                          bool *more)
{
    const struct skv_name stages[] = {skv_name_changes(shard),
                                      skv_name_latests(shard),
                                      skv_name_shard(shard)};
    enum { STAGES = sizeof stages / sizeof *stages };
    struct skv_shard *s = &f->shards[shard];
    enum err rc = ERR_OK;
    if (s->state == SKV_SHARD_FROZEN) {
        rc = move(f, shard, SKV_SHARD_DROPPING, number);
    }
    while (rc == ERR_OK && !*more && s->drop_stage < STAGES) {
        rc = drop_keys(f, s, stages[s->drop_stage], more);
    }
    if (rc == ERR_OK && !*more) {
        drop_forget(s);
        rc = move(f, shard, SKV_SHARD_ABSENT, number);
    }
    return rc;
}

enum err skv_shard_drop(struct skv_fsm *f, const struct skv_step *step,
                        bool *more, enum err *fault)
{
    enum err rc = may_drop(f, step);
    *more = false;
    if (rc == ERR_OK) {
        *fault = drop_some(f, step->shard, step->number, more);
    }
    return rc == ERR_NOTFOUND ? ERR_OK : rc;
}

/* ---- at start, and after a snapshot ---- */

struct load {
    struct skv_fsm *fsm;
    size_t prefix_size;
    enum err rc;
};

static bool load_state(void *arg, struct slice key,
                       const struct skv_value *value)
{
    struct load *l = arg;
    const struct skv_fsm *f = l->fsm;
    struct dec d = dec_of(value->inline_bytes);
    uint8_t state = dec_u8(&d);
    uint64_t number = dec_u64(&d);
    bool named = key.size == l->prefix_size + 2;
    uint32_t shard = named ? get_be16(key.data + l->prefix_size) : 0;
    if (dec_done(&d) != ERR_OK || !named || state == SKV_SHARD_ABSENT ||
        state > SKV_SHARD_LEAVING || shard >= f->config.shards_count ||
        (state == SKV_SHARD_PULLING && owner(&f->previous, shard) == 0)) {
        l->rc = ERR_CORRUPT;
        return false;
    }
    struct skv_shard *s = shard_at(l->fsm, shard);
    s->state = state;
    s->number = number;
    return true;
}

static bool load_debt(void *arg, struct slice key,
                      const struct skv_value *value)
{
    struct load *l = arg;
    struct ctl_group group;
    if (key.size != l->prefix_size + 2 + 8) {
        l->rc = ERR_CORRUPT;
        return false;
    }
    l->rc = ctl_group_decode(value->inline_bytes, &l->fsm->arena, &group);
    if (l->rc == ERR_OK) {
        const uint8_t *at = key.data + l->prefix_size;
        debt_remember(l->fsm, get_be16(at), get_be64(at + 2),
                      value->inline_bytes);
    }
    return l->rc == ERR_OK;
}

static enum err load_cursor(struct skv_fsm *f, uint16_t shard)
{
    struct skv_name name = skv_name_cursor(shard);
    struct skv_value value;
    struct skv_cursor cursor;
    enum err rc =
        f->store->ops->lookup(f->store, skv_name_slice(&name), &value);
    if (rc == ERR_OK) {
        cursor_remember(&f->shards[shard], value.inline_bytes);
        rc = skv_cursor_decode(buf_slice(&f->shards[shard].cursor), &f->arena,
                               &cursor);
    }
    return rc == ERR_NOTFOUND ? ERR_CORRUPT : rc;
}

static enum err load_all(struct skv_fsm *f, struct skv_name prefix,
                         skv_scan_fn *each)
{
    struct load l = {.fsm = f, .prefix_size = prefix.size};
    enum err rc = f->store->ops->scan(f->store, skv_name_slice(&prefix),
                                      slice_of(NULL, 0), each, &l);
    return rc == ERR_OK ? l.rc : rc;
}

static enum err load_config(struct skv_fsm *f, struct skv_name name,
                            struct arena *arena, struct ctl_config *config)
{
    struct buf bytes = {0};
    struct ctl_config found;
    enum err rc = skv_chunks_get(f->store, name, &bytes);
    if (rc == ERR_OK) {
        rc = ctl_config_decode(buf_slice(&bytes), &f->arena, &found);
        if (rc == ERR_OK && found.number > 0) {
            rc = ctl_config_check(&found);
        }
        if (rc == ERR_OK) {
            config_replace(arena, config, &found);
        }
    } else if (rc == ERR_NOTFOUND) {
        rc = ERR_OK; /* number 0 */
    }
    buf_free(&bytes);
    return rc;
}

enum err skv_shards_load(struct skv_fsm *f)
{
    enum err rc =
        load_config(f, skv_name_config(), &f->config_arena, &f->config);
    if (rc == ERR_OK) {
        rc = load_config(f, skv_name_previous(), &f->previous_arena,
                         &f->previous);
    }
    shards_reach(f, f->config.shards_count);
    if (rc == ERR_OK) {
        rc = load_all(f, skv_name_states(), load_state);
    }
    if (rc == ERR_OK) {
        rc = load_all(f, skv_name_debts(), load_debt);
    }
    for (uint32_t s = 0; rc == ERR_OK && s < f->shards_count; s++) {
        if (skv_shard_is_served(f, (uint16_t)s)) {
            rc = skv_prepared_load(f, (uint16_t)s);
        } else if (f->shards[s].state == SKV_SHARD_PULLING) {
            rc = load_cursor(f, (uint16_t)s);
        }
    }
    skv_fsm_changed(f);
    return rc;
}

void skv_shards_forget(struct skv_fsm *f)
{
    for (uint32_t s = 0; s < f->shards_count; s++) {
        skv_prepared_forget(&f->shards[s]);
        buf_free(&f->shards[s].cursor);
        buf_free(&f->shards[s].dropped);
    }
    mem_free(f->shards);
    f->shards = NULL;
    f->shards_count = 0;
    while (f->debts != NULL) {
        debt_forget(&f->debts);
    }
    arena_free(&f->config_arena);
    arena_free(&f->previous_arena);
    f->config = (struct ctl_config){0};
    f->previous = (struct ctl_config){0};
}

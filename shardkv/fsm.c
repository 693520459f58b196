/* The state machine's side towards the rsm: entries in, answers out, snapshots.
 * All state is in the store; what is in memory beside it (configurations, the
 * states of shards, who has prepared what) is read from there at start and
 * after a snapshot: on the worker, as all that touches the store, so not before
 * the worker's first call. */
#include "shardkv/fsm_int.h"

#include <inttypes.h>

#include "base/check.h"
#include "base/log.h"

static struct skv_fsm *fsm_of(struct rsm_fsm *fsm)
{
    return (struct skv_fsm *)(void *)fsm; /* it is the first member */
}

uint64_t skv_fsm_generation(const struct skv_fsm *f)
{
    return __atomic_load_n(&f->generation, __ATOMIC_ACQUIRE);
}

void skv_fsm_changed(struct skv_fsm *f)
{
    __atomic_add_fetch(&f->generation, 1, __ATOMIC_RELEASE);
}

static void clock_move(struct skv_fsm *f, uint64_t stamp_us)
{
    f->clock_us = stamp_us > f->clock_us ? stamp_us : f->clock_us;
}

/* ---- commands: our own log's. One that does not decode is of another version,
 * or damage that no checksum saw: ERR_CORRUPT, on every replica alike ---- */

static void answer(struct skv_fsm *f, const struct skv_outcome *outcome)
{
    buf_clear(&f->reply);
    skv_outcome_encode(&f->reply, outcome);
}

static enum err apply_request(struct skv_fsm *f, struct slice body)
{
    struct dec d = dec_of(body);
    uint64_t stamp_us = dec_u64(&d);
    if (d.failed) {
        return ERR_CORRUPT;
    }
    clock_move(f, stamp_us);
    return skv_apply_request(f, dec_raw(&d, dec_left(&d)));
}

static enum err apply_config(struct skv_fsm *f, struct slice body)
{
    struct ctl_config next;
    enum err fault = ERR_OK;
    enum err rc = ctl_config_decode(body, &f->arena, &next);
    if (rc == ERR_OK) {
        rc = ctl_config_check(&next);
    }
    if (rc != ERR_OK) {
        return rc;
    }
    /* Who serves what stays as it is while a cut is taken. */
    struct skv_outcome outcome = {
        .rc = (uint32_t)(skv_is_held(f)
                             ? ERR_BUSY
                             : skv_shards_configure(f, &next, &fault))};
    answer(f, &outcome);
    return fault;
}

static enum err apply_install(struct skv_fsm *f, enum skv_command_kind kind,
                              struct slice body)
{
    struct skv_install install;
    bool follows = kind == SKV_COMMAND_INSTALL;
    enum err fault = ERR_OK;
    enum err rc = skv_install_decode(body, &f->arena, &install);
    if (rc != ERR_OK) {
        return rc;
    }
    struct skv_outcome outcome = {
        .rc = (uint32_t)skv_shard_install(f, &install, follows, &fault)};
    answer(f, &outcome);
    return fault;
}

static enum err apply_step(struct skv_fsm *f, enum skv_command_kind kind,
                           struct slice body)
{
    struct skv_step step;
    enum err fault = ERR_OK;
    bool more = false;
    enum err rc = skv_step_decode(body, &f->arena, &step);
    if (rc != ERR_OK) {
        return rc;
    }
    switch (kind) {
    case SKV_COMMAND_FREEZE: rc = skv_shard_freeze(f, &step, &fault); break;
    case SKV_COMMAND_SETTLED: rc = skv_shard_settled(f, &step, &fault); break;
    default: rc = skv_shard_drop(f, &step, &more, &fault); break;
    }
    struct skv_outcome outcome = {.rc = (uint32_t)rc, .more = more};
    answer(f, &outcome);
    return fault;
}

static enum err apply_expire(struct skv_fsm *f, struct slice body)
{
    struct skv_expire expire;
    struct skv_outcome outcome = {0};
    enum err rc = skv_expire_decode(body, &f->arena, &expire);
    if (rc != ERR_OK) {
        return rc;
    }
    clock_move(f, expire.stamp_us);
    if (expire.shard < f->config.shards_count &&
        f->shards[expire.shard].state == SKV_SHARD_SERVING) {
        rc = skv_sessions_expire(f, expire.shard, expire.after, &outcome);
    }
    answer(f, &outcome);
    return rc;
}

static enum err apply_cut(struct skv_fsm *f, struct slice body)
{
    struct skv_cut cut;
    enum err rc = skv_cut_decode(body, &f->arena, &cut);
    return rc == ERR_OK ? skv_cut_apply(f, &cut) : rc;
}

static enum err apply_command(struct skv_fsm *f, struct slice command)
{
    if (command.size == 0) {
        return ERR_CORRUPT;
    }
    enum skv_command_kind kind = command.data[0];
    struct slice body = slice_of(command.data + 1, command.size - 1);
    switch (kind) {
    case SKV_COMMAND_REQUEST: return apply_request(f, body);
    case SKV_COMMAND_CONFIG: return apply_config(f, body);
    case SKV_COMMAND_INSTALL_TOLD:
    case SKV_COMMAND_INSTALL: return apply_install(f, kind, body);
    case SKV_COMMAND_FREEZE:
    case SKV_COMMAND_SETTLED:
    case SKV_COMMAND_DROP: return apply_step(f, kind, body);
    case SKV_COMMAND_EXPIRE: return apply_expire(f, body);
    case SKV_COMMAND_CUT: return apply_cut(f, body);
    }
    return ERR_CORRUPT; /* of a kind that this version does not know */
}

/* ---- the rsm's calls ---- */

static raft_index op_durable(struct rsm_fsm *fsm, raft_term *term)
{
    struct skv_store *s = fsm_of(fsm)->store;
    uint64_t index = 0;
    s->ops->durable(s, &index, term);
    return index;
}

static enum err op_checkpoint(struct rsm_fsm *fsm);

/* The checkpoint is at the entry: a replay after a crash begins behind it, so
 * no view is ever opened over what a replay has left of later entries. */
static enum err open_view(struct skv_fsm *f)
{
    enum err rc = f->view_wanted == 0 ? ERR_OK : op_checkpoint(&f->fsm);
    if (rc == ERR_OK && f->view_wanted != 0) {
        skv_view_add(f);
    }
    f->view_wanted = 0;
    return rc;
}

static enum err op_apply(struct rsm_fsm *fsm, struct rsm_entry *entries,
                         uint32_t count)
{
    struct skv_fsm *f = fsm_of(fsm);
    enum err ready = skv_fsm_ready(f);
    if (ready != ERR_OK) {
        return ready;
    }
    for (uint32_t i = 0; i < count; i++) {
        struct rsm_entry *e = &entries[i];
        CHECK(e->index == f->index + 1);
        if (e->type == RAFT_ENTRY_COMMAND) {
            enum err rc = apply_command(f, e->command);
            arena_free(&f->arena);
            if (rc != ERR_OK) {
                log_error("shardkv", "cannot apply entry index=%" PRIu64 ": %s",
                          e->index, err_text(rc));
                return rc;
            }
            if (e->reply != NULL) {
                buf_append(e->reply, f->reply.data, f->reply.size);
            }
        }
        f->index = e->index;
        f->term = e->term;
        enum err rc = open_view(f);
        if (rc != ERR_OK) {
            return rc;
        }
    }
    return ERR_OK;
}

/* The clock is stored only here: views are made of checkpoints, so nobody sees
 * one that is older than its other keys. */
static enum err store_clock(struct skv_fsm *f)
{
    struct skv_store *s = f->store;
    struct skv_name name = skv_name_clock();
    uint8_t clock[sizeof f->clock_us];
    set_u64(clock, f->clock_us);
    return s->ops->put(s, skv_name_slice(&name), slice_of(clock, sizeof clock));
}

static enum err op_checkpoint(struct rsm_fsm *fsm)
{
    struct skv_fsm *f = fsm_of(fsm);
    struct skv_store *s = f->store;
    enum err rc = store_clock(f);
    return rc == ERR_OK ? s->ops->checkpoint(s, f->index, f->term) : rc;
}

static enum err op_checkpoint_begin(struct rsm_fsm *fsm)
{
    struct skv_fsm *f = fsm_of(fsm);
    struct skv_store *s = f->store;
    enum err rc = store_clock(f);
    return rc == ERR_OK ? s->ops->checkpoint_begin(s, f->index, f->term) : rc;
}

static enum err op_checkpoint_write(struct rsm_fsm *fsm)
{
    struct skv_store *s = fsm_of(fsm)->store;
    return s->ops->checkpoint_write(s);
}

static enum err op_checkpoint_end(struct rsm_fsm *fsm)
{
    struct skv_store *s = fsm_of(fsm)->store;
    return s->ops->checkpoint_end(s);
}

static uint64_t op_unsaved(struct rsm_fsm *fsm)
{
    struct skv_store *s = fsm_of(fsm)->store;
    return s->ops->unsaved(s);
}

static enum err op_snap_begin(struct rsm_fsm *fsm, void **view)
{
    struct skv_store *s = fsm_of(fsm)->store;
    struct skv_view *v = NULL;
    enum err rc = op_checkpoint(fsm);
    if (rc == ERR_OK) {
        rc = s->ops->view_open(s, &v);
    }
    if (rc == ERR_OK) {
        *view = v;
    }
    return rc;
}

static enum err write_to_sink(void *arg, struct slice bytes)
{
    struct snap_sink *sink = arg;
    return sink->write(sink, bytes);
}

static enum err op_snap_read(struct rsm_fsm *fsm, void *view,
                             struct snap_sink *sink)
{
    struct skv_store *s = fsm_of(fsm)->store;
    return s->ops->view_read(s, view, write_to_sink, sink);
}

static void op_snap_end(struct rsm_fsm *fsm, void *view)
{
    struct skv_store *s = fsm_of(fsm)->store;
    s->ops->view_close(s, view);
}

static enum err read_from_source(void *arg, void *to, size_t size_max,
                                 size_t *size)
{
    struct snap_source *source = arg;
    return source->read(source, to, size_max, size);
}

static enum err load_clock(struct skv_fsm *f)
{
    struct skv_name name = skv_name_clock();
    struct skv_value value;
    enum err rc =
        f->store->ops->lookup(f->store, skv_name_slice(&name), &value);
    f->clock_us = 0;
    if (rc != ERR_OK) {
        return rc == ERR_NOTFOUND ? ERR_OK : rc;
    }
    struct dec d = dec_of(value.inline_bytes);
    f->clock_us = dec_u64(&d);
    return dec_done(&d);
}

static enum err load(struct skv_fsm *f)
{
    skv_shards_forget(f);
    f->store->ops->durable(f->store, &f->index, &f->term);
    f->ready = false;
    enum err rc = load_clock(f);
    if (rc == ERR_OK) {
        rc = skv_shards_load(f);
    }
    if (rc == ERR_OK) {
        rc = skv_hold_load(f);
    }
    arena_free(&f->arena);
    if (rc != ERR_OK) {
        log_error("shardkv",
                  "cannot read the group's records: %s; give this replica's "
                  "place to a new one: `flotilla member replace %u %" PRIu64
                  "`",
                  err_text(rc), f->gid, f->id);
    }
    f->ready = rc == ERR_OK;
    return rc;
}

enum err skv_fsm_ready(struct skv_fsm *f)
{
    return f->ready ? ERR_OK : load(f);
}

static enum err op_snap_install(struct rsm_fsm *fsm, struct snap_source *source,
                                raft_index index, raft_term term)
{
    struct skv_fsm *f = fsm_of(fsm);
    enum err rc =
        f->store->ops->install(f->store, read_from_source, source, index, term);
    return rc == ERR_OK ? load(f) : rc;
}

static enum err op_rewind(struct rsm_fsm *fsm)
{
    struct skv_fsm *f = fsm_of(fsm);
    f->view_wanted = 0;
    enum err rc = f->store->ops->rewind(f->store);
    return rc == ERR_OK ? load(f) : rc;
}

static const struct rsm_fsm_ops fsm_ops = {
    .durable = op_durable,
    .apply = op_apply,
    .checkpoint = op_checkpoint,
    .checkpoint_begin = op_checkpoint_begin,
    .checkpoint_write = op_checkpoint_write,
    .checkpoint_end = op_checkpoint_end,
    .unsaved = op_unsaved,
    .snap_begin = op_snap_begin,
    .snap_read = op_snap_read,
    .snap_end = op_snap_end,
    .rewind = op_rewind,
    .snap_install = op_snap_install,
};

struct skv_fsm *skv_fsm_new(struct skv_store *store, ctl_gid gid)
{
    struct skv_fsm *f = mem_alloc(sizeof *f);
    f->fsm.ops = &fsm_ops;
    f->store = skv_track_new(store, f);
    f->gid = gid;
    f->batch_size = SKV_BATCH_SIZE_MAX;
    return f;
}

void skv_fsm_free(struct skv_fsm *f)
{
    skv_shards_forget(f);
    for (uint32_t i = 0; i < SKV_VIEWS_MAX; i++) {
        skv_view_remove(f, f->views[i].id);
    }
    arena_free(&f->arena);
    buf_free(&f->reply);
    buf_free(&f->scratch);
    f->store->ops->close(f->store);
    mem_free(f);
}

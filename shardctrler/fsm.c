/* The state machine's side towards the rsm: batches, the state file, snapshots.
 *
 * The state is small, so a checkpoint writes all of it: to another file,
 * synced, renamed over the old one, the directory synced. A crash at any point
 * leaves the old file or the new one, whole. */
#include "shardctrler/fsm_int.h"

#include "base/check.h"
#include "base/log.h"

static struct ctl_fsm *fsm_of(struct rsm_fsm *fsm)
{
    return (struct ctl_fsm *)(void *)fsm; /* it is the first member */
}

static void publish(struct ctl_fsm *f)
{
    __atomic_store_n(&f->newest, f->state.history.count, __ATOMIC_RELEASE);
    __atomic_store_n(&f->is_inited, f->state.shard_count > 0, __ATOMIC_RELEASE);
}

/* ---- the state file ---- */

static enum err file_write(struct disk *d, struct slice bytes)
{
    struct disk_file *file = NULL;
    enum err rc = d->ops->open(d, CTL_STATE_TEMPORARY_FILE, true, &file);
    if (rc != ERR_OK) {
        return rc;
    }
    rc = d->ops->truncate(file, 0);
    if (rc == ERR_OK) {
        rc = d->ops->write(file, 0, &bytes, 1);
    }
    if (rc == ERR_OK) {
        rc = d->ops->sync(file);
    }
    d->ops->close(file);
    if (rc == ERR_OK) {
        rc = d->ops->rename(d, CTL_STATE_TEMPORARY_FILE, CTL_STATE_FILE);
    }
    return rc == ERR_OK ? d->ops->sync_dir(d, "") : rc;
}

/* ERR_NOTFOUND for a new replica. */
static enum err file_read(struct disk *d, struct buf *out)
{
    struct disk_file *file = NULL;
    uint64_t size = 0;
    enum err rc = d->ops->open(d, CTL_STATE_FILE, false, &file);
    if (rc != ERR_OK) {
        return rc;
    }
    rc = d->ops->size(file, &size);
    if (rc == ERR_OK && size > CTL_STATE_SIZE_MAX) {
        rc = ERR_CORRUPT;
    }
    if (rc == ERR_OK && size > 0) {
        rc = d->ops->read(file, 0, buf_extend(out, size), size);
    }
    d->ops->close(file);
    return rc;
}

static enum err state_save(struct ctl_fsm *f, struct slice bytes)
{
    enum err rc = file_write(f->disk, bytes);
    if (rc != ERR_OK) {
        log_error("shardctrler", "cannot write file=%s: %s", CTL_STATE_FILE,
                  err_text(rc));
        return rc;
    }
    f->durable_index = f->state.index;
    f->durable_term = f->state.term;
    __atomic_store_n(&f->size, bytes.size, __ATOMIC_RELAXED);
    return ERR_OK;
}

static enum err state_load(struct ctl_fsm *f)
{
    struct buf bytes = {0};
    enum err rc = file_read(f->disk, &bytes);
    if (rc == ERR_OK) {
        rc = ctl_state_decode(buf_slice(&bytes), &f->state);
    } else if (rc == ERR_NOTFOUND) {
        rc = ERR_OK;
    }
    if (rc != ERR_OK) {
        log_error("shardctrler",
                  "cannot read file=%s: %s; give its place to a new replica: "
                  "`flotilla member replace 0 ID`",
                  CTL_STATE_FILE, err_text(rc));
    }
    f->size = bytes.size;
    f->durable_index = f->state.index;
    f->durable_term = f->state.term;
    publish(f);
    buf_free(&bytes);
    return rc;
}

/* ---- the rsm's calls ---- */

static raft_index fsm_durable(struct rsm_fsm *fsm, raft_term *term)
{
    struct ctl_fsm *f = fsm_of(fsm);
    *term = f->durable_term;
    return f->durable_index;
}

static enum err fsm_apply(struct rsm_fsm *fsm, struct rsm_entry *entries,
                          uint32_t count)
{
    struct ctl_fsm *f = fsm_of(fsm);
    struct buf unheard = {0};
    for (uint32_t i = 0; i < count; i++) {
        struct buf *reply = entries[i].reply;
        ctl_state_apply(&f->state, &entries[i],
                        reply != NULL ? reply : &unheard);
        buf_clear(&unheard);
    }
    buf_free(&unheard);
    publish(f);
    return ERR_OK;
}

static enum err fsm_checkpoint(struct rsm_fsm *fsm)
{
    struct ctl_fsm *f = fsm_of(fsm);
    if (f->state.index == f->durable_index) {
        return ERR_OK;
    }
    struct buf bytes = {0};
    ctl_state_encode(&f->state, &bytes);
    enum err rc = state_save(f, buf_slice(&bytes));
    buf_free(&bytes);
    return rc;
}

static enum err fsm_snap_begin(struct rsm_fsm *fsm, void **view)
{
    struct buf *bytes = mem_alloc(sizeof *bytes);
    ctl_state_encode(&fsm_of(fsm)->state, bytes);
    *view = bytes;
    return ERR_OK;
}

static enum err fsm_snap_read(struct rsm_fsm *fsm, void *view,
                              struct snap_sink *sink)
{
    (void)fsm;
    return sink->write(sink, buf_slice(view));
}

static void fsm_snap_end(struct rsm_fsm *fsm, void *view)
{
    (void)fsm;
    buf_free(view);
    mem_free(view);
}

static enum err source_drain(struct snap_source *source, struct buf *out)
{
    enum { CHUNK_SIZE = 64 << 10 };
    for (;;) {
        size_t got = 0;
        uint8_t *to = buf_extend(out, CHUNK_SIZE);
        enum err rc = source->read(source, to, CHUNK_SIZE, &got);
        if (rc != ERR_OK) {
            return rc;
        }
        out->size -= CHUNK_SIZE - got;
        if (got == 0) {
            return ERR_OK;
        }
        if (out->size > CTL_STATE_SIZE_MAX) {
            return ERR_CORRUPT;
        }
    }
}

static enum err fsm_snap_install(struct rsm_fsm *fsm,
                                 struct snap_source *source, raft_index index,
                                 raft_term term)
{
    struct ctl_fsm *f = fsm_of(fsm);
    struct buf bytes = {0};
    struct ctl_state next;
    ctl_state_init(&next);
    enum err rc = source_drain(source, &bytes);
    if (rc == ERR_OK) {
        rc = ctl_state_decode(buf_slice(&bytes), &next);
    }
    if (rc == ERR_OK && (next.index != index || next.term != term)) {
        rc = ERR_CORRUPT; /* another snapshot's bytes under this label */
    }
    if (rc == ERR_OK) {
        struct ctl_state old = f->state;
        f->state = next;
        rc = state_save(f, buf_slice(&bytes));
        next = rc == ERR_OK ? old : f->state;
        f->state = rc == ERR_OK ? f->state : old;
        publish(f);
    }
    ctl_state_fini(&next);
    buf_free(&bytes);
    return rc;
}

static const struct rsm_fsm_ops fsm_ops = {
    .durable = fsm_durable,
    .apply = fsm_apply,
    .checkpoint = fsm_checkpoint,
    .snap_begin = fsm_snap_begin,
    .snap_read = fsm_snap_read,
    .snap_end = fsm_snap_end,
    .snap_install = fsm_snap_install,
};

enum err ctl_fsm_new(struct disk *disk, struct ctl_fsm **out)
{
    struct ctl_fsm *f = mem_alloc(sizeof *f);
    f->fsm.ops = &fsm_ops;
    f->disk = disk;
    ctl_state_init(&f->state);
    enum err rc = state_load(f);
    if (rc != ERR_OK) {
        ctl_fsm_free(f);
        return rc;
    }
    *out = f;
    return ERR_OK;
}

void ctl_fsm_free(struct ctl_fsm *f)
{
    ctl_state_fini(&f->state);
    mem_free(f);
}

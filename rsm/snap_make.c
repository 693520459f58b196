/* Making a snapshot for a peer:
 *
 *   begin (apply worker)  freezes a view; its label is the last submitted index
 *   make  (snap worker)   the view, cut and packed, into "snap/out-PEER"
 *
 * Through a file, so that a slow peer costs disk and not memory, the view is
 * held no longer than the making takes, and a broken connection goes on where
 * it stopped. */
#include "rsm/snap_int.h"

#include <stdio.h>

#include "base/check.h"
#include "base/codec.h"
#include "base/log.h"

void rsm_outgoing_submit(struct rsm_outgoing *o, struct env_worker *worker,
                         struct env_job *job, void (*run)(struct env_job *),
                         void (*done)(struct env_job *))
{
    o->jobs++;
    *job = (struct env_job){.run = run, .done = done};
    env_worker_submit(o->rsm->env, worker, job);
}

/* --- The end */

void rsm_outgoing_release(struct rsm_outgoing *o)
{
    struct rsm *r = o->rsm;
    struct disk *disk = r->config.disk;
    if (o->has_view) {
        r->config.fsm->ops->snap_end(r->config.fsm, o->view);
        o->has_view = false;
    }
    if (o->file != NULL) {
        disk->ops->close(o->file);
        o->file = NULL;
        /* A left-over is written over by the next one. */
        (void)!disk->ops->remove(disk, o->path);
    }
}

void rsm_outgoing_free(struct rsm_outgoing *o)
{
    for (uint32_t i = 0; i < RSM_WINDOW_COUNT; i++) {
        buf_free(&o->slots[i].bytes);
    }
    buf_free(&o->manifest);
    mem_free(o->ids);
    mem_free(o->ends);
    mem_free(o->todo);
    mem_free(o);
}

/* --- make */

static void add_piece(struct rsm_outgoing *o, const struct snap_id *id)
{
    if (o->count == o->capacity) {
        o->capacity = o->capacity > 0 ? 2 * o->capacity : 64;
        o->ids = mem_resize(o->ids, o->capacity * sizeof *o->ids);
        o->ends = mem_resize(o->ends, o->capacity * sizeof *o->ends);
    }
    o->ids[o->count] = *id;
    o->ends[o->count++] = o->file_size;
}

/* The disk's failures are in o->rc, to tell them from the state machine's. */
static enum err write_piece(void *arg, const struct snap_id *id,
                            struct slice packed)
{
    struct rsm_outgoing *o = arg;
    struct disk *disk = o->rsm->config.disk;
    if (__atomic_load_n(&o->stopped, __ATOMIC_RELAXED)) {
        o->rc = ERR_CLOSED; /* nobody wants it any more */
    } else if (o->count == SNAP_PIECES_MAX) {
        o->rc = ERR_TOOBIG;
    } else {
        o->rc = disk->ops->write(o->file, o->file_size, &packed, 1);
    }
    if (o->rc == ERR_OK) {
        __atomic_store_n(&o->file_size, o->file_size + packed.size,
                         __ATOMIC_RELAXED);
        add_piece(o, id);
    }
    return o->rc;
}

static void make_manifest(struct rsm_outgoing *o)
{
    struct snap_manifest m = {
        .label = o->label, .ids = o->ids, .count = o->count};
    snap_manifest_encode(&o->manifest, &m);
    o->crc = crc32c(0, buf_slice(&o->manifest));
}

static void make_file(struct rsm_outgoing *o)
{
    struct rsm_fsm *fsm = o->rsm->config.fsm;
    struct disk *disk = o->rsm->config.disk;
    o->rc = disk->ops->open(disk, o->path, true, &o->file);
    if (o->rc == ERR_OK) {
        o->rc = disk->ops->truncate(o->file, 0);
    }
    if (o->rc != ERR_OK) {
        return;
    }
    struct snap_cutter *c =
        snap_cutter_new(o->rsm->config.snap_piece_size, write_piece, o);
    enum err rc = fsm->ops->snap_read(fsm, o->view, snap_cutter_sink(c));
    if (rc == ERR_OK) {
        (void)!snap_cutter_finish(c); /* its failures are in o->rc */
    } else if (o->rc == ERR_OK) {
        o->fsm_rc = rc;
    }
    snap_cutter_free(c);
    if (rc == ERR_OK && o->rc == ERR_OK) {
        make_manifest(o);
    }
}

static void run_make(struct env_job *job)
{
    struct rsm_outgoing *o = (struct rsm_outgoing *)job;
    struct rsm_fsm *fsm = o->rsm->config.fsm;
    make_file(o);
    fsm->ops->snap_end(fsm, o->view);
    o->has_view = false;
}

static void on_made(struct env_job *job)
{
    struct rsm_outgoing *o = (struct rsm_outgoing *)job;
    struct rsm *r = o->rsm;
    if (rsm_outgoing_came_back(o)) {
        return;
    }
    if (o->fsm_rc != ERR_OK) {
        rsm_die(r, o->fsm_rc, "reading a snapshot");
    } else if (o->rc != ERR_OK) {
        log_warn("rsm", "cannot write a snapshot file: %s", err_text(o->rc));
        bool full = o->rc == ERR_NOSPACE;
        rsm_outgoing_finish(o, false);
        if (full) {
            rsm_space_wait(r, RSM_SPACE_SNAP);
        }
    } else {
        rsm_outgoing_made(o);
    }
}

/* --- begin */

static void run_begin(struct env_job *job)
{
    struct rsm_outgoing *o = (struct rsm_outgoing *)job;
    struct rsm_fsm *fsm = o->rsm->config.fsm;
    if (o->rewinds != o->rsm->space.rewinds_done) {
        o->rc = ERR_BUSY; /* the view would not have what the label says */
    } else if (rsm_space_enter(o->rsm, &o->rc)) {
        o->rc = fsm->ops->snap_begin(fsm, &o->view);
        rsm_space_leave(o->rsm, o->rc);
    }
    o->has_view = o->rc == ERR_OK;
}

static void on_begun(struct env_job *job)
{
    struct rsm_outgoing *o = (struct rsm_outgoing *)job;
    struct rsm *r = o->rsm;
    if (rsm_outgoing_came_back(o)) {
        return;
    }
    if (o->rc == ERR_BUSY) {
        rsm_outgoing_finish(o, false);
    } else if (o->rc == ERR_NOSPACE) {
        rsm_outgoing_finish(o, false);
        rsm_space_wait(r, RSM_SPACE_STORE);
    } else if (o->rc != ERR_OK) {
        rsm_die(r, o->rc, "beginning a snapshot");
    } else {
        rsm_outgoing_submit(o, r->snap_worker, &o->job, run_make, on_made);
    }
}

void rsm_outgoing_make(struct rsm_outgoing *o)
{
    rsm_outgoing_submit(o, o->rsm->apply_worker, &o->job, run_begin, on_begun);
}

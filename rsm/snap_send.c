/* A snapshot for a peer whose entries the log no longer has:
 *
 *   begin (apply worker)  freezes a view; its label is the last submitted index
 *   make  (snap worker)   the view, compressed, into "snap/out-PEER"
 *   send  (loop)          chunk by chunk: read (snap worker), call, reply ...
 *   end   (snap worker)   the file goes; the object is freed
 *
 * Through a file, so that a slow peer costs disk and not memory, and a broken
 * connection goes on where it stopped. The receiver says what it wants next, so
 * a repeated or reordered chunk does no harm: a lost one can be sent again
 * soon, and must be, since the group may wait for this peer. */
#include "base/check.h"
#include "base/codec.h"
#include "base/log.h"
#include "rsm/rsm_int.h"

#include <inttypes.h>
#include <stdio.h>

struct rsm_outgoing {
    struct env_job job;
    struct env_timer timer;
    struct rsm_outgoing *next;
    struct rsm *rsm;
    raft_id peer;
    raft_term term; /* ours as leader */
    struct snap_label label;
    char path[32];

    bool busy; /* a job is on a worker: it owns what follows */
    enum err rc;
    enum err fsm_rc;
    void *view;
    bool has_view;
    struct disk_file *file;
    uint64_t size;
    uint32_t crc;
    struct buf chunk;

    bool stopped;
    uint64_t call; /* in flight; 0: none */
    uint64_t called_ms;
    uint32_t timeout_ms;
    uint64_t offset;
    uint32_t tries;
};

static void on_begun(struct env_job *job);
static void on_made(struct env_job *job);
static void on_chunk(struct env_job *job);
static void read_chunk(struct rsm_outgoing *o);

static void submit(struct rsm_outgoing *o, struct env_worker *worker,
                   void (*run)(struct env_job *),
                   void (*done)(struct env_job *))
{
    CHECK(!o->busy);
    o->busy = true;
    o->job = (struct env_job){.run = run, .done = done};
    env_worker_submit(o->rsm->env, worker, &o->job);
}

/* --- The end */

static void release(struct rsm_outgoing *o)
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

static void run_release(struct env_job *job)
{
    release((struct rsm_outgoing *)job);
}

static void destroy(struct rsm_outgoing *o)
{
    buf_free(&o->chunk);
    mem_free(o);
}

static void on_released(struct env_job *job)
{
    destroy((struct rsm_outgoing *)job);
}

static void unlink_from(struct rsm *r, struct rsm_outgoing *o)
{
    struct rsm_outgoing **at = &r->outgoing;
    while (*at != o) {
        at = &(*at)->next;
    }
    *at = o->next;
}

/* No job is running: the object goes. */
static void end(struct rsm_outgoing *o)
{
    struct rsm *r = o->rsm;
    env_timer_stop(r->env, &o->timer);
    if (r->closing || r->dead) {
        return; /* rsm_outgoing_close() does it */
    }
    unlink_from(r, o);
    submit(o, r->snap_worker, run_release, on_released);
}

static void finish(struct rsm_outgoing *o, bool ok)
{
    struct rsm *r = o->rsm;
    struct raft_event event = {
        .type = RAFT_EV_SNAPSHOT_SENT,
        .u.sent = {.peer = o->peer, .index = o->label.index, .ok = ok},
    };
    log_info("rsm",
             "snapshot %s group=%u to=%" PRIu64 " index=%" PRIu64
             " bytes=%" PRIu64,
             ok ? "sent" : "given up", r->config.group, o->peer, o->label.index,
             o->size);
    if (ok) {
        rsm_checkpoint_sent(r, o->peer);
    }
    end(o);
    (void)!rsm_step(r, &event, NULL);
}

/* After a job: true if it was the last. */
static bool came_back(struct rsm_outgoing *o)
{
    o->busy = false;
    if (o->stopped || rsm_stopped(o->rsm)) {
        end(o);
        return true;
    }
    return false;
}

/* --- begin */

static void run_begin(struct env_job *job)
{
    struct rsm_outgoing *o = (struct rsm_outgoing *)job;
    struct rsm_fsm *fsm = o->rsm->config.fsm;
    if (rsm_space_enter(o->rsm, &o->rc)) {
        o->rc = fsm->ops->snap_begin(fsm, &o->view);
        rsm_space_leave(o->rsm, o->rc);
    }
    o->has_view = o->rc == ERR_OK;
}

static void on_timer(struct env_timer *t)
{
    read_chunk((struct rsm_outgoing *)((char *)t -
                                       offsetof(struct rsm_outgoing, timer)));
}

void rsm_outgoing_start(struct rsm *r, raft_id peer)
{
    for (struct rsm_outgoing *o = r->outgoing; o != NULL; o = o->next) {
        if (o->peer == peer && !o->stopped) {
            return;
        }
    }
    struct raft_status status;
    raft_status(r->raft, &status);
    struct rsm_outgoing *o = mem_alloc(sizeof *o);
    o->rsm = r;
    o->peer = peer;
    o->term = status.term;
    o->timer.fire = on_timer;
    o->label.index = r->submitted;
    CHECK(raft_term_at(r->raft, o->label.index, &o->label.term));
    raft_conf_at(r->raft, o->label.index, &o->label.conf);
    snprintf(o->path, sizeof o->path, "snap/out-%" PRIx64, peer);
    o->next = r->outgoing;
    r->outgoing = o;
    log_info("rsm", "sending a snapshot group=%u to=%" PRIu64 " index=%" PRIu64,
             r->config.group, peer, o->label.index);
    submit(o, r->apply_worker, run_begin, on_begun);
}

/* --- make */

struct file_sink {
    struct snap_sink sink;
    struct rsm_outgoing *o;
    enum err rc; /* of the disk, to tell it from the state machine's */
};

static enum err file_write(struct snap_sink *sink, struct slice bytes)
{
    struct file_sink *f = (struct file_sink *)sink;
    struct rsm_outgoing *o = f->o;
    struct disk *disk = o->rsm->config.disk;
    f->rc = disk->ops->write(o->file, o->size, &bytes, 1);
    o->crc = crc32c(o->crc, bytes);
    o->size += bytes.size;
    return f->rc;
}

static enum err make_file(struct rsm_outgoing *o)
{
    struct rsm_fsm *fsm = o->rsm->config.fsm;
    struct disk *disk = o->rsm->config.disk;
    enum err rc = disk->ops->open(disk, o->path, true, &o->file);
    if (rc == ERR_OK) {
        rc = disk->ops->truncate(o->file, 0);
    }
    if (rc != ERR_OK) {
        return rc;
    }
    struct file_sink f = {.sink.write = file_write, .o = o};
    struct snap_writer *w = snap_writer_new(&f.sink, &o->label);
    rc = fsm->ops->snap_read(fsm, o->view, snap_writer_sink(w));
    if (rc != ERR_OK && f.rc == ERR_OK) {
        o->fsm_rc = rc;
    }
    if (rc == ERR_OK) {
        rc = snap_writer_finish(w);
    }
    snap_writer_free(w);
    return rc;
}

static void run_make(struct env_job *job)
{
    struct rsm_outgoing *o = (struct rsm_outgoing *)job;
    struct rsm_fsm *fsm = o->rsm->config.fsm;
    o->rc = make_file(o);
    fsm->ops->snap_end(fsm, o->view);
    o->has_view = false;
}

static void on_begun(struct env_job *job)
{
    struct rsm_outgoing *o = (struct rsm_outgoing *)job;
    struct rsm *r = o->rsm;
    if (came_back(o)) {
        return;
    }
    if (o->rc == ERR_NOSPACE) {
        finish(o, false);
        rsm_space_wait(r, RSM_SPACE_STORE);
        return;
    }
    if (o->rc != ERR_OK) {
        rsm_die(r, o->rc, "beginning a snapshot");
        return;
    }
    submit(o, r->snap_worker, run_make, on_made);
}

static void on_made(struct env_job *job)
{
    struct rsm_outgoing *o = (struct rsm_outgoing *)job;
    if (came_back(o)) {
        return;
    }
    if (o->fsm_rc != ERR_OK) {
        rsm_die(o->rsm, o->fsm_rc, "reading a snapshot");
    } else if (o->rc != ERR_OK) {
        log_warn("rsm", "cannot write a snapshot file: %s", err_text(o->rc));
        struct rsm *r = o->rsm;
        bool full = o->rc == ERR_NOSPACE;
        finish(o, false);
        if (full) {
            rsm_space_wait(r, RSM_SPACE_SNAP);
        }
    } else {
        read_chunk(o);
    }
}

/* --- send */

static void run_chunk(struct env_job *job)
{
    struct rsm_outgoing *o = (struct rsm_outgoing *)job;
    struct disk *disk = o->rsm->config.disk;
    uint64_t left = o->size - o->offset;
    size_t size = left < RSM_CHUNK_SIZE ? (size_t)left : RSM_CHUNK_SIZE;
    buf_clear(&o->chunk);
    o->rc =
        disk->ops->read(o->file, o->offset, buf_extend(&o->chunk, size), size);
}

static void read_chunk(struct rsm_outgoing *o)
{
    submit(o, o->rsm->snap_worker, run_chunk, on_chunk);
}

static void pause_and_try(struct rsm_outgoing *o)
{
    if (o->tries++ >= RSM_CHUNK_TRIES) {
        finish(o, false);
        return;
    }
    env_timer_start(o->rsm->env, &o->timer,
                    RSM_CHUNK_PAUSE_MS * UINT64_C(1000));
}

static void on_status(struct rsm_outgoing *o, const struct rsm_chunk_reply *m)
{
    switch ((enum rsm_chunk_status)m->status) {
    case RSM_CHUNK_DONE: finish(o, true); return;
    case RSM_CHUNK_NEXT:
        if (m->next > o->size) {
            break;
        }
        if (m->next == o->offset) {
            pause_and_try(o);
            return;
        }
        o->tries = m->next > o->offset ? 0 : o->tries + 1;
        o->offset = m->next;
        read_chunk(o);
        return;
    case RSM_CHUNK_WAIT:
        /* It may take as long as it takes; the peer is there. */
        o->offset = o->size;
        o->tries = 0;
        pause_and_try(o);
        return;
    case RSM_CHUNK_REFUSED: break;
    }
    finish(o, false);
}

/* A slow link must not be sent everything twice; a lossy one must not make the
 * group wait. */
static uint32_t bound_timeout(const struct rsm_outgoing *o, uint64_t ms)
{
    uint64_t least =
        RSM_CHUNK_TIMEOUT_MIN_MS + o->chunk.size / RSM_CHUNK_BYTES_A_MS;
    ms = ms > least ? ms : least;
    return ms < RSM_CHUNK_TIMEOUT_MAX_MS ? (uint32_t)ms
                                         : RSM_CHUNK_TIMEOUT_MAX_MS;
}

static void adapt_timeout(struct rsm_outgoing *o, enum err rc)
{
    if (rc == ERR_OK) {
        o->timeout_ms =
            bound_timeout(o, 4 * (env_now_ms(o->rsm->env) - o->called_ms));
    } else if (rc == ERR_TIMEDOUT) {
        o->timeout_ms = bound_timeout(o, o->timeout_ms * UINT64_C(3) / 2);
    }
}

static void on_reply(void *arg, enum err rc, struct slice body)
{
    struct rsm_outgoing *o = arg;
    struct arena arena = {0};
    struct rsm_chunk_reply m;
    o->call = 0;
    adapt_timeout(o, rc);
    if (rc == ERR_OK) {
        rc = rsm_chunk_reply_decode(body, &arena, &m);
    }
    arena_free(&arena);
    if (rsm_stopped(o->rsm)) {
        return;
    }
    if (rc == ERR_OK) {
        on_status(o, &m);
    } else {
        pause_and_try(o);
    }
}

static void on_chunk(struct env_job *job)
{
    struct rsm_outgoing *o = (struct rsm_outgoing *)job;
    struct rsm *r = o->rsm;
    if (came_back(o)) {
        return;
    }
    if (o->rc != ERR_OK) {
        log_warn("rsm", "cannot read a snapshot file: %s", err_text(o->rc));
        finish(o, false);
        return;
    }
    const char *address = rsm_address(r, o->peer);
    if (address[0] == '\0') {
        finish(o, false); /* it was removed meanwhile */
        return;
    }
    struct rsm_chunk m = {
        .term = o->term,
        .from = r->config.id,
        .to = o->peer,
        .index = o->label.index,
        .snap_term = o->label.term,
        .offset = o->offset,
        .total = o->size,
        .crc = o->crc,
        .data = buf_slice(&o->chunk),
    };
    struct buf body = {0};
    rsm_chunk_encode(&body, &m);
    struct slice part = buf_slice(&body);
    o->called_ms = env_now_ms(r->env);
    o->timeout_ms = bound_timeout(o, o->timeout_ms);
    o->call = net_call(r->config.net, address, RSM_METHOD_SNAP, &part, 1,
                       o->timeout_ms, on_reply, o);
    buf_free(&body);
}

/* --- All of them */

raft_index rsm_outgoing_oldest(const struct rsm *r)
{
    raft_index oldest = UINT64_MAX;
    for (const struct rsm_outgoing *o = r->outgoing; o != NULL; o = o->next) {
        if (!o->stopped && o->tries < RSM_CHUNK_PATIENCE &&
            o->label.index < oldest) {
            oldest = o->label.index;
        }
    }
    return oldest;
}

void rsm_outgoing_stop(struct rsm *r)
{
    struct rsm_outgoing *next = NULL;
    for (struct rsm_outgoing *o = r->outgoing; o != NULL; o = next) {
        next = o->next;
        o->stopped = true;
        env_timer_stop(r->env, &o->timer);
        if (o->call != 0) {
            net_cancel(r->config.net, o->call);
            o->call = 0;
        }
        if (!o->busy) {
            end(o);
        }
    }
}

void rsm_outgoing_close(struct rsm *r)
{
    while (r->outgoing != NULL) {
        struct rsm_outgoing *o = r->outgoing;
        r->outgoing = o->next;
        release(o);
        destroy(o);
    }
}

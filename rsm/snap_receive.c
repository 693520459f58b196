/* A snapshot we are sent. At most one at a time, into "snap/in":
 *
 *   chunks (snap worker)   appended; the last one: all is checked and synced
 *   install (apply worker) the state machine is replaced, durably
 *   reset (wal worker)     the log begins anew after the snapshot
 *   then the core is told, and the file goes.
 *
 * Invariants:
 *  1. From raft_install_begin() until the core is told, no entry is given to
 *     the apply worker, and the core takes none.
 *  2. "snap/in" stays, synced, until the log is reset: a crash between install
 *     and reset is finished from its label at the next start (open.c). */
#include "base/check.h"
#include "base/codec.h"
#include "base/log.h"
#include "rsm/rsm_int.h"

#include <inttypes.h>

#define SNAP_IN_PATH "snap/in"

struct rsm_incoming {
    struct env_job job;
    struct rsm *rsm;
    struct rsm_chunk head; /* of the stream; offset and data are not used */
    bool installing;

    bool busy; /* a job is on a worker: it owns what follows */
    enum err rc;
    struct disk_file *file;
    uint64_t offset; /* so many bytes are written */
    uint32_t crc;    /* of these */
    struct buf data; /* the chunk being written */
    struct snap_label label;

    struct net_request *request; /* to be answered when it is written */
};

/* --- Reading the file */

struct file_source {
    struct snap_source source;
    struct disk *disk;
    struct disk_file *file;
    uint64_t at, end;
};

static enum err file_read(struct snap_source *source, void *to, size_t size_max,
                          size_t *size)
{
    struct file_source *f = (struct file_source *)source;
    uint64_t left = f->end - f->at;
    size_t n = left < size_max ? (size_t)left : size_max;
    enum err rc = n == 0 ? ERR_OK : f->disk->ops->read(f->file, f->at, to, n);
    if (rc == ERR_OK) {
        f->at += n;
        *size = n;
    }
    return rc;
}

static enum err read_label(struct disk *disk, struct disk_file *file,
                           struct snap_label *label)
{
    struct file_source f = {
        .source.read = file_read, .disk = disk, .file = file};
    struct snap_reader *reader = NULL;
    enum err rc = disk->ops->size(file, &f.end);
    if (rc == ERR_OK) {
        rc = snap_reader_new(&f.source, label, &reader);
    }
    if (rc == ERR_OK) {
        snap_reader_free(reader);
    }
    return rc;
}

enum err rsm_incoming_label(struct rsm *r, struct snap_label *label)
{
    struct disk *disk = r->config.disk;
    struct disk_file *file = NULL;
    enum err rc = disk->ops->open(disk, SNAP_IN_PATH, false, &file);
    if (rc != ERR_OK) {
        return rc;
    }
    rc = read_label(disk, file, label);
    disk->ops->close(file);
    return rc;
}

void rsm_incoming_forget(struct rsm *r)
{
    /* A left-over is written over by the next stream. */
    (void)!r->config.disk->ops->remove(r->config.disk, SNAP_IN_PATH);
}

/* --- Answers */

static void answer(struct rsm *r, struct net_request *request,
                   enum rsm_chunk_status status, uint64_t next)
{
    struct rsm_chunk_reply m = {.status = (uint8_t)status, .next = next};
    struct buf body = {0};
    rsm_chunk_reply_encode(&body, &m);
    net_reply(r->config.net, request, ERR_OK, buf_slice(&body));
    buf_free(&body);
}

static void answer_held(struct rsm_incoming *in, enum rsm_chunk_status status)
{
    struct net_request *request = in->request;
    in->request = NULL;
    if (request != NULL) {
        answer(in->rsm, request, status, in->offset);
    }
}

/* --- The end */

static void submit(struct rsm_incoming *in, struct env_worker *worker,
                   void (*run)(struct env_job *),
                   void (*done)(struct env_job *))
{
    CHECK(!in->busy);
    in->busy = true;
    in->job = (struct env_job){.run = run, .done = done};
    env_worker_submit(in->rsm->env, worker, &in->job);
}

static void run_remove(struct env_job *job)
{
    struct rsm_incoming *in = (struct rsm_incoming *)job;
    struct disk *disk = in->rsm->config.disk;
    if (in->file != NULL) {
        disk->ops->close(in->file);
        in->file = NULL;
        rsm_incoming_forget(in->rsm);
    }
}

static void destroy(struct rsm_incoming *in)
{
    if (in->file != NULL) {
        in->rsm->config.disk->ops->close(in->file);
    }
    buf_free(&in->data);
    mem_free(in);
}

static void on_removed(struct env_job *job)
{
    destroy((struct rsm_incoming *)job);
}

static void end(struct rsm_incoming *in)
{
    struct rsm *r = in->rsm;
    CHECK(r->incoming == in);
    if (!rsm_stopped(r)) {
        r->incoming = NULL;
        submit(in, r->snap_worker, run_remove, on_removed);
    }
}

/* After a job: false if nothing more is to be done. */
static bool came_back(struct rsm_incoming *in)
{
    in->busy = false;
    return !rsm_stopped(in->rsm);
}

/* --- Install */

static void run_install(struct env_job *job)
{
    struct rsm_incoming *in = (struct rsm_incoming *)job;
    struct rsm_config *c = &in->rsm->config;
    struct file_source f = {.source.read = file_read,
                            .disk = c->disk,
                            .file = in->file,
                            .end = in->head.total};
    struct snap_label label;
    struct snap_reader *reader = NULL;
    in->rc = snap_reader_new(&f.source, &label, &reader);
    if (in->rc != ERR_OK) {
        return;
    }
    in->rc = c->fsm->ops->snap_install(c->fsm, snap_reader_source(reader),
                                       label.index, label.term);
    in->rsm->space.half = in->rsm->space.half && in->rc != ERR_OK;
    snap_reader_free(reader);
}

static void on_installed(struct env_job *job)
{
    struct rsm_incoming *in = (struct rsm_incoming *)job;
    struct rsm *r = in->rsm;
    if (!came_back(in)) {
        return;
    }
    if (in->rc == ERR_CORRUPT || in->rc == ERR_VERSION ||
        in->rc == ERR_NOSPACE) {
        log_error("rsm", "a received snapshot was refused: %s",
                  err_text(in->rc));
        r->installing = false;
        raft_install_abort(r->raft);
        enum err rc = in->rc;
        end(in);
        if (rc == ERR_NOSPACE) {
            rsm_space_wait(r, RSM_SPACE_SNAP);
        }
        rsm_apply_pump(r);
    } else if (in->rc != ERR_OK) {
        rsm_die(r, in->rc, "installing a snapshot");
    } else {
        rsm_log_reset(r, &in->label);
    }
}

void rsm_incoming_reset_done(struct rsm *r)
{
    struct rsm_incoming *in = r->incoming;
    raft_index index = in->label.index;
    r->installing = false;
    r->submitted = r->applied = index;
    if (r->commit < index) {
        r->commit = index;
    }
    rsm_checkpoint_installed(r, index);
    r->space.replay = 0;
    rsm_propose_fail_upto(r, index);
    log_info("rsm",
             "installed a snapshot group=%u from=%" PRIu64 " index=%" PRIu64,
             r->config.group, in->head.from, index);
    struct raft_event event = {
        .type = RAFT_EV_SNAPSHOT_INSTALLED,
        .u.snapshot = {.index = index,
                       .term = in->label.term,
                       .conf = in->label.conf},
    };
    end(in);
    enum err rc = rsm_step(r, &event, NULL);
    CHECK(rc == ERR_OK || rsm_stopped(r));
    rsm_space_found(r, RSM_SPACE_STORE);
    if (r->config.on_applied != NULL) {
        r->config.on_applied(r->config.arg);
    }
}

static void on_fence(struct env_job *job)
{
    struct rsm_incoming *in = (struct rsm_incoming *)job;
    if (came_back(in)) {
        submit(in, in->rsm->apply_worker, run_install, on_installed);
    }
}

/* Not while we still hold a view of the state that goes, from the time when we
 * led: the leader asks again until it is gone; what is being released has its
 * job on the snap worker before the fence. */
static void begin_install(struct rsm_incoming *in)
{
    struct rsm *r = in->rsm;
    if (r->outgoing != NULL) {
        answer_held(in, RSM_CHUNK_NEXT);
        return;
    }
    if (!raft_install_begin(r->raft, in->label.index, in->label.term)) {
        answer_held(in, RSM_CHUNK_DONE); /* the log caught up meanwhile */
        end(in);
        return;
    }
    in->installing = true;
    r->installing = true;
    answer_held(in, RSM_CHUNK_WAIT);
    submit(in, r->snap_worker, NULL, on_fence);
}

/* --- Chunks */

static enum err check_whole(struct rsm_incoming *in)
{
    struct disk *disk = in->rsm->config.disk;
    if (in->crc != in->head.crc) {
        return ERR_CORRUPT;
    }
    enum err rc = disk->ops->sync(in->file);
    if (rc == ERR_OK) {
        rc = disk->ops->sync_dir(disk, "snap");
    }
    if (rc == ERR_OK) {
        rc = read_label(disk, in->file, &in->label);
    }
    if (rc == ERR_OK && (in->label.index != in->head.index ||
                         in->label.term != in->head.snap_term)) {
        rc = ERR_CORRUPT;
    }
    return rc;
}

static void run_write(struct env_job *job)
{
    struct rsm_incoming *in = (struct rsm_incoming *)job;
    struct disk *disk = in->rsm->config.disk;
    in->rc = ERR_OK;
    if (in->file == NULL) {
        in->rc = disk->ops->open(disk, SNAP_IN_PATH, true, &in->file);
        if (in->rc != ERR_OK) {
            in->file = NULL;
        }
    }
    if (in->rc == ERR_OK && in->offset == 0) {
        in->rc = disk->ops->truncate(in->file, 0);
    }
    struct slice data = buf_slice(&in->data);
    if (in->rc == ERR_OK) {
        in->rc = disk->ops->write(in->file, in->offset, &data, 1);
    }
    if (in->rc != ERR_OK) {
        return;
    }
    in->offset += data.size;
    in->crc = crc32c(in->crc, data);
    if (in->offset == in->head.total) {
        in->rc = check_whole(in);
    }
}

static void on_written(struct env_job *job)
{
    struct rsm_incoming *in = (struct rsm_incoming *)job;
    struct rsm *r = in->rsm;
    if (!came_back(in)) {
        return;
    }
    if (in->rc == ERR_IO) {
        rsm_die(r, in->rc, "writing a received snapshot");
    } else if (in->rc != ERR_OK) {
        bool full = in->rc == ERR_NOSPACE;
        log_warn("rsm", "cannot take a snapshot: %s", err_text(in->rc));
        answer_held(in, full ? RSM_CHUNK_WAIT : RSM_CHUNK_REFUSED);
        end(in);
        if (full) {
            rsm_space_wait(r, RSM_SPACE_SNAP);
        }
    } else if (in->offset == in->head.total) {
        begin_install(in);
    } else {
        answer_held(in, RSM_CHUNK_NEXT);
    }
}

static bool same_stream(const struct rsm_incoming *in,
                        const struct rsm_chunk *m)
{
    const struct rsm_chunk *h = &in->head;
    return h->from == m->from && h->index == m->index &&
           h->snap_term == m->snap_term && h->total == m->total &&
           h->crc == m->crc;
}

static void begin_stream(struct rsm *r, const struct rsm_chunk *m)
{
    if (r->incoming == NULL) {
        r->incoming = mem_alloc(sizeof *r->incoming);
        r->incoming->rsm = r;
    }
    struct rsm_incoming *in = r->incoming;
    in->head = *m;
    in->head.data = slice_of(NULL, 0);
    in->offset = 0;
    in->crc = 0;
}

/* What needs no writing is answered here; false if the chunk is to be written.
 */
static bool answer_at_once(struct rsm *r, struct net_request *request,
                           const struct rsm_chunk *m)
{
    struct rsm_incoming *in = r->incoming;
    struct raft_status status;
    raft_status(r->raft, &status);
    bool same = in != NULL && same_stream(in, m);
    if (m->term < status.term) {
        answer(r, request, RSM_CHUNK_REFUSED, 0); /* from a leader of old */
    } else if (in != NULL && in->installing && same) {
        answer(r, request, RSM_CHUNK_WAIT, in->offset);
    } else if (!raft_wants_snapshot(r->raft, m->index, m->snap_term)) {
        answer(r, request, RSM_CHUNK_DONE, 0);
    } else if (in == NULL && r->space.full) {
        answer(r, request, RSM_CHUNK_WAIT, 0); /* it asks again, for little */
    } else if (in != NULL && (in->installing || in->busy)) {
        net_reply(r->config.net, request, ERR_BUSY, slice_of(NULL, 0));
    } else {
        if (!same) {
            begin_stream(r, m);
        }
        in = r->incoming;
        if (m->offset == in->offset && m->data.size > 0) {
            return false;
        }
        if (in->offset == in->head.total) {
            in->request = request;
            begin_install(in);
        } else {
            answer(r, request, RSM_CHUNK_NEXT, in->offset);
        }
    }
    return true;
}

void rsm_incoming_chunk(struct rsm *r, struct net_request *request,
                        struct slice body)
{
    struct arena arena = {0};
    struct rsm_chunk m;
    enum err rc = rsm_chunk_decode(body, &arena, &m);
    if (rc != ERR_OK || m.to != r->config.id || m.offset > m.total ||
        m.data.size > m.total - m.offset) {
        net_reply(r->config.net, request, ERR_INVALID, slice_of(NULL, 0));
    } else if (!answer_at_once(r, request, &m)) {
        struct rsm_incoming *in = r->incoming;
        in->request = request;
        buf_clear(&in->data);
        buf_append(&in->data, m.data.data, m.data.size);
        submit(in, r->snap_worker, run_write, on_written);
    }
    arena_free(&arena);
}

void rsm_incoming_stop(struct rsm *r)
{
    struct rsm_incoming *in = r->incoming;
    if (in != NULL && in->request != NULL) {
        net_reply(r->config.net, in->request, ERR_CLOSED, slice_of(NULL, 0));
        in->request = NULL;
    }
}

/* The file stays: it may be needed to finish the install. */
void rsm_incoming_close(struct rsm *r)
{
    if (r->incoming != NULL) {
        destroy(r->incoming);
        r->incoming = NULL;
    }
}

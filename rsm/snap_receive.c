/* A snapshot we are sent. At most one at a time; see snap_int.h.
 *
 *   requests (snap worker)   the manifest is gathered, pieces are stored; when
 *                            none is missing all is synced, the manifest too
 *   install (apply worker)   the state machine is replaced, durably
 *   reset (wal worker)       the log begins anew after the snapshot
 *   then the core is told, and the files go.
 *
 * Invariants:
 *  1. From raft_install_begin() until the core is told, no entry is given to
 *     the apply worker, and the core takes none.
 *  2. "snap/in", the manifest, is written when all pieces are there, and stays,
 *     synced, until the log is reset: a crash between install and reset is
 *     finished from its label at the next start (open.c).
 *  3. Pieces stay, whatever becomes of the stream that brought them, until a
 *     snapshot is installed, the log goes on without one, or their space is
 *     needed. */
#include "rsm/snap_int.h"

#include <inttypes.h>
#include <string.h>

#include "base/check.h"
#include "base/codec.h"
#include "base/log.h"

#define SNAP_IN_PATH "snap/in"

struct rsm_incoming {
    struct env_job job; /* of the install, and of the end */
    struct rsm *rsm;

    /* The loop's */
    bool installing;
    uint32_t arriving;       /* requests on the snap worker */
    raft_index useless_from; /* applied up to here, pieces are of no use */
    raft_id from;
    enum err rc;

    /* The snap worker's; the apply worker's during the install */
    struct rsm_pieces *pieces;
    struct rsm_chunk head; /* of the newest stream; kind, at, data: not used */
    struct buf bytes;      /* of its manifest, as far as it has come */
    struct snap_manifest manifest; /* when all of it is here */
    bool has_manifest;
};

/* One request, while the snap worker has it. */
struct arrival {
    struct env_job job;
    struct rsm_incoming *in;
    struct net_request *request;
    struct rsm_chunk m;
    struct buf data, missing;
    struct rsm_chunk_reply reply;
    bool complete; /* nothing is missing, and all is synced */
    enum err rc;
};

/* --- The manifest's file */

static enum err read_file(struct disk *disk, const char *path, struct buf *b)
{
    struct disk_file *file = NULL;
    uint64_t size = 0;
    enum err rc = disk->ops->open(disk, path, false, &file);
    if (rc != ERR_OK) {
        return rc;
    }
    rc = disk->ops->size(file, &size);
    if (rc == ERR_OK && size > RSM_MANIFEST_SIZE_MAX) {
        rc = ERR_CORRUPT;
    }
    if (rc == ERR_OK) {
        rc =
            disk->ops->read(file, 0, buf_extend(b, (size_t)size), (size_t)size);
    }
    disk->ops->close(file);
    return rc;
}

enum err rsm_incoming_label(struct rsm *r, struct snap_label *label)
{
    struct buf bytes = {0};
    struct snap_manifest m;
    enum err rc = read_file(r->config.disk, SNAP_IN_PATH, &bytes);
    if (rc == ERR_OK) {
        rc = snap_manifest_decode(buf_slice(&bytes), &m);
    }
    if (rc == ERR_OK) {
        *label = m.label;
    }
    buf_free(&bytes);
    return rc;
}

/* A left-over is written over by the next one. */
static void forget(struct disk *disk)
{
    (void)!disk->ops->remove(disk, SNAP_IN_PATH);
    rsm_pieces_forget(disk);
}

void rsm_incoming_forget(struct rsm *r)
{
    forget(r->config.disk);
}

static enum err write_manifest(struct rsm_incoming *in)
{
    struct disk *disk = in->rsm->config.disk;
    struct disk_file *file = NULL;
    struct slice bytes = buf_slice(&in->bytes);
    enum err rc = disk->ops->open(disk, SNAP_IN_PATH, true, &file);
    if (rc != ERR_OK) {
        return rc;
    }
    rc = disk->ops->truncate(file, 0);
    if (rc == ERR_OK) {
        rc = disk->ops->write(file, 0, &bytes, 1);
    }
    if (rc == ERR_OK && (disk->ops->sync(file) != ERR_OK ||
                         disk->ops->sync_dir(disk, "snap") != ERR_OK)) {
        rc = ERR_IO; /* a failed sync is final */
    }
    disk->ops->close(file);
    return rc;
}

/* --- Requests, on the snap worker */

static bool same_stream(const struct rsm_chunk *a, const struct rsm_chunk *b)
{
    return a->index == b->index && a->snap_term == b->snap_term &&
           a->size == b->size && a->crc == b->crc;
}

static void begin_stream(struct rsm_incoming *in, const struct rsm_chunk *m)
{
    in->head = *m;
    in->has_manifest = false;
    buf_clear(&in->bytes);
}

static enum err check_manifest(struct rsm_incoming *in)
{
    enum err rc =
        crc32c(0, buf_slice(&in->bytes)) == in->head.crc
            ? snap_manifest_decode(buf_slice(&in->bytes), &in->manifest)
            : ERR_CORRUPT;
    if (rc == ERR_OK && (in->manifest.label.index != in->head.index ||
                         in->manifest.label.term != in->head.snap_term)) {
        rc = ERR_CORRUPT;
    }
    in->has_manifest = rc == ERR_OK;
    return rc;
}

static enum err take_manifest(struct rsm_incoming *in,
                              const struct rsm_chunk *m)
{
    if (in->has_manifest || m->at != in->bytes.size ||
        m->data.size > m->size - m->at) {
        return ERR_OK; /* it came before */
    }
    buf_append(&in->bytes, m->data.data, m->data.size);
    return in->bytes.size == in->head.size ? check_manifest(in) : ERR_OK;
}

/* True if any is. */
static bool list_missing(const struct rsm_incoming *in, struct buf *missing)
{
    const struct snap_manifest *m = &in->manifest;
    size_t size = (m->count + 7) / 8;
    bool any = false;
    uint8_t *bits = buf_extend(missing, size + 1);
    memset(bits, 0, size + 1);
    for (uint32_t i = 0; i < m->count; i++) {
        if (!rsm_pieces_has(in->pieces, &m->ids[i])) {
            bits[i / 8] |= (uint8_t)(1u << i % 8);
            any = true;
        }
    }
    missing->size = size;
    return any;
}

static enum err say_what_is_missing(struct arrival *a)
{
    struct rsm_incoming *in = a->in;
    if (!in->has_manifest) {
        a->reply.status = RSM_CHUNK_MORE;
        a->reply.at = in->bytes.size;
        return ERR_OK;
    }
    a->reply.status = RSM_CHUNK_MISSING;
    if (list_missing(in, &a->missing)) {
        return ERR_OK;
    }
    enum err rc = rsm_pieces_sync(in->pieces);
    if (rc == ERR_OK) {
        rc = write_manifest(in);
    }
    a->complete = rc == ERR_OK;
    return rc;
}

static enum err take_piece(struct arrival *a)
{
    struct rsm_incoming *in = a->in;
    if (!in->has_manifest || a->m.at >= in->manifest.count) {
        return say_what_is_missing(a);
    }
    a->reply.status = RSM_CHUNK_STORED;
    a->reply.at = a->m.at;
    return rsm_pieces_add(in->pieces, &in->manifest.ids[a->m.at], a->m.data);
}

static void run_arrival(struct env_job *job)
{
    struct arrival *a = (struct arrival *)job;
    struct rsm_incoming *in = a->in;
    a->rc = rsm_pieces_open(in->pieces);
    if (a->rc == ERR_OK && !same_stream(&in->head, &a->m)) {
        begin_stream(in, &a->m);
    }
    if (a->rc == ERR_OK && a->m.kind == RSM_CHUNK_PIECE) {
        a->rc = take_piece(a);
        return;
    }
    if (a->rc == ERR_OK && a->m.kind == RSM_CHUNK_MANIFEST) {
        a->rc = take_manifest(in, &a->m);
    }
    if (a->rc == ERR_OK) {
        a->rc = say_what_is_missing(a);
    }
}

/* --- The end */

static void run_remove(struct env_job *job)
{
    struct rsm_incoming *in = (struct rsm_incoming *)job;
    rsm_pieces_free(in->pieces);
    in->pieces = NULL;
    forget(in->rsm->config.disk);
}

static void destroy(struct rsm_incoming *in)
{
    if (in->pieces != NULL) {
        rsm_pieces_free(in->pieces);
    }
    buf_free(&in->bytes);
    mem_free(in);
}

static void on_removed(struct env_job *job)
{
    destroy((struct rsm_incoming *)job);
}

/* What is on the worker is before the removal, and is answered there. */
static void end(struct rsm_incoming *in)
{
    struct rsm *r = in->rsm;
    CHECK(r->incoming == in);
    if (!rsm_stopped(r)) {
        r->incoming = NULL;
        in->job = (struct env_job){.run = run_remove, .done = on_removed};
        env_worker_submit(r->env, r->snap_worker, &in->job);
    }
}

/* --- Install */

static void run_install(struct env_job *job)
{
    struct rsm_incoming *in = (struct rsm_incoming *)job;
    struct rsm_config *c = &in->rsm->config;
    const struct snap_manifest *m = &in->manifest;
    in->rc = c->fsm->ops->snap_install(
        c->fsm, rsm_pieces_source(in->pieces, m->ids, m->count), m->label.index,
        m->label.term);
    in->rsm->space.half = in->rsm->space.half && in->rc != ERR_OK;
}

static void on_installed(struct env_job *job)
{
    struct rsm_incoming *in = (struct rsm_incoming *)job;
    struct rsm *r = in->rsm;
    if (rsm_stopped(r)) {
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
        rsm_log_reset(r, &in->manifest.label);
    }
}

void rsm_incoming_reset_done(struct rsm *r)
{
    struct rsm_incoming *in = r->incoming;
    struct snap_label label = in->manifest.label;
    r->installing = false;
    r->submitted = r->applied = label.index;
    if (r->commit < label.index) {
        r->commit = label.index;
    }
    r->snap_stats.installed++;
    rsm_checkpoint_installed(r, label.index);
    r->space.replay = 0;
    r->space.rewound = true; /* this state is whole */
    rsm_propose_fail_upto(r, label.index);
    log_info("rsm",
             "installed a snapshot group=%u from=%" PRIu64 " index=%" PRIu64,
             r->config.group, in->from, label.index);
    struct raft_event event = {
        .type = RAFT_EV_SNAPSHOT_INSTALLED,
        .u.snapshot = {.index = label.index,
                       .term = label.term,
                       .conf = label.conf},
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
    if (!rsm_stopped(in->rsm)) {
        in->job = (struct env_job){.run = run_install, .done = on_installed};
        env_worker_submit(in->rsm->env, in->rsm->apply_worker, &in->job);
    }
}

/* Not while we still hold a view of the state that goes, from the time when we
 * led: the leader asks again until it is gone. Requests that are still on the
 * snap worker, and what is being released there, are before the fence. Gives
 * what to answer. */
static enum rsm_chunk_status begin_install(struct rsm_incoming *in)
{
    struct rsm *r = in->rsm;
    const struct snap_label *label = &in->manifest.label;
    if (r->outgoing != NULL || in->arriving > 0) {
        return RSM_CHUNK_WAIT;
    }
    if (!raft_install_begin(r->raft, label->index, label->term)) {
        end(in);
        return RSM_CHUNK_DONE; /* the log caught up meanwhile */
    }
    in->installing = true;
    r->installing = true;
    in->job = (struct env_job){.done = on_fence};
    env_worker_submit(r->env, r->snap_worker, &in->job);
    return RSM_CHUNK_WAIT;
}

/* --- Requests, on the loop */

static void answer(struct rsm *r, struct net_request *request,
                   const struct rsm_chunk_reply *reply)
{
    struct buf body = {0};
    rsm_chunk_reply_encode(&body, reply);
    net_reply(r->config.net, request, ERR_OK, buf_slice(&body));
    buf_free(&body);
}

static void answer_status(struct rsm *r, struct net_request *request,
                          enum rsm_chunk_status status)
{
    struct rsm_chunk_reply reply = {.status = (uint8_t)status};
    answer(r, request, &reply);
}

static void answer_installing(const struct rsm_incoming *in,
                              struct net_request *request)
{
    struct rsm_chunk_reply reply = {.status = RSM_CHUNK_INSTALLING,
                                    .at = rsm_pieces_position(in->pieces)};
    answer(in->rsm, request, &reply);
}

static enum rsm_chunk_status failed(struct rsm_incoming *in, enum err rc)
{
    struct rsm *r = in->rsm;
    if (rc == ERR_IO) {
        rsm_die(r, rc, "writing a received snapshot");
        return RSM_CHUNK_REFUSED;
    }
    log_warn("rsm", "cannot take a snapshot: %s", err_text(rc));
    if (rc != ERR_NOSPACE) {
        return RSM_CHUNK_REFUSED;
    }
    if (r->incoming == in && !in->installing) {
        end(in); /* its space may be what is missing */
    }
    rsm_space_wait(r, RSM_SPACE_SNAP);
    return RSM_CHUNK_WAIT;
}

static void on_arrived(struct env_job *job)
{
    struct arrival *a = (struct arrival *)job;
    struct rsm_incoming *in = a->in;
    struct rsm *r = in->rsm;
    in->arriving--;
    a->reply.missing = buf_slice(&a->missing);
    if (rsm_stopped(r)) {
        net_reply(r->config.net, a->request, ERR_CLOSED, slice_of(NULL, 0));
    } else if (a->rc != ERR_OK) {
        answer_status(r, a->request, failed(in, a->rc));
    } else if (r->incoming != in) {
        answer_status(r, a->request, RSM_CHUNK_WAIT); /* it ended meanwhile */
    } else if (in->installing) {
        answer_installing(in, a->request);
    } else if (a->complete) {
        answer_status(r, a->request, begin_install(in));
    } else {
        answer(r, a->request, &a->reply);
    }
    buf_free(&a->data);
    buf_free(&a->missing);
    mem_free(a);
}

static struct rsm_incoming *incoming(struct rsm *r)
{
    if (r->incoming == NULL) {
        r->incoming = mem_alloc(sizeof *r->incoming);
        r->incoming->rsm = r;
        r->incoming->pieces = rsm_pieces_new(r->config.disk);
    }
    return r->incoming;
}

/* Before it is known what they are of: an entry that the log did not have says
 * that the log goes on without a snapshot. */
void rsm_incoming_open(struct rsm *r)
{
    struct disk *disk = r->config.disk;
    struct disk_file *file = NULL;
    struct raft_status status;
    if (disk->ops->open(disk, "snap/pieces", false, &file) == ERR_OK) {
        disk->ops->close(file);
        raft_status(r->raft, &status);
        incoming(r)->useless_from = status.last_index + 1;
    }
}

void rsm_incoming_applied(struct rsm *r)
{
    struct rsm_incoming *in = r->incoming;
    if (in != NULL && !in->installing && r->applied >= in->useless_from) {
        end(in);
    }
}

static void take(struct rsm *r, struct net_request *request,
                 const struct rsm_chunk *m)
{
    struct rsm_incoming *in = incoming(r);
    struct arrival *a = mem_alloc(sizeof *a);
    in->useless_from = m->index;
    in->from = m->from;
    in->arriving++;
    a->in = in;
    a->request = request;
    a->m = *m;
    buf_append(&a->data, m->data.data, m->data.size);
    a->m.data = buf_slice(&a->data);
    a->job.run = run_arrival;
    a->job.done = on_arrived;
    env_worker_submit(r->env, r->snap_worker, &a->job);
}

static void arrive(struct rsm *r, struct net_request *request,
                   const struct rsm_chunk *m)
{
    struct rsm_incoming *in = r->incoming;
    struct raft_status status;
    raft_status(r->raft, &status);
    if (m->term < status.term) {
        answer_status(r, request, RSM_CHUNK_REFUSED); /* a leader of old */
    } else if (in != NULL && in->installing) {
        answer_installing(in, request);
    } else if (!raft_wants_snapshot(r->raft, m->index, m->snap_term)) {
        answer_status(r, request, RSM_CHUNK_DONE);
    } else if (in == NULL && r->space.full) {
        answer_status(r, request, RSM_CHUNK_WAIT); /* it asks again */
    } else if (in != NULL && in->arriving >= RSM_ARRIVING_MAX) {
        net_reply(r->config.net, request, ERR_BUSY, slice_of(NULL, 0));
    } else {
        take(r, request, m);
    }
}

static bool is_sane(const struct rsm *r, const struct rsm_chunk *m)
{
    return m->to == r->config.id && m->size <= RSM_MANIFEST_SIZE_MAX &&
           m->kind >= RSM_CHUNK_ASK && m->kind <= RSM_CHUNK_PIECE &&
           m->data.size <= SNAP_PACKED_SIZE_MAX &&
           (m->kind != RSM_CHUNK_MANIFEST ||
            (m->at <= m->size && m->data.size <= m->size - m->at));
}

void rsm_incoming_chunk(struct rsm *r, struct net_request *request,
                        struct slice body)
{
    struct arena arena = {0};
    struct rsm_chunk m;
    if (rsm_chunk_decode(body, &arena, &m) == ERR_OK && is_sane(r, &m)) {
        arrive(r, request, &m);
    } else {
        net_reply(r->config.net, request, ERR_INVALID, slice_of(NULL, 0));
    }
    arena_free(&arena);
}

/* The files stay: they may be needed to finish the install, or to go on. */
void rsm_incoming_close(struct rsm *r)
{
    if (r->incoming != NULL) {
        destroy(r->incoming);
        r->incoming = NULL;
    }
}

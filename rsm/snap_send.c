/* Sending a snapshot to a peer whose entries the log no longer has. See
 * snap_int.h for what is sent, and for why it can go on wherever it broke.
 *
 *   ASKING ----> MANIFEST ----> ASKING --missing--> PIECES --all sent-->
 *   ASKING ... until the peer says that it is installed, or not needed
 *
 * Invariants:
 *  1. The log is kept from label.index on as long as the stream lives
 *     (checkpoint.c): when it is cut past that, the stream ends, since what it
 *     would bring could not be continued. Nothing is lost by that: the next
 *     stream sends only what this one has not.
 *  2. A stream lives while its peer answers, and RSM_CHUNK_SILENCE_MS longer.
 *  3. At most `window` bytes are in flight. The window grows with each answer
 *     and halves with each timeout: so a slow link is not sent everything
 *     twice, and a lossy one does not make the group wait.
 *  4. While clients wait on this replica, the stream takes at most half of its
 *     link's time: after each answer it pauses as long as that took. */
#include "rsm/snap_int.h"

#include <inttypes.h>
#include <stdio.h>

#include "base/check.h"
#include "base/codec.h"
#include "base/log.h"

static void go_on(struct rsm_outgoing *o);

/* --- The end */

static void run_release(struct env_job *job)
{
    rsm_outgoing_release((struct rsm_outgoing *)job);
}

static void on_released(struct env_job *job)
{
    rsm_outgoing_free((struct rsm_outgoing *)job);
}

static void unlink_from(struct rsm *r, struct rsm_outgoing *o)
{
    struct rsm_outgoing **at = &r->outgoing;
    while (*at != o) {
        at = &(*at)->next;
    }
    *at = o->next;
}

/* Nothing more is sent; when no job is running, the object goes. */
static void end(struct rsm_outgoing *o)
{
    struct rsm *r = o->rsm;
    __atomic_store_n(&o->stopped, true, __ATOMIC_RELAXED);
    env_timer_stop(r->env, &o->timer);
    if (o->call != 0) {
        net_cancel(r->config.net, o->call);
        o->call = 0;
    }
    for (uint32_t i = 0; i < RSM_WINDOW_COUNT; i++) {
        if (o->slots[i].call != 0) {
            net_cancel(r->config.net, o->slots[i].call);
            o->slots[i].call = 0;
        }
    }
    if (o->jobs > 0 || rsm_stopped(r)) {
        return; /* came_back() or rsm_outgoing_close() does it */
    }
    unlink_from(r, o);
    rsm_outgoing_submit(o, r->snap_worker, &o->job, run_release, on_released);
}

void rsm_outgoing_finish(struct rsm_outgoing *o, bool ok)
{
    struct rsm *r = o->rsm;
    struct raft_event event = {
        .type = RAFT_EV_SNAPSHOT_SENT,
        .u.sent = {.peer = o->peer, .index = o->label.index, .ok = ok},
    };
    log_info("rsm",
             "snapshot %s group=%u to=%" PRIu64 " index=%" PRIu64
             " pieces=%u bytes=%" PRIu64,
             ok ? "sent" : "given up", r->config.group, o->peer, o->label.index,
             o->count, o->file_size);
    if (ok) {
        CHECK(r->compacted <= o->label.index); /* 1 */
    }
    end(o);
    (void)!rsm_step(r, &event, NULL);
}

bool rsm_outgoing_came_back(struct rsm_outgoing *o)
{
    CHECK(o->jobs > 0);
    o->jobs--;
    if (o->stopped || rsm_stopped(o->rsm)) {
        end(o);
        return true;
    }
    return false;
}

/* --- Calls, and what they say of the link */

static uint32_t bound_timeout(const struct rsm_outgoing *o, uint64_t ms)
{
    uint64_t least =
        RSM_CHUNK_TIMEOUT_MIN_MS + o->in_flight / RSM_CHUNK_BYTES_A_MS;
    ms = ms > least ? ms : least;
    return ms < RSM_CHUNK_TIMEOUT_MAX_MS ? (uint32_t)ms
                                         : RSM_CHUNK_TIMEOUT_MAX_MS;
}

static void heard(struct rsm_outgoing *o, uint64_t called_us)
{
    uint64_t took_us = env_now_us(o->rsm->env) - called_us;
    o->timeout_ms = bound_timeout(o, 4 * took_us / 1000);
    o->heard_ms = env_now_ms(o->rsm->env);
    o->tries = 0;
}

/* Not again before the pause is over; and not for ever. */
static void pause_after(struct rsm_outgoing *o, enum err rc)
{
    uint64_t now_ms = env_now_ms(o->rsm->env);
    if (rc == ERR_TIMEDOUT) {
        o->timeout_ms = bound_timeout(o, o->timeout_ms * UINT64_C(3) / 2);
        o->window /= 2;
    }
    if (now_ms - o->heard_ms > RSM_CHUNK_SILENCE_MS) {
        rsm_outgoing_finish(o, false);
    } else if (!o->paused) {
        o->paused = true;
        o->tries++;
        env_timer_start(o->rsm->env, &o->timer,
                        RSM_CHUNK_PAUSE_MS * UINT64_C(1000));
    }
}

/* 0: the peer was removed meanwhile, and the stream has ended. */
static uint64_t call(struct rsm_outgoing *o, enum rsm_chunk_kind kind,
                     uint64_t at, struct slice data, net_reply_fn *reply,
                     void *arg)
{
    struct rsm *r = o->rsm;
    const char *address = rsm_address(r, o->peer);
    if (address[0] == '\0') {
        rsm_outgoing_finish(o, false);
        return 0;
    }
    struct rsm_chunk m = {
        .term = o->term,
        .from = r->config.id,
        .to = o->peer,
        .index = o->label.index,
        .snap_term = o->label.term,
        .size = o->manifest.size,
        .crc = o->crc,
        .kind = (uint8_t)kind,
        .at = at,
        .data = data,
    };
    struct buf body = {0};
    rsm_chunk_encode(&body, &m);
    struct slice part = buf_slice(&body);
    o->timeout_ms = bound_timeout(o, o->timeout_ms);
    uint64_t number = net_call(r->config.net, address, RSM_METHOD_SNAP, &part,
                               1, o->timeout_ms, reply, arg);
    buf_free(&body);
    return number;
}

/* --- Questions and the manifest */

static bool is_todo(const struct rsm_outgoing *o, uint32_t piece)
{
    return (o->todo[piece / 8] >> piece % 8 & 1) != 0;
}

static uint64_t piece_size(const struct rsm_outgoing *o, uint32_t piece)
{
    return o->ends[piece] - (piece > 0 ? o->ends[piece - 1] : 0);
}

static void begin_pieces(struct rsm_outgoing *o, struct slice missing)
{
    size_t size = (o->count + 7) / 8;
    if (missing.size != size) {
        rsm_outgoing_finish(o, false);
        return;
    }
    o->todo = mem_resize(o->todo, size + 1);
    for (size_t i = 0; i < size; i++) {
        o->todo[i] = missing.data[i];
    }
    o->stored = 0;
    for (uint32_t i = 0; i < o->count; i++) {
        o->stored += is_todo(o, i) ? 0 : piece_size(o, i);
    }
    o->todo_from = 0;
    o->phase = RSM_OUT_PIECES;
    go_on(o);
}

/* The pieces may be those of the stream before; it is only shown. */
static void note_installed(struct rsm_outgoing *o,
                           const struct rsm_chunk_reply *m)
{
    uint64_t pieces = m->at < o->count ? m->at : o->count;
    o->installing = m->status == RSM_CHUNK_INSTALLING;
    o->installed = pieces > 0 ? o->ends[pieces - 1] : 0;
}

static void on_answer(struct rsm_outgoing *o, const struct rsm_chunk_reply *m)
{
    note_installed(o, m);
    switch ((enum rsm_chunk_status)m->status) {
    case RSM_CHUNK_DONE: rsm_outgoing_finish(o, true); return;
    case RSM_CHUNK_MORE:
        if (m->at >= o->manifest.size) {
            break;
        }
        o->manifest_at = m->at;
        o->phase = RSM_OUT_MANIFEST;
        go_on(o);
        return;
    case RSM_CHUNK_MISSING: begin_pieces(o, m->missing); return;
    case RSM_CHUNK_INSTALLING:
    case RSM_CHUNK_WAIT:
        /* It may take as long as it takes; the peer is there. */
        o->phase = RSM_OUT_ASKING;
        pause_after(o, ERR_OK);
        o->tries = 0;
        return;
    case RSM_CHUNK_STORED:
    case RSM_CHUNK_REFUSED: break;
    }
    rsm_outgoing_finish(o, false);
}

static void on_reply(void *arg, enum err rc, struct slice body)
{
    struct rsm_outgoing *o = arg;
    struct arena arena = {0};
    struct rsm_chunk_reply m;
    o->call = 0;
    if (rsm_stopped(o->rsm)) {
        return;
    }
    if (rc == ERR_OK) {
        rc = rsm_chunk_reply_decode(body, &arena, &m);
    }
    if (rc == ERR_OK) {
        heard(o, o->called_us);
        on_answer(o, &m);
    } else {
        pause_after(o, rc);
    }
    arena_free(&arena);
}

static void ask(struct rsm_outgoing *o)
{
    o->called_us = env_now_us(o->rsm->env);
    o->call = call(o, RSM_CHUNK_ASK, 0, slice_of(NULL, 0), on_reply, o);
}

static void send_manifest(struct rsm_outgoing *o)
{
    uint64_t left = o->manifest.size - o->manifest_at;
    struct slice part =
        slice_of(o->manifest.data + o->manifest_at,
                 left < RSM_MANIFEST_PART ? (size_t)left : RSM_MANIFEST_PART);
    o->called_us = env_now_us(o->rsm->env);
    o->call = call(o, RSM_CHUNK_MANIFEST, o->manifest_at, part, on_reply, o);
}

/* --- Pieces */

static bool is_on_its_way(const struct rsm_outgoing *o, uint32_t piece)
{
    for (uint32_t i = 0; i < RSM_WINDOW_COUNT; i++) {
        if (o->slots[i].used && o->slots[i].piece == piece) {
            return true;
        }
    }
    return false;
}

/* The next to be sent; `count` if there is none. */
static uint32_t next_piece(struct rsm_outgoing *o)
{
    while (o->todo_from < o->count && !is_todo(o, o->todo_from)) {
        o->todo_from++;
    }
    uint32_t piece = o->todo_from;
    while (piece < o->count &&
           (!is_todo(o, piece) || is_on_its_way(o, piece))) {
        piece++;
    }
    return piece;
}

static bool is_busy(const struct rsm *r)
{
    return r->waiting_count > 0 || r->reads_count > 0;
}

static void slot_free(struct rsm_slot *s)
{
    s->used = false;
    s->o->in_flight -= s->bytes.size;
    buf_free(&s->bytes);
}

static void piece_stored(struct rsm_slot *s)
{
    struct rsm_outgoing *o = s->o;
    struct rsm *r = o->rsm;
    o->stored += is_todo(o, s->piece) ? s->bytes.size : 0;
    o->todo[s->piece / 8] &= (uint8_t) ~(1u << s->piece % 8);
    o->window += s->bytes.size;
    o->window = o->window < RSM_WINDOW_SIZE ? o->window : RSM_WINDOW_SIZE;
    if (is_busy(r)) { /* 4 */
        uint64_t now_us = env_now_us(r->env);
        uint64_t at_us = now_us + (now_us - s->called_us);
        o->send_at_us = at_us > o->send_at_us ? at_us : o->send_at_us;
    }
    slot_free(s);
    go_on(o);
}

static void on_piece_reply(void *arg, enum err rc, struct slice body)
{
    struct rsm_slot *s = arg;
    struct rsm_outgoing *o = s->o;
    struct arena arena = {0};
    struct rsm_chunk_reply m = {0};
    s->call = 0;
    if (rsm_stopped(o->rsm)) {
        return;
    }
    if (rc == ERR_OK) {
        rc = rsm_chunk_reply_decode(body, &arena, &m);
    }
    arena_free(&arena);
    if (rc == ERR_OK && m.status == RSM_CHUNK_STORED) {
        heard(o, s->called_us);
        piece_stored(s);
        return;
    }
    slot_free(s);
    if (rc != ERR_OK) {
        pause_after(o, rc);
    } else if (m.status == RSM_CHUNK_REFUSED) {
        rsm_outgoing_finish(o, false);
    } else { /* it knows less or more than we thought */
        heard(o, s->called_us);
        o->phase = RSM_OUT_ASKING;
        pause_after(o, ERR_OK);
    }
}

static void pace(struct rsm_outgoing *o, size_t size)
{
    struct rsm *r = o->rsm;
    uint64_t now_us = env_now_us(r->env);
    uint64_t rate = r->config.snap_rate;
    if (rate > 0) {
        uint64_t from_us = o->send_at_us > now_us ? o->send_at_us : now_us;
        o->send_at_us = from_us + size * UINT64_C(1000000) / rate;
    }
}

static void run_read(struct env_job *job)
{
    struct rsm_slot *s = (struct rsm_slot *)job;
    struct rsm_outgoing *o = s->o;
    struct disk *disk = o->rsm->config.disk;
    uint64_t from = s->piece > 0 ? o->ends[s->piece - 1] : 0;
    s->rc = disk->ops->read(o->file, from, s->bytes.data, s->bytes.size);
}

static void on_read(struct env_job *job)
{
    struct rsm_slot *s = (struct rsm_slot *)job;
    struct rsm_outgoing *o = s->o;
    if (rsm_outgoing_came_back(o)) {
        return;
    }
    if (s->rc != ERR_OK) {
        log_warn("rsm", "cannot read a snapshot file: %s", err_text(s->rc));
        rsm_outgoing_finish(o, false);
        return;
    }
    o->rsm->snap_stats.pieces_sent++;
    o->rsm->snap_stats.bytes_sent += s->bytes.size;
    s->called_us = env_now_us(o->rsm->env);
    s->call = call(o, RSM_CHUNK_PIECE, s->piece, buf_slice(&s->bytes),
                   on_piece_reply, s);
}

static bool start_piece(struct rsm_outgoing *o, uint32_t piece)
{
    size_t size = (size_t)piece_size(o, piece);
    size_t window = is_busy(o->rsm) && o->window > RSM_WINDOW_BUSY
                        ? RSM_WINDOW_BUSY
                        : o->window;
    if (o->in_flight > 0 && o->in_flight + size > window) {
        return false;
    }
    for (uint32_t i = 0; i < RSM_WINDOW_COUNT; i++) {
        struct rsm_slot *s = &o->slots[i];
        if (!s->used) {
            s->used = true;
            s->o = o;
            s->piece = piece;
            buf_extend(&s->bytes, size);
            o->in_flight += size;
            pace(o, size);
            rsm_outgoing_submit(o, o->rsm->read_worker, &s->job, run_read,
                                on_read);
            return true;
        }
    }
    return false;
}

static void send_pieces(struct rsm_outgoing *o)
{
    uint32_t piece;
    while ((piece = next_piece(o)) < o->count) {
        uint64_t now_us = env_now_us(o->rsm->env);
        if (o->send_at_us > now_us) {
            env_timer_start(o->rsm->env, &o->timer, o->send_at_us - now_us);
            return;
        }
        if (!start_piece(o, piece)) {
            return;
        }
    }
    if (o->in_flight == 0) {
        o->phase = RSM_OUT_ASKING;
        ask(o);
    }
}

/* --- Turns */

static void go_on(struct rsm_outgoing *o)
{
    if (o->paused || o->stopped || o->call != 0) {
        return;
    }
    switch (o->phase) {
    case RSM_OUT_MAKING: break;
    case RSM_OUT_ASKING:
        if (o->in_flight == 0) {
            ask(o);
        }
        break;
    case RSM_OUT_MANIFEST: send_manifest(o); break;
    case RSM_OUT_PIECES: send_pieces(o); break;
    }
}

static void on_timer(struct env_timer *t)
{
    struct rsm_outgoing *o =
        (struct rsm_outgoing *)((char *)t -
                                offsetof(struct rsm_outgoing, timer));
    o->paused = false;
    go_on(o);
}

void rsm_outgoing_made(struct rsm_outgoing *o)
{
    o->phase = RSM_OUT_ASKING;
    o->heard_ms = env_now_ms(o->rsm->env);
    o->rsm->snap_stats.pieces += o->count;
    go_on(o);
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
    o->heard_ms = env_now_ms(r->env);
    o->label.index = r->submitted;
    o->rewinds = r->space.rewinds_seen;
    CHECK(raft_term_at(r->raft, o->label.index, &o->label.term));
    raft_conf_at(r->raft, o->label.index, &o->label.conf);
    snprintf(o->path, sizeof o->path, "snap/out-%" PRIx64, peer);
    o->next = r->outgoing;
    r->outgoing = o;
    r->snap_stats.streams++;
    log_info("rsm", "sending a snapshot group=%u to=%" PRIu64 " index=%" PRIu64,
             r->config.group, peer, o->label.index);
    rsm_outgoing_make(o);
}

/* --- All of them */

raft_index rsm_outgoing_oldest(const struct rsm *r, bool silent)
{
    raft_index oldest = UINT64_MAX;
    for (const struct rsm_outgoing *o = r->outgoing; o != NULL; o = o->next) {
        bool is_silent = o->tries >= RSM_CHUNK_PATIENCE;
        if (!o->stopped && is_silent == silent && o->label.index < oldest) {
            oldest = o->label.index;
        }
    }
    return oldest;
}

void rsm_outgoing_cut(struct rsm *r, raft_index index)
{
    struct rsm_outgoing *o = r->outgoing;
    while (o != NULL) {
        if (!o->stopped && o->label.index < index) {
            rsm_outgoing_finish(o, false); /* changes the list */
            o = r->outgoing;
        } else {
            o = o->next;
        }
    }
}

void rsm_outgoing_show(const struct rsm *r, struct rsm_member *m)
{
    const struct rsm_outgoing *o = r->outgoing;
    while (o != NULL && (o->peer != m->id || o->stopped)) {
        o = o->next;
    }
    if (o == NULL) {
        return;
    }
    m->snap_index = o->label.index;
    if (o->phase == RSM_OUT_MAKING) {
        m->snap_phase = RSM_SNAP_MAKING;
        m->snap_done = __atomic_load_n(&o->file_size, __ATOMIC_RELAXED);
        return;
    }
    m->snap_phase = o->installing ? RSM_SNAP_INSTALLING : RSM_SNAP_SENDING;
    m->snap_done = o->installing ? o->installed : o->stored;
    m->snap_all = o->file_size;
}

void rsm_outgoing_stop(struct rsm *r)
{
    struct rsm_outgoing *next = NULL;
    for (struct rsm_outgoing *o = r->outgoing; o != NULL; o = next) {
        next = o->next;
        end(o);
    }
}

void rsm_outgoing_close(struct rsm *r)
{
    while (r->outgoing != NULL) {
        struct rsm_outgoing *o = r->outgoing;
        r->outgoing = o->next;
        rsm_outgoing_release(o);
        rsm_outgoing_free(o);
    }
}

/* The bytes of one connection. Invariants:
 *
 *  1. Frames queued during one turn of the loop leave together: queueing only
 *     marks the connection, and the rpc flushes all marked ones just before the
 *     loop would sleep. One wake-up, few records, one write().
 *  2. Plaintext waits unencrypted; no more than RPC_WRITE_SIZE of it is
 *     encrypted ahead of what the kernel takes.
 *  3. Bodies given to handlers lie in `plain` or `in`, and neither changes
 *     until the handler has returned; or, if long and not come at once, in
 *     memory of their own, which is not ours to change once it was handled. */
#include "transport/rpc_int.h"

#include <string.h>
#include <utlist.h>

#include "base/check.h"

/* --- in --- */

static void read_where(uv_handle_t *handle, size_t hint, uv_buf_t *out)
{
    (void)hint;
    struct conn *conn = handle->data;
    *out = uv_buf_init((char *)conn->rpc->read_buffer, RPC_READ_SIZE);
}

/* The body of a long frame goes to memory of its own, which a handler can keep:
 * its beginning from what was decrypted before the header was seen. */
static void body_begin(struct conn *conn, const struct frame *f,
                       struct slice part)
{
    size_t ahead = f->size < RPC_AHEAD_SIZE ? f->size : RPC_AHEAD_SIZE;
    conn->frame = *f;
    conn->body = bytes_new(NET_ROOM_MAX + ahead);
    conn->body_got = part.size;
    if (part.size > 0) {
        memcpy(conn->body->data + NET_ROOM_MAX, part.data, part.size);
    }
}

/* A header alone does not make us take what it promises. */
static void body_grow(struct conn *conn)
{
    if (conn->body_got + NET_ROOM_MAX < conn->body->size) {
        return;
    }
    size_t size = 2 * conn->body_got;
    size = size < conn->frame.size ? size : conn->frame.size;
    struct bytes *more = bytes_new(NET_ROOM_MAX + size);
    memcpy(more->data + NET_ROOM_MAX, conn->body->data + NET_ROOM_MAX,
           conn->body_got);
    bytes_unref(conn->body);
    conn->body = more;
}

static void body_end(struct conn *conn)
{
    struct rpc *rpc = conn->rpc;
    struct bytes *body = conn->body;
    conn->body = NULL;
    rpc->body = body;
    rpc->stats.frames_in++;
    rpc_frame_in(conn, &conn->frame,
                 slice_of(body->data + NET_ROOM_MAX, conn->frame.size));
    rpc->body = NULL;
    bytes_unref(body);
}

/* Decrypts into the body. `*dry`: there is no more for now. */
static enum err body_read(struct conn *conn, bool *dry)
{
    size_t got = 0;
    body_grow(conn);
    size_t want = conn->body->size - NET_ROOM_MAX - conn->body_got;
    uint8_t *to = conn->body->data + NET_ROOM_MAX + conn->body_got;
    enum err rc = tls_read(conn->tls, to, want, &got);
    conn->body_got += got;
    *dry = got < want;
    if (conn->body_got == conn->frame.size) {
        body_end(conn);
    }
    return rc;
}

/* Handles the complete frames in `plain` from `at` on; returns where it
 * stopped. */
static size_t frames_parse(struct conn *conn, struct buf *plain, size_t at)
{
    while (conn->state == CONN_READY && plain->size - at >= FRAME_HEADER_SIZE) {
        struct frame f;
        enum err rc = frame_decode(&f, plain->data + at);
        if (rc != ERR_OK) {
            conn_close(conn, "bad frame: %s", err_text(rc));
            break;
        }
        const uint8_t *body = plain->data + at + FRAME_HEADER_SIZE;
        size_t left = plain->size - at - FRAME_HEADER_SIZE;
        if (left < f.size) {
            if (f.size >= RPC_APART_SIZE) {
                body_begin(conn, &f, slice_of(body, left));
                plain->size = at;
            }
            break;
        }
        at += FRAME_HEADER_SIZE + f.size;
        conn->rpc->stats.frames_in++;
        rpc_frame_in(conn, &f, slice_of(body, f.size));
    }
    return at;
}

/* Decrypts to the end of `plain`, and handles what is complete from `*at` on.
 */
static enum err plain_read(struct conn *conn, struct buf *plain, size_t *at,
                           bool *dry)
{
    size_t before = plain->size, got = 0;
    uint8_t *to = buf_extend(plain, RPC_PLAIN_SIZE);
    enum err rc = tls_read(conn->tls, to, RPC_PLAIN_SIZE, &got);
    plain->size = before + got;
    *dry = got < RPC_PLAIN_SIZE;
    if (conn->state == CONN_HANDSHAKE && tls_is_ready(conn->tls)) {
        conn_ready(conn);
    }
    *at = frames_parse(conn, plain, *at);
    if (*at == plain->size) {
        buf_clear(plain);
        *at = 0;
    }
    return rc;
}

/* Keeps in `in` what is behind the first `used` bytes of `plain`. */
static void rest_keep(struct conn *conn, struct buf *plain, size_t used)
{
    size_t rest = plain->size - used;
    if (plain != &conn->in) {
        buf_append(&conn->in, plain->data + used, rest);
        buf_clear(plain);
        return;
    }
    if (used > 0 && rest > 0) {
        memmove(plain->data, plain->data + used, rest);
    }
    plain->size = rest;
    if (rest == 0 && plain->capacity > RPC_KEEP_SIZE) {
        buf_free(plain);
    }
}

static void cipher_in(struct conn *conn, struct slice cipher)
{
    struct buf *plain = conn->in.size == 0 ? &conn->rpc->plain : &conn->in;
    size_t at = 0;
    bool dry = false;
    enum err rc = ERR_OK;
    tls_feed(conn->tls, cipher);
    /* What came before a failure is good, and is handled first. */
    while (rc == ERR_OK && !dry && conn->state != CONN_CLOSING) {
        rc = conn->body != NULL ? body_read(conn, &dry)
                                : plain_read(conn, plain, &at, &dry);
    }
    rest_keep(conn, plain, at);
    if (rc != ERR_OK) {
        conn_close(conn, "TLS: %s",
                   rc == ERR_CLOSED ? "closed" : tls_problem(conn->tls));
    } else if (tls_has_output(conn->tls)) {
        conn_mark_dirty(conn);
    }
}

static void read_came(uv_stream_t *stream, ssize_t size, const uv_buf_t *buffer)
{
    struct conn *conn = stream->data;
    if (size > 0) {
        conn->rpc->stats.bytes_in += (uint64_t)size;
        cipher_in(conn, slice_of(buffer->base, (size_t)size));
    } else if (size < 0) {
        conn_close(conn, "%s",
                   size == UV_EOF ? "the other side closed it"
                                  : uv_strerror((int)size));
    }
}

void conn_read_start(struct conn *conn)
{
    int rc = uv_read_start((uv_stream_t *)&conn->tcp, read_where, read_came);
    if (rc != 0) {
        conn_close(conn, "%s", uv_strerror(rc));
        return;
    }
    conn->reading = true;
}

/* Do we owe it answers to more than we want to hold? Its next request waits in
 * its own memory then, and who asks for little is not behind it. Another server
 * bounds what it asks by itself, and there is more than calls on its
 * connection. When all together are too many, only those are stopped that have
 * an answer to come, with which they are looked at again. */
static bool is_owed_much(const struct conn *conn)
{
    if (tls_peer(conn->tls)->role == NET_ROLE_SERVER) {
        return false;
    }
    return conn->request_size >= RPC_OWED_SIZE_MAX ||
           (conn->request_size >= RPC_OWED_SIZE_MIN &&
            conn->rpc->request_size >= RPC_OWED_ALL_MAX);
}

void conn_throttle(struct conn *conn)
{
    if (conn->state != CONN_READY || conn->peer != NULL) {
        return; /* what we called, we read: replies free memory */
    }
    size_t unsent = conn_unsent(conn);
    bool much = conn->request_count >= RPC_REQUESTS_MAX || is_owed_much(conn);
    if (conn->reading && (unsent > RPC_UNSENT_STOP_SIZE || much)) {
        uv_read_stop((uv_stream_t *)&conn->tcp);
        conn->reading = false;
    } else if (!conn->reading && unsent < RPC_UNSENT_GO_SIZE && !much) {
        conn_read_start(conn);
    }
}

/* --- out --- */

size_t conn_unsent(const struct conn *conn)
{
    return conn->queued.size + conn->sending.size +
           (conn->cipher.size - conn->cipher_at);
}

void conn_mark_dirty(struct conn *conn)
{
    if (!conn->dirty) {
        conn->dirty = true;
        DL_APPEND2(conn->rpc->dirty, conn, dirty_prev, dirty_next);
    }
}

/* Every frame leaves through here, and comes in through rpc_frame_in(): the two
 * places where a fault plan of a link belongs. */
void conn_frame_out(struct conn *conn, struct frame f,
                    const struct net_part *parts, uint32_t part_count)
{
    struct out *o = &conn->queued;
    f.size = 0;
    for (uint32_t i = 0; i < part_count; i++) {
        f.size += (uint32_t)parts[i].data.size;
    }
    CHECK(f.size <= NET_BODY_SIZE_MAX);
    frame_encode(out_bytes(o, FRAME_HEADER_SIZE), &f);
    for (uint32_t i = 0; i < part_count; i++) {
        struct slice data = parts[i].data;
        if (parts[i].owner != NULL && data.size >= RPC_REFER_SIZE) {
            out_refer(o, parts[i].owner, data);
        } else if (data.size > 0) {
            memcpy(out_bytes(o, data.size), data.data, data.size);
        }
    }
    conn->rpc->stats.frames_out++;
    if (conn->state == CONN_READY) {
        conn_mark_dirty(conn);
    }
}

static void buf_reset(struct buf *b)
{
    if (b->capacity > RPC_KEEP_SIZE) {
        buf_free(b);
    } else {
        buf_clear(b);
    }
}

/* Encrypts the next pieces. False when there is nothing to write. */
static bool cipher_fill(struct conn *conn)
{
    CHECK(conn->cipher.size == 0);
    if (conn->sending.size == 0) {
        out_clear(&conn->sending, RPC_KEEP_SIZE);
        struct out empty = conn->sending;
        conn->sending = conn->queued;
        conn->queued = empty;
    }
    size_t room = conn->state == CONN_READY ? RPC_WRITE_SIZE : 0;
    while (conn->sending.size > 0 && room >= OUT_RECORD_SIZE) {
        struct slice piece = out_next(&conn->sending, room, conn->rpc->record);
        if (tls_write(conn->tls, piece) != ERR_OK) {
            conn_close(conn, "TLS: cannot write");
            return false;
        }
        room -= piece.size;
    }
    tls_drain(conn->tls, &conn->cipher);
    return conn->cipher.size > 0;
}

static void cipher_sent(struct conn *conn, size_t size)
{
    conn->rpc->stats.bytes_out += size;
    conn->cipher_at += size;
    if (conn->cipher_at == conn->cipher.size) {
        conn->cipher_at = 0;
        if (conn->queued.size > 0 || conn->sending.size > 0) {
            buf_clear(&conn->cipher); /* used again at once */
        } else {
            buf_reset(&conn->cipher);
        }
    }
}

static void write_done(uv_write_t *write, int status)
{
    struct conn *conn = write->data;
    conn->writing = false;
    if (status != 0) {
        conn_close(conn, "%s", uv_strerror(status));
        return;
    }
    cipher_sent(conn, conn->cipher.size - conn->cipher_at);
    conn_flush(conn);
}

/* Writes `cipher`: what the kernel takes now, the rest when it can. */
static void cipher_write(struct conn *conn)
{
    uv_stream_t *stream = (uv_stream_t *)&conn->tcp;
    uv_buf_t all =
        uv_buf_init((char *)conn->cipher.data, (unsigned int)conn->cipher.size);
    int taken = uv_try_write(stream, &all, 1);
    if (taken < 0 && taken != UV_EAGAIN) {
        conn_close(conn, "%s", uv_strerror(taken));
        return;
    }
    cipher_sent(conn, taken > 0 ? (size_t)taken : 0);
    if (conn->cipher_at == conn->cipher.size) {
        return;
    }
    uv_buf_t rest =
        uv_buf_init((char *)conn->cipher.data + conn->cipher_at,
                    (unsigned int)(conn->cipher.size - conn->cipher_at));
    conn->write.data = conn;
    int rc = uv_write(&conn->write, stream, &rest, 1, write_done);
    if (rc != 0) {
        conn_close(conn, "%s", uv_strerror(rc));
        return;
    }
    conn->writing = true;
}

void conn_flush(struct conn *conn)
{
    bool open = conn->state == CONN_HANDSHAKE || conn->state == CONN_READY;
    while (open && !conn->writing && cipher_fill(conn)) {
        cipher_write(conn);
        open = conn->state != CONN_CLOSING;
    }
    conn_throttle(conn);
}

void conn_flow_free(struct conn *conn)
{
    buf_free(&conn->in);
    bytes_unref(conn->body);
    out_free(&conn->queued);
    out_free(&conn->sending);
    buf_free(&conn->cipher);
}

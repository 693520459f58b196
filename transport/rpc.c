/* The net over TLS: its public face. Invariants:
 *
 *  1. A call's reply function is called exactly once unless cancelled, and
 *     never from inside net_call(): every failure is a deadline with a verdict
 *     (calls.c), also those known at once.
 *  2. A net_request lives until net_reply(), whatever happens to its
 *     connection; the answer to a connection that has gone is thrown away.
 *  3. Calls go one way on a connection: from who dialled to who listened. A
 *     frame against that rule closes the connection. */
#include "transport/rpc_int.h"

#include <netinet/in.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "base/check.h"
#include "base/log.h"

enum { LISTEN_BACKLOG = 512 };

void rpc_complain(struct rpc *rpc, const char *format, ...)
{
    uint64_t now_s = env_now_us(rpc->env) / 1000000;
    if (now_s != rpc->complaint_window_s) {
        if (rpc->complaint_count > RPC_COMPLAINTS_PER_S) {
            log_info("transport", "%u more lines like these were left out",
                     rpc->complaint_count - RPC_COMPLAINTS_PER_S);
        }
        rpc->complaint_window_s = now_s;
        rpc->complaint_count = 0;
    }
    if (rpc->closing || ++rpc->complaint_count > RPC_COMPLAINTS_PER_S) {
        return;
    }
    char words[512];
    va_list args;
    va_start(args, format);
    vsnprintf(words, sizeof words, format, args);
    va_end(args);
    log_info("transport", "%s", words);
}

static struct rpc *rpc_of(struct net *net)
{
    return (struct rpc *)net;
}

static size_t parts_size(const struct net_part *parts, uint32_t part_count)
{
    size_t size = 0;
    for (uint32_t i = 0; i < part_count; i++) {
        if (parts[i].data.size > NET_BODY_SIZE_MAX) {
            return SIZE_MAX;
        }
        size += parts[i].data.size;
    }
    return size;
}

enum { PARTS_MAX = 8 }; /* of what is copied: callers have three */

static const struct net_part *to_copy(struct net_part to[PARTS_MAX],
                                      const struct slice *parts,
                                      uint32_t part_count)
{
    CHECK(part_count <= PARTS_MAX);
    for (uint32_t i = 0; i < part_count; i++) {
        to[i] = (struct net_part){.data = parts[i]};
    }
    return to;
}

/* --- calling --- */

static uint64_t rpc_refuse(struct rpc *rpc, enum err verdict,
                           net_reply_fn *reply, void *arg)
{
    return calls_add(&rpc->calls, NULL, verdict, RPC_REFUSAL_US, reply, arg);
}

static uint64_t rpc_call(struct net *net, const char *address,
                         net_method method, const struct slice *slices,
                         uint32_t part_count, uint32_t timeout_ms,
                         net_reply_fn *reply, void *arg)
{
    struct rpc *rpc = rpc_of(net);
    struct net_part some[PARTS_MAX];
    const struct net_part *parts = to_copy(some, slices, part_count);
    size_t size = parts_size(parts, part_count);
    if (size > NET_BODY_SIZE_MAX) {
        return rpc_refuse(rpc, ERR_TOOBIG, reply, arg);
    }
    struct rpc_peer *peer = peer_get(rpc, address);
    if (peer == NULL) {
        return rpc_refuse(rpc, ERR_INVALID, reply, arg);
    }
    struct conn *conn = rpc->closing ? NULL : peer_conn(rpc, peer);
    if (conn == NULL) {
        return rpc_refuse(rpc, ERR_CLOSED, reply, arg);
    }
    if (conn_unsent(conn) + size + FRAME_HEADER_SIZE > RPC_QUEUE_SIZE_MAX) {
        return rpc_refuse(rpc, ERR_BUSY, reply, arg);
    }
    uint64_t number = calls_add(&rpc->calls, conn, ERR_TIMEDOUT,
                                (uint64_t)timeout_ms * 1000, reply, arg);
    struct frame f = {.type = FRAME_CALL, .call = number, .method = method};
    conn_frame_out(conn, f, parts, part_count);
    return number;
}

static void rpc_cancel(struct net *net, uint64_t call)
{
    calls_cancel(&rpc_of(net)->calls, call);
}

static void rpc_send_parts(struct net *net, const char *address,
                           net_method method, const struct net_part *parts,
                           uint32_t part_count)
{
    struct rpc *rpc = rpc_of(net);
    size_t size = parts_size(parts, part_count);
    struct rpc_peer *peer = peer_get(rpc, address);
    if (size > NET_BODY_SIZE_MAX || peer == NULL || rpc->closing) {
        return;
    }
    struct conn *conn = peer_conn(rpc, peer);
    if (conn == NULL) {
        return;
    }
    /* What waits for a connection is stale when it is there: keep little. */
    size_t bound =
        conn->state == CONN_READY ? RPC_QUEUE_SIZE_MAX : RPC_EARLY_SIZE_MAX;
    if (conn_unsent(conn) + size + FRAME_HEADER_SIZE > bound) {
        return;
    }
    struct frame f = {.type = FRAME_SEND, .method = method};
    conn_frame_out(conn, f, parts, part_count);
}

static void rpc_send(struct net *net, const char *address, net_method method,
                     const struct slice *slices, uint32_t part_count)
{
    struct net_part some[PARTS_MAX];
    rpc_send_parts(net, address, method, to_copy(some, slices, part_count),
                   part_count);
}

static size_t rpc_queued(struct net *net, const char *address)
{
    struct rpc_peer *peer;
    HASH_FIND_STR(rpc_of(net)->peers, address, peer);
    return peer == NULL || peer->conn == NULL ? 0 : conn_unsent(peer->conn);
}

/* --- serving --- */

static struct bytes *rpc_keep(struct net *net, struct slice body, size_t room)
{
    struct bytes *whole = rpc_of(net)->body;
    if (whole == NULL) {
        return NULL;
    }
    rpc_of(net)->body = NULL; /* once: the room before it has one owner */
    CHECK(room <= NET_ROOM_MAX && body.data == whole->data + NET_ROOM_MAX);
    return bytes_part(whole, slice_of(body.data - room, body.size + room));
}

static struct net_request *request_new(struct conn *conn, const struct frame *f)
{
    struct net_request *r = mem_alloc(sizeof *r);
    r->rpc = conn->rpc;
    r->conn = conn;
    r->call = f->call;
    r->method = f->method;
    r->size = f->size;
    DL_APPEND(conn->requests, r);
    conn->request_count++;
    conn->request_size += r->size;
    conn->rpc->request_size += r->size;
    return r;
}

/* Whoever handled the call decided; who called is known here. */
static void complain_denied(const struct net_request *r)
{
    static const char *const roles[] = {
        [NET_ROLE_NONE] = "nobody",
        [NET_ROLE_CLIENT] = "client",
        [NET_ROLE_SERVER] = "server",
        [NET_ROLE_ADMIN] = "admin",
    };
    const struct net_peer *peer = tls_peer(r->conn->tls);
    rpc_complain(r->rpc,
                 "refused a call that its certificate does not allow "
                 "method=0x%02x from=%s name=%s role=%s group=%u",
                 r->method, r->conn->remote, peer->name, roles[peer->role],
                 peer->group);
}

static void rpc_reply(struct net_request *r, enum err rc,
                      const struct slice *slices, uint32_t part_count)
{
    struct conn *conn = r->conn;
    struct net_part some[PARTS_MAX];
    const struct net_part *parts = to_copy(some, slices, part_count);
    uint64_t call = r->call;
    r->rpc->request_size -= r->size;
    if (conn == NULL) {
        DL_DELETE(r->rpc->orphans, r);
        mem_free(r);
        return;
    }
    if (rc == ERR_DENIED && conn->state == CONN_READY) {
        complain_denied(r);
    }
    DL_DELETE(conn->requests, r);
    conn->request_count--;
    conn->request_size -= r->size;
    mem_free(r);
    if (conn->state != CONN_READY) {
        return;
    }
    size_t size = parts_size(parts, part_count);
    if (rc == ERR_OK && size > NET_BODY_SIZE_MAX) {
        rc = ERR_TOOBIG;
    } else if (rc == ERR_OK && conn_unsent(conn) + size > RPC_QUEUE_SIZE_MAX) {
        rc = ERR_BUSY; /* they ask for more than they read */
    }
    struct frame f = {.type = FRAME_REPLY, .call = call, .rc = (uint16_t)rc};
    conn_frame_out(conn, f, parts, rc == ERR_OK ? part_count : 0);
}

static void call_in(struct conn *conn, const struct frame *f, struct slice body)
{
    struct rpc *rpc = conn->rpc;
    struct net_request *r = request_new(conn, f);
    if (f->method <= NET_METHOD_TRANSPORT) {
        rpc_reply(r, ERR_INVALID, NULL, 0); /* a later version's, perhaps */
    } else if (rpc->net.handler == NULL) {
        rpc_reply(r, ERR_CLOSED, NULL, 0); /* another server may serve it */
    } else {
        rpc->net.handler(rpc->net.handler_arg, r, tls_peer(conn->tls),
                         f->method, body);
    }
    conn_throttle(conn);
}

static void send_in(struct conn *conn, const struct frame *f, struct slice body)
{
    struct rpc *rpc = conn->rpc;
    if (conn->peer != NULL) {
        conn->greeted |= f->method == NET_METHOD_HELLO;
    } else if (f->method > NET_METHOD_TRANSPORT && rpc->net.handler != NULL) {
        rpc->net.handler(rpc->net.handler_arg, NULL, tls_peer(conn->tls),
                         f->method, body);
    }
}

static void reply_in(struct conn *conn, const struct frame *f,
                     struct slice body)
{
    struct rpc *rpc = conn->rpc;
    struct call *call = calls_find(&rpc->calls, f->call);
    /* None: it timed out or was cancelled. Another's: it does not answer for
     * that server. */
    if (call != NULL && call->conn == conn) {
        calls_answer(&rpc->calls, call, err_from_wire(f->rc), body);
    }
}

void rpc_frame_in(struct conn *conn, const struct frame *f, struct slice body)
{
    bool is_incoming = conn->peer == NULL;
    switch (f->type) {
    case FRAME_CALL:
        if (is_incoming) {
            call_in(conn, f, body);
            return;
        }
        break;
    case FRAME_REPLY:
        if (!is_incoming) {
            reply_in(conn, f, body);
            return;
        }
        break;
    case FRAME_SEND: send_in(conn, f, body); return;
    }
    conn_close(conn, "a frame of type %d goes the wrong way", (int)f->type);
}

/* --- listening --- */

static void connection_came(uv_stream_t *server, int status)
{
    struct listener *l = server->data;
    if (status != 0) {
        rpc_complain(l->rpc, "cannot accept a connection: %s",
                     uv_strerror(status));
        return;
    }
    conn_accept(l->rpc, server);
}

static void listener_closed(uv_handle_t *handle)
{
    struct listener *l = handle->data;
    l->rpc->open_count--;
    mem_free(l);
}

static int listener_open(struct listener *l, const char *host, const char *port)
{
    struct addrinfo want = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    uv_getaddrinfo_t resolve;
    /* Without a callback it waits: this happens once, at the start. */
    int rc = uv_getaddrinfo(l->rpc->uv, &resolve, NULL, host, port, &want);
    if (rc != 0) {
        return rc;
    }
    rc = uv_tcp_bind(&l->tcp, resolve.addrinfo->ai_addr, 0);
    uv_freeaddrinfo(resolve.addrinfo);
    if (rc != 0) {
        return rc;
    }
    return uv_listen((uv_stream_t *)&l->tcp, LISTEN_BACKLOG, connection_came);
}

enum err rpc_listen(struct rpc *rpc, const char *address)
{
    char host[NET_ADDRESS_SIZE_MAX], port[6];
    enum err rc = address_split(address, host, port);
    if (rc != ERR_OK) {
        return rc;
    }
    struct listener *l = mem_alloc(sizeof *l);
    l->rpc = rpc;
    CHECK(uv_tcp_init(rpc->uv, &l->tcp) == 0);
    l->tcp.data = l;
    rpc->open_count++;
    int error = listener_open(l, host, port);
    if (error != 0) {
        uv_close((uv_handle_t *)&l->tcp, listener_closed);
        log_error("transport", "cannot listen at %s: %s", address,
                  uv_strerror(error));
        return error == UV_EADDRINUSE ? ERR_EXISTS : err_from_errno(-error);
    }
    LL_PREPEND(rpc->listeners, l);
    return ERR_OK;
}

uint16_t rpc_port(const struct rpc *rpc)
{
    struct sockaddr_storage at;
    int size = sizeof at;
    if (rpc->listeners == NULL ||
        uv_tcp_getsockname(&rpc->listeners->tcp, (struct sockaddr *)&at,
                           &size) != 0) {
        return 0;
    }
    return ntohs(((const struct sockaddr_in *)&at)->sin_port);
}

/* --- life --- */

static const struct net_ops rpc_ops = {
    .call = rpc_call,
    .cancel = rpc_cancel,
    .send = rpc_send,
    .reply = rpc_reply,
    .queued = rpc_queued,
    .send_parts = rpc_send_parts,
    .keep = rpc_keep,
};

static void flush_dirty(uv_prepare_t *prepare)
{
    struct rpc *rpc = prepare->data;
    while (rpc->dirty != NULL) {
        struct conn *conn = rpc->dirty;
        DL_DELETE2(rpc->dirty, conn, dirty_prev, dirty_next);
        conn->dirty = false;
        conn_flush(conn);
    }
}

enum err rpc_new(struct net_loop *loop, struct tls_context *context,
                 struct rpc **out)
{
    struct rpc *rpc = mem_alloc(sizeof *rpc);
    rpc->net.ops = &rpc_ops;
    rpc->uv = &loop->uv;
    rpc->env = net_loop_env(loop);
    rpc->context = context;
    calls_init(&rpc->calls, rpc->env);
    rpc->read_buffer = mem_alloc(RPC_READ_SIZE);
    rpc->record = mem_alloc(OUT_RECORD_SIZE);
    CHECK(uv_prepare_init(rpc->uv, &rpc->prepare) == 0);
    rpc->prepare.data = rpc;
    CHECK(uv_prepare_start(&rpc->prepare, flush_dirty) == 0);
    rpc->open_count = 1;
    *out = rpc;
    return ERR_OK;
}

static void prepare_closed(uv_handle_t *handle)
{
    struct rpc *rpc = handle->data;
    rpc->open_count--;
}

static void close_all(struct rpc *rpc)
{
    struct conn *conn;
    DL_FOREACH(rpc->conns, conn)
    {
        conn_close(conn, "we are closing");
    }
    while (rpc->listeners != NULL) {
        struct listener *l = rpc->listeners;
        LL_DELETE(rpc->listeners, l);
        uv_close((uv_handle_t *)&l->tcp, listener_closed);
    }
    uv_close((uv_handle_t *)&rpc->prepare, prepare_closed);
}

/* Refused calls still wait for their deadlines: tell them now. Only those that
 * are there now: a caller that retries from its reply function would else keep
 * us here for ever. */
static void calls_refuse_rest(struct rpc *rpc)
{
    struct calls *calls = &rpc->calls;
    uint64_t number_last = calls->number_last;
    /* The hash keeps the order in which calls were added. */
    while (calls->by_number != NULL &&
           calls->by_number->number <= number_last) {
        calls_answer(calls, calls->by_number, ERR_CLOSED, slice_of(NULL, 0));
    }
}

void rpc_free(struct rpc *rpc)
{
    if (rpc == NULL) {
        return;
    }
    rpc->closing = true;
    close_all(rpc);
    while (rpc->open_count > 0) {
        uv_run(rpc->uv, UV_RUN_ONCE);
    }
    calls_refuse_rest(rpc);
    calls_free(&rpc->calls);
    struct net_request *r, *next;
    DL_FOREACH_SAFE(rpc->orphans, r, next)
    {
        mem_free(r);
    }
    peers_free(rpc);
    buf_free(&rpc->plain);
    mem_free(rpc->read_buffer);
    mem_free(rpc->record);
    mem_free(rpc);
}

struct net *rpc_net(struct rpc *rpc)
{
    return &rpc->net;
}

void rpc_stats(const struct rpc *rpc, struct rpc_stats *stats)
{
    *stats = rpc->stats;
    stats->connections = rpc->conn_count;
}

/* The life of one connection: connect or accept, handshake, ready, close.
 * Invariants:
 *
 *  1. The state moves only along `moves` below.
 *  2. conn_close() may be called from anywhere; calls, requests and the down
 *     hook hear of it only in conn_release(), which libuv calls from the loop.
 *  3. The memory goes when libuv holds none of its handles and requests. */
#include "transport/rpc_int.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <utlist.h>

#include "base/check.h"

enum { KEEPALIVE_S = 5 };

// clang-format off
static const bool moves[5][5] = {
    [CONN_RESOLVING]  = {[CONN_CONNECTING] = true, [CONN_CLOSING] = true},
    [CONN_CONNECTING] = {[CONN_HANDSHAKE] = true,  [CONN_CLOSING] = true},
    [CONN_HANDSHAKE]  = {[CONN_READY] = true,      [CONN_CLOSING] = true},
    [CONN_READY]      = {[CONN_CLOSING] = true},
    [CONN_CLOSING]    = {false},
};
// clang-format on

static void conn_move(struct conn *conn, enum conn_state to)
{
    CHECK(moves[conn->state][to]);
    conn->state = to;
}

/* --- the end --- */

static void requests_orphan(struct conn *conn)
{
    struct net_request *r;
    DL_FOREACH(conn->requests, r)
    {
        r->conn = NULL;
    }
    DL_CONCAT(conn->rpc->orphans, conn->requests);
    conn->requests = NULL;
}

static void conn_end(struct conn *conn)
{
    struct rpc *rpc = conn->rpc;
    DL_DELETE(rpc->conns, conn);
    rpc->conn_count--;
    if (conn->dirty) {
        DL_DELETE2(rpc->dirty, conn, dirty_prev, dirty_next);
    }
    requests_orphan(conn);
    calls_fail_all(&rpc->calls, conn);
    if (conn->peer == NULL) {
        rpc->incoming_count--;
    } else if (rpc->net.down != NULL && !rpc->closing) {
        rpc->net.down(rpc->net.down_arg, conn->remote);
    }
    conn_flow_free(conn);
    tls_free(conn->tls);
    mem_free(conn);
}

/* Libuv let go of one of the handles and requests that `open_count` counts. */
static void conn_release(struct conn *conn)
{
    struct rpc *rpc = conn->rpc;
    if (--conn->open_count == 0) {
        conn_end(conn);
    }
    rpc->open_count--;
}

static void conn_hold(struct conn *conn)
{
    conn->open_count++;
    conn->rpc->open_count++;
}

static void tcp_closed(uv_handle_t *handle)
{
    conn_release(handle->data);
}

/* The alert that tells the other side why. Best effort. */
static void conn_say_why(struct conn *conn)
{
    if (conn->tls == NULL || conn->writing ||
        conn->cipher.size > conn->cipher_at) {
        return; /* it would land in the middle of a record */
    }
    buf_clear(&conn->cipher);
    tls_drain(conn->tls, &conn->cipher);
    uv_buf_t last =
        uv_buf_init((char *)conn->cipher.data, (unsigned int)conn->cipher.size);
    if (last.len > 0) {
        (void)uv_try_write((uv_stream_t *)&conn->tcp, &last, 1);
    }
}

void conn_close(struct conn *conn, const char *format, ...)
{
    if (conn->state == CONN_CLOSING) {
        return;
    }
    va_list args;
    va_start(args, format);
    vsnprintf(conn->reason, sizeof conn->reason, format, args);
    va_end(args);

    conn_say_why(conn);
    if (conn->state == CONN_RESOLVING) {
        uv_cancel((uv_req_t *)&conn->resolve);
    }
    conn_move(conn, CONN_CLOSING);
    env_timer_stop(conn->rpc->env, &conn->handshake_timer);
    if (conn->peer != NULL) {
        peer_conn_lost(conn->rpc, conn);
    } else {
        rpc_complain(conn->rpc, "connection from %s closed: %s", conn->remote,
                     conn->reason);
    }
    uv_close((uv_handle_t *)&conn->tcp, tcp_closed);
}

/* --- the beginning --- */

static void handshake_late(struct env_timer *timer)
{
    struct conn *conn =
        (struct conn *)((char *)timer - offsetof(struct conn, handshake_timer));
    conn_close(conn, "no connection within %d ms", RPC_HANDSHAKE_US / 1000);
}

static struct conn *conn_new(struct rpc *rpc, struct rpc_peer *peer)
{
    struct conn *conn = mem_alloc(sizeof *conn);
    conn->rpc = rpc;
    conn->peer = peer;
    conn->state = peer != NULL ? CONN_RESOLVING : CONN_CONNECTING;
    conn->since_us = env_now_us(rpc->env);
    CHECK(uv_tcp_init(rpc->uv, &conn->tcp) == 0);
    conn->tcp.data = conn;
    conn_hold(conn);
    DL_APPEND(rpc->conns, conn);
    rpc->conn_count++;
    conn->handshake_timer.fire = handshake_late;
    env_timer_start(rpc->env, &conn->handshake_timer, RPC_HANDSHAKE_US);
    return conn;
}

/* A host that dies without a word must not hold calls for a quarter of an
 * hour, which is what TCP does by default. */
static void set_socket_options(struct conn *conn)
{
    uv_tcp_nodelay(&conn->tcp, 1);
    uv_tcp_keepalive(&conn->tcp, 1, KEEPALIVE_S);
    uv_os_fd_t fd;
    unsigned int dead_ms = RPC_DEAD_PEER_MS;
    if (uv_fileno((uv_handle_t *)&conn->tcp, &fd) == 0) {
        (void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &dead_ms,
                         sizeof dead_ms);
    }
}

static void conn_handshake(struct conn *conn)
{
    conn_move(conn, CONN_HANDSHAKE);
    set_socket_options(conn);
    bool is_server = conn->peer == NULL;
    conn->tls = tls_new(conn->rpc->context, is_server,
                        is_server ? NULL : conn->peer->host);
    conn_read_start(conn);
    if (!is_server && conn->state == CONN_HANDSHAKE) {
        /* Nothing has come; this makes the client's first message. */
        uint8_t none;
        size_t got = 0;
        enum err rc = tls_read(conn->tls, &none, sizeof none, &got);
        CHECK(rc == ERR_OK && got == 0);
        conn_mark_dirty(conn);
    }
}

void conn_ready(struct conn *conn)
{
    conn_move(conn, CONN_READY);
    env_timer_stop(conn->rpc->env, &conn->handshake_timer);
    if (conn->peer == NULL) {
        struct frame hello = {.type = FRAME_SEND, .method = NET_METHOD_HELLO};
        conn_frame_out(conn, hello, NULL, 0);
    }
    conn_mark_dirty(conn);
}

static void connected(uv_connect_t *connect, int status)
{
    struct conn *conn = connect->data;
    if (conn->state == CONN_CLOSING) {
        return;
    }
    if (status != 0) {
        conn_close(conn, "%s", uv_strerror(status));
        return;
    }
    conn_handshake(conn);
}

static void conn_connect(struct conn *conn, const struct sockaddr *to)
{
    conn_move(conn, CONN_CONNECTING);
    conn->connect.data = conn;
    int rc = uv_tcp_connect(&conn->connect, &conn->tcp, to, connected);
    if (rc != 0) {
        conn_close(conn, "%s", uv_strerror(rc));
    }
}

static void resolved(uv_getaddrinfo_t *resolve, int status,
                     struct addrinfo *found)
{
    struct conn *conn = resolve->data;
    if (conn->state != CONN_CLOSING) {
        if (status != 0) {
            conn_close(conn, "cannot find its address: %s",
                       uv_strerror(status));
        } else {
            conn_connect(conn, found->ai_addr);
        }
    }
    uv_freeaddrinfo(found);
    conn_release(conn);
}

/* Numbers resolve at once; names on one of libuv's threads. */
static void conn_resolve(struct conn *conn)
{
    const struct rpc_peer *peer = conn->peer;
    int port = atoi(peer->port);
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    if (uv_ip4_addr(peer->host, port, &v4) == 0) {
        conn_connect(conn, (const struct sockaddr *)&v4);
        return;
    }
    if (uv_ip6_addr(peer->host, port, &v6) == 0) {
        conn_connect(conn, (const struct sockaddr *)&v6);
        return;
    }
    struct addrinfo want = {.ai_socktype = SOCK_STREAM};
    conn->resolve.data = conn;
    int rc = uv_getaddrinfo(conn->rpc->uv, &conn->resolve, resolved, peer->host,
                            peer->port, &want);
    if (rc != 0) {
        conn_close(conn, "cannot find its address: %s", uv_strerror(rc));
        return;
    }
    conn_hold(conn);
}

struct conn *conn_dial(struct rpc *rpc, struct rpc_peer *peer)
{
    struct conn *conn = conn_new(rpc, peer);
    snprintf(conn->remote, sizeof conn->remote, "%s", peer->address);
    conn_resolve(conn);
    return conn->state == CONN_CLOSING ? NULL : conn;
}

static void remote_name(struct conn *conn)
{
    struct sockaddr_storage from;
    int size = sizeof from;
    char host[INET6_ADDRSTRLEN] = "?";
    if (uv_tcp_getpeername(&conn->tcp, (struct sockaddr *)&from, &size) == 0) {
        uv_ip_name((const struct sockaddr *)&from, host, sizeof host);
    }
    /* sin_port and sin6_port are at the same place. */
    uint16_t port = ((const struct sockaddr_in *)&from)->sin_port;
    snprintf(conn->remote, sizeof conn->remote, "%s:%u", host, ntohs(port));
}

void conn_accept(struct rpc *rpc, uv_stream_t *server)
{
    struct conn *conn = conn_new(rpc, NULL);
    rpc->incoming_count++;
    int rc = uv_accept(server, (uv_stream_t *)&conn->tcp);
    if (rc != 0) {
        conn_close(conn, "accept: %s", uv_strerror(rc));
        return;
    }
    remote_name(conn);
    if (rpc->incoming_count > RPC_INCOMING_MAX) {
        conn_close(conn, "there are %d connections already", RPC_INCOMING_MAX);
        return;
    }
    conn_handshake(conn);
}

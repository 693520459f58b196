/* The insides of the net over TLS. Everything belongs to the loop's thread.
 *
 *   rpc.c    the public face: serving, replying, what a frame means
 *   peers.c  one outgoing connection per address, and its pauses
 *   calls.c  calls that wait for a reply, and their deadlines
 *   conn.c   one TCP connection under TLS: from connect to close
 *   flow.c   its bytes: reading, parsing, queueing, writing, bounds
 *   out.c    what waits to be encrypted
 *   frame.c  headers as bytes */
#ifndef TRANSPORT_RPC_INT_H
#define TRANSPORT_RPC_INT_H

#include <stdbool.h>
#include <uthash.h>
#include <uv.h>

#include "transport/frame_int.h"
#include "transport/loop_int.h"
#include "transport/rpc.h"

enum {
    RPC_INCOMING_MAX = 1024,            /* connections we accept */
    RPC_PEERS_MAX = 4096,               /* addresses we remember */
    RPC_QUEUE_SIZE_MAX = 64 << 20,      /* unsent bytes of a connection */
    RPC_EARLY_SIZE_MAX = 256 << 10,     /* one-way bytes before it is ready */
    RPC_UNSENT_STOP_SIZE = 32 << 20,    /* stop reading from who does not */
    RPC_UNSENT_GO_SIZE = 16 << 20,      /* ... and go on below this */
    RPC_REQUESTS_MAX = 16384,           /* unanswered, per connection */
    RPC_OWED_SIZE_MAX = 16 << 20,       /* ... bytes of them, of a client */
    RPC_OWED_ALL_MAX = 64 << 20,        /* of all together; beyond it each */
    RPC_OWED_SIZE_MIN = 256 << 10,      /* may still have this much */
    RPC_HANDSHAKE_US = 5 * 1000 * 1000, /* from connect to ready */
    RPC_REFUSAL_US = 10 * 1000,         /* a failed call takes this long, so */
                                        /* a caller that retries never spins */
    RPC_DEAD_PEER_MS = 15 * 1000,       /* unacknowledged this long: broken */
    RPC_READ_SIZE = 256 << 10,          /* one read() */
    RPC_PLAIN_SIZE = 16 << 10,          /* decrypted before it is looked at */
    RPC_APART_SIZE = 16 << 10,          /* a longer body has its own memory */
    RPC_AHEAD_SIZE = 2 << 20,           /* of which so much is taken ahead, */
                                        /* or as much again as has come */
    RPC_WRITE_SIZE = 128 << 10,         /* plaintext encrypted in one go */
    RPC_REFER_SIZE = 2 << 10,           /* a longer part is not copied, */
                                        /* if it has an owner */
    RPC_KEEP_SIZE = 64 << 10,           /* an idle buffer larger is freed */
    RPC_COMPLAINTS_PER_S = 5,           /* log lines that strangers can cause */
};

enum { OUT_RECORD_SIZE = 16 << 10 };
_Static_assert(RPC_WRITE_SIZE % OUT_RECORD_SIZE == 0, "whole records");

/* The transport's own methods. */
enum {
    NET_METHOD_HELLO = 0x01,     /* server to client, first: you are accepted */
    NET_METHOD_TRANSPORT = 0x0f, /* the last of them */
};

/*  RESOLVING -> CONNECTING -> HANDSHAKE -> READY -> CLOSING
 *  Each may also go to CLOSING; an accepted one begins at HANDSHAKE. */
enum conn_state {
    CONN_RESOLVING,
    CONN_CONNECTING,
    CONN_HANDSHAKE,
    CONN_READY,
    CONN_CLOSING,
};

struct call {
    uint64_t number;
    struct conn *conn; /* NULL: it was refused, and waits to hear so */
    enum err verdict;  /* what the caller gets when the deadline comes */
    uint64_t deadline_us;
    size_t heap_index;
    net_reply_fn *reply;
    void *arg;
    struct call *prev, *next; /* of the connection */
    UT_hash_handle hh;        /* by number */
};

struct calls {
    struct env *env;
    struct call *by_number;
    struct call **heap; /* the nearest deadline first */
    size_t heap_count;
    size_t heap_capacity;
    struct env_timer timer;
    uint64_t timer_due_us; /* UINT64_MAX when not running */
    uint64_t number_last;
};

struct net_request {
    struct rpc *rpc;
    struct conn *conn; /* NULL when the connection has gone */
    uint64_t call;
    net_method method;
    size_t size;                     /* of its body */
    struct net_request *prev, *next; /* of the connection, or orphans */
};

/* An address that was dialled. */
struct rpc_peer {
    char address[NET_ADDRESS_SIZE_MAX];
    char host[NET_ADDRESS_SIZE_MAX];
    char port[6];
    struct conn *conn; /* NULL when there is none, or it is closing */
    uint32_t failures; /* in a row */
    uint64_t pause_until_us;
    UT_hash_handle hh;
};

/* Plaintext on its way out (out.c). */
struct out_part {
    struct bytes *owner; /* NULL: the next `size` of `bytes` */
    const uint8_t *data;
    size_t size;
};

struct out {
    struct buf bytes;
    size_t bytes_at; /* what is before it was used up */
    struct out_part *parts;
    uint32_t first, count, capacity; /* likewise before `first` */
    size_t size;                     /* that is left */
};

struct conn {
    struct rpc *rpc;
    struct rpc_peer *peer; /* NULL: they called us; dangles once CLOSING */
    enum conn_state state;
    bool greeted; /* outgoing: the server's hello has come */
    uint64_t since_us;
    char remote[NET_ADDRESS_SIZE_MAX]; /* for logs */
    char reason[256];                  /* why it closes */

    uv_tcp_t tcp;
    uv_getaddrinfo_t resolve;
    uv_connect_t connect;
    uv_write_t write;
    uint32_t open_count; /* handles and requests libuv still holds */
    struct env_timer handshake_timer;

    struct tls *tls;
    struct buf in; /* plaintext of a frame that is not complete */
    /* Or of one with a long body: NET_ROOM_MAX bytes, then the body. */
    struct frame frame;
    struct bytes *body;
    size_t body_got;
    bool reading;

    /* Out: frames are appended to `queued`; when `sending` is used up the two
     * change places; pieces of it are encrypted into `cipher`. */
    struct out queued;
    struct out sending;
    struct buf cipher;
    size_t cipher_at;
    bool writing; /* libuv holds `cipher` */

    bool dirty; /* in the rpc's list of those to flush */
    struct conn *dirty_prev, *dirty_next;
    struct conn *prev, *next; /* all of the rpc */

    struct call *calls;           /* outgoing: wait for a reply from here */
    struct net_request *requests; /* incoming: wait for a reply by us */
    uint32_t request_count;
    size_t request_size; /* of their bodies */
};

struct listener {
    struct rpc *rpc;
    uv_tcp_t tcp;
    struct listener *next;
};

struct rpc {
    struct net net; /* first: the net that is handed out is the rpc itself */
    uv_loop_t *uv;
    struct env *env;
    struct tls_context *context;
    struct rpc_peer *peers; /* by address */
    struct calls calls;
    struct conn *conns;
    struct conn *dirty;
    struct listener *listeners;
    struct net_request *orphans; /* their connections have gone */
    uint32_t conn_count;
    uint32_t incoming_count;
    uint32_t open_count; /* handles that libuv still holds */
    size_t request_size; /* of the bodies of all unanswered requests */
    bool closing;
    uv_prepare_t prepare; /* flushes, once per turn of the loop */
    uint8_t *read_buffer; /* one for all: a read is used up before the next */
    uint8_t *record;      /* likewise: one that is put together */
    struct buf plain;     /* likewise */
    struct bytes *body;   /* of the frame that is being handled, if long */
    struct rpc_stats stats;
    uint64_t complaint_window_s;
    uint32_t complaint_count;
};

/* --- rpc.c --- */
/* `body` lies behind NET_ROOM_MAX other bytes in rpc->body, if there is one. */
void rpc_frame_in(struct conn *conn, const struct frame *f, struct slice body);
/* A line in the log that a stranger could cause: at a bounded rate. */
void rpc_complain(struct rpc *rpc, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* --- peers.c --- */
/* The peer of an address; NULL when it is malformed or there are too many. */
struct rpc_peer *peer_get(struct rpc *rpc, const char *address);
/* Its connection, begun now if need be; NULL during the pause that follows a
 * failure. */
struct conn *peer_conn(struct rpc *rpc, struct rpc_peer *peer);
void peer_conn_lost(struct rpc *rpc, struct conn *conn);
void peers_free(struct rpc *rpc);
MUST_USE enum err address_split(const char *address,
                                char host[NET_ADDRESS_SIZE_MAX], char port[6]);

/* --- calls.c --- */
void calls_init(struct calls *calls, struct env *env);
void calls_free(struct calls *calls); /* forgets what is left */
/* With `conn` NULL the caller hears `verdict` after `delay_us`. */
uint64_t calls_add(struct calls *calls, struct conn *conn, enum err verdict,
                   uint64_t delay_us, net_reply_fn *reply, void *arg);
struct call *calls_find(struct calls *calls, uint64_t number);
void calls_cancel(struct calls *calls, uint64_t number);
void calls_answer(struct calls *calls, struct call *call, enum err rc,
                  struct slice body);
void calls_fail_all(struct calls *calls, struct conn *conn);

/* --- conn.c --- */
struct conn *conn_dial(struct rpc *rpc, struct rpc_peer *peer);
void conn_accept(struct rpc *rpc, uv_stream_t *server);
/* Ends the connection; what hangs on it hears so from the loop, not from
 * inside. Does nothing when it is ending already. */
void conn_close(struct conn *conn, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void conn_ready(struct conn *conn);

/* --- out.c --- */
uint8_t *out_bytes(struct out *o, size_t size); /* to be filled */
void out_refer(struct out *o, struct bytes *owner, struct slice data);
/* What comes next, whole records as long as there is enough for one: good until
 * the next call. `record`: memory to put one together. */
struct slice out_next(struct out *o, size_t size_max,
                      uint8_t record[OUT_RECORD_SIZE]);
void out_clear(struct out *o, size_t keep_size); /* one that is used up */
void out_free(struct out *o);

/* --- flow.c --- */
void conn_read_start(struct conn *conn);
/* Queues a frame; the caller has looked at conn_unsent(). */
void conn_frame_out(struct conn *conn, struct frame f,
                    const struct net_part *parts, uint32_t part_count);
size_t conn_unsent(const struct conn *conn);
void conn_mark_dirty(struct conn *conn);
void conn_flush(struct conn *conn);
/* Reads from it or not, by what it owes and is owed. */
void conn_throttle(struct conn *conn);
void conn_flow_free(struct conn *conn);

#endif

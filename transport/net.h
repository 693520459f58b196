/* The seam to the network: calls with replies and one-way messages between
 * processes, named by method number, over whatever carries them. It knows no
 * Raft and no keys. transport/rpc.h implements it over TLS on libuv; tests/sim
 * implements it with loss, delay, reordering, duplication and partitions.
 *
 * Everything here runs on the loop of the env that the net was made with. */
#ifndef TRANSPORT_NET_H
#define TRANSPORT_NET_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/mem.h"

/* The largest body of a message; larger ones are refused on either side. */
#define NET_BODY_SIZE_MAX    (8u << 20)
#define NET_ADDRESS_SIZE_MAX 64u /* "127.0.0.1:7101", with the final zero */

/* Methods are numbered by layer (docs/wire.md): 0x01.. the transport's own,
 * 0x10.. rsm, 0x20.. shardctrler, 0x30.. shardkv. */
typedef uint16_t net_method;

/* Who is at the other end, as its certificate says. */
enum net_role {
    NET_ROLE_NONE,
    NET_ROLE_CLIENT, /* mounts and kv users: data and queries */
    NET_ROLE_SERVER, /* replicas: Raft, migration, and all a client may */
    NET_ROLE_ADMIN,  /* operators: changes of configuration, faults */
};

struct net_peer {
    enum net_role role;
    uint32_t group; /* of a server: the replica group its certificate is for */
    const char *name; /* the certificate's common name; borrowed */
};

struct net;
struct net_request; /* a call that waits for our reply */

/* A reply, or the reason why there is none. Called exactly once for a call
 * that net_call() accepted and that was not cancelled. With ERR_TIMEDOUT or
 * ERR_CLOSED the other side may or may not have executed the call. `body` is
 * borrowed for the call, and only there when `rc` is ERR_OK. */
typedef void net_reply_fn(void *arg, enum err rc, struct slice body);

/* Somebody calls or sends us. `request` is NULL for a one-way message;
 * otherwise net_reply() must be called on it exactly once, now or later.
 * `peer` and `body` are borrowed for the call. */
typedef void net_handler_fn(void *arg, struct net_request *request,
                            const struct net_peer *peer, net_method method,
                            struct slice body);

/* An outgoing connection to `address` broke, or could not be made. A hint: the
 * simulator gives it only sometimes, and nothing may depend on it. */
typedef void net_down_fn(void *arg, const char *address);

/* A part of a body. With an owner the net may keep a reference on it in place
 * of a copy; the bytes must not change then. */
struct net_part {
    struct slice data;
    struct bytes *owner; /* NULL: copy */
};

struct net_ops {
    uint64_t (*call)(struct net *net, const char *address, net_method method,
                     const struct slice *parts, uint32_t part_count,
                     uint32_t timeout_ms, net_reply_fn *reply, void *arg);
    void (*cancel)(struct net *net, uint64_t call);
    void (*send)(struct net *net, const char *address, net_method method,
                 const struct slice *parts, uint32_t part_count);
    void (*reply)(struct net_request *request, enum err rc,
                  const struct slice *parts, uint32_t part_count);
    /* Bytes queued for `address` and not yet taken by the kernel. */
    size_t (*queued)(struct net *net, const char *address);
    /* NULL: net_send_parts() sends copies. */
    void (*send_parts)(struct net *net, const char *address, net_method method,
                       const struct net_part *parts, uint32_t part_count);
    /* NULL, or it gives NULL: net_keep() copies. */
    struct bytes *(*keep)(struct net *net, struct slice body, size_t room);
};

struct net {
    const struct net_ops *ops;
    net_handler_fn *handler; /* set by whoever serves; NULL refuses calls */
    void *handler_arg;
    net_down_fn *down; /* may be NULL */
    void *down_arg;
};

/* Calls `method` at `address`; the body is the parts one after the other,
 * copied. `reply` is never called from inside. Returns a number (not 0) for
 * net_cancel(). Failures, also a full queue (ERR_BUSY), come through `reply`.
 */
static inline uint64_t net_call(struct net *net, const char *address,
                                net_method method, const struct slice *parts,
                                uint32_t part_count, uint32_t timeout_ms,
                                net_reply_fn *reply, void *arg)
{
    return net->ops->call(net, address, method, parts, part_count, timeout_ms,
                          reply, arg);
}

/* After this, the call's reply function will not be called. */
static inline void net_cancel(struct net *net, uint64_t call)
{
    net->ops->cancel(net, call);
}

/* One way, best effort: it may be lost, and is when the queue is full. Messages
 * to one address that arrive, arrive in order on a real network; do not depend
 * on it. */
static inline void net_send(struct net *net, const char *address,
                            net_method method, const struct slice *parts,
                            uint32_t part_count)
{
    net->ops->send(net, address, method, parts, part_count);
}

/* The same with parts that the net may keep. */
void net_send_parts(struct net *net, const char *address, net_method method,
                    const struct net_part *parts, uint32_t part_count);

/* Answers and consumes `request`. With an `rc` other than ERR_OK the parts are
 * not sent. Harmless when the caller has gone. */
static inline void net_reply(struct net *net, struct net_request *request,
                             enum err rc, struct slice body)
{
    net->ops->reply(request, rc, &body, 1);
}

static inline size_t net_queued(struct net *net, const char *address)
{
    return net->ops->queued(net, address);
}

/* For a handler that needs the body it was given for longer than the call: a
 * reference on it where the net can give one (of a long body), else a copy.
 * Once a body. Before the body are `room` more bytes, at most NET_ROOM_MAX,
 * which the caller fills. */
#define NET_ROOM_MAX 16u
struct bytes *net_keep(struct net *net, struct slice body, size_t room);

#endif

/* The net over TLS: framed messages on TCP, many requests on one connection,
 * reconnect with growing jittered pauses, bounds on every queue (docs/wire.md).
 */
#ifndef TRANSPORT_RPC_H
#define TRANSPORT_RPC_H

#include "transport/loop.h"
#include "transport/net.h"
#include "transport/tls.h"

struct rpc;

/* A net on `loop`; it keeps `context` but does not own it. */
MUST_USE enum err rpc_new(struct net_loop *loop, struct tls_context *context,
                          struct rpc **out);
/* Closes every connection; waiting calls get ERR_CLOSED (a call made from such
 * a reply function may never be answered). Runs the loop until all handles are
 * closed, so call it when the loop has stopped, and not from inside it.
 * Requests that nobody answered are freed: do not reply to them afterwards. */
void rpc_free(struct rpc *rpc);
struct net *rpc_net(struct rpc *rpc);

/* Serves at "HOST:PORT" until rpc_free(). ERR_EXISTS: the port is in use. Port
 * 0 takes a free one. */
MUST_USE enum err rpc_listen(struct rpc *rpc, const char *address);
uint16_t rpc_port(const struct rpc *rpc); /* of the last rpc_listen() */

struct rpc_stats {
    uint64_t frames_in, frames_out, bytes_in, bytes_out;
    uint32_t connections;
};
void rpc_stats(const struct rpc *rpc, struct rpc_stats *stats);

#endif

/* Outgoing connections, one per address. Invariants:
 *
 *  1. A connection is begun by a call or message that wants one, never by a
 *     timer: an address nobody talks to any more costs nothing.
 *  2. After `failures` failures in a row nobody dials for a random time that
 *     grows from 10 ms to 1 s; what wants to go there meanwhile is refused, so
 *     that the caller can try another server at once.
 *  3. A connection that never got the server's hello is a failure even when its
 *     handshake ended well: in TLS 1.3 the server looks at our certificate only
 *     after our side is done, and may still refuse it. */
#include "transport/rpc_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

enum {
    PAUSE_MIN_US = 10 * 1000,
    PAUSE_DOUBLINGS_MAX = 7, /* 10 ms << 7 is over a second */
    PAUSE_MAX_US = 1000 * 1000,
    STABLE_US = 1000 * 1000, /* after this long a loss is not a failure */
};

static bool port_is_good(const char *port)
{
    size_t size = strlen(port);
    return size >= 1 && size <= 5 && strspn(port, "0123456789") == size &&
           strtoul(port, NULL, 10) <= UINT16_MAX;
}

/* "HOST:PORT" or "[IPV6]:PORT". */
enum err address_split(const char *address, char host[NET_ADDRESS_SIZE_MAX],
                       char port[6])
{
    const char *colon = strrchr(address, ':');
    if (colon == NULL || strlen(address) >= NET_ADDRESS_SIZE_MAX ||
        !port_is_good(colon + 1)) {
        return ERR_INVALID;
    }
    const char *begin = address;
    const char *end = colon;
    if (*begin == '[' && end - begin > 2 && end[-1] == ']') {
        begin++;
        end--;
    }
    if (begin == end) {
        return ERR_INVALID;
    }
    snprintf(host, NET_ADDRESS_SIZE_MAX, "%.*s", (int)(end - begin), begin);
    snprintf(port, 6, "%s", colon + 1);
    return ERR_OK;
}

/* Forgets one that has no connection: addresses come and go over the years. */
static bool peer_forget_one(struct rpc *rpc)
{
    struct rpc_peer *peer, *next;
    HASH_ITER(hh, rpc->peers, peer, next)
    {
        if (peer->conn == NULL) {
            HASH_DEL(rpc->peers, peer);
            mem_free(peer);
            return true;
        }
    }
    return false;
}

struct rpc_peer *peer_get(struct rpc *rpc, const char *address)
{
    struct rpc_peer *peer;
    HASH_FIND_STR(rpc->peers, address, peer);
    if (peer != NULL) {
        return peer;
    }
    if (HASH_COUNT(rpc->peers) >= RPC_PEERS_MAX && !peer_forget_one(rpc)) {
        return NULL;
    }
    peer = mem_alloc(sizeof *peer);
    if (address_split(address, peer->host, peer->port) != ERR_OK) {
        mem_free(peer);
        return NULL;
    }
    snprintf(peer->address, sizeof peer->address, "%s", address);
    HASH_ADD_STR(rpc->peers, address, peer);
    return peer;
}

void peers_free(struct rpc *rpc)
{
    struct rpc_peer *peer, *next;
    HASH_ITER(hh, rpc->peers, peer, next)
    {
        HASH_DEL(rpc->peers, peer);
        mem_free(peer);
    }
}

struct conn *peer_conn(struct rpc *rpc, struct rpc_peer *peer)
{
    if (peer->conn == NULL && env_now_us(rpc->env) >= peer->pause_until_us) {
        peer->conn = conn_dial(rpc, peer);
    }
    return peer->conn;
}

/* Random, so that a thousand mounts do not come back in step. */
static uint64_t pause_us(struct rpc *rpc, uint32_t failures)
{
    uint32_t doublings = failures - 1;
    if (doublings > PAUSE_DOUBLINGS_MAX) {
        doublings = PAUSE_DOUBLINGS_MAX;
    }
    uint64_t longest = (uint64_t)PAUSE_MIN_US << doublings;
    if (longest > PAUSE_MAX_US) {
        longest = PAUSE_MAX_US;
    }
    return longest / 2 + env_random(rpc->env) % (longest / 2 + 1);
}

void peer_conn_lost(struct rpc *rpc, struct conn *conn)
{
    struct rpc_peer *peer = conn->peer;
    uint64_t now_us = env_now_us(rpc->env);
    peer->conn = NULL;
    if (conn->greeted && now_us - conn->since_us >= STABLE_US) {
        peer->failures = 0;
        peer->pause_until_us = now_us;
    } else {
        peer->failures++;
        peer->pause_until_us = now_us + pause_us(rpc, peer->failures);
    }
    if (rpc->closing) {
        return;
    }
    if (conn->greeted) {
        log_info("transport", "connection lost address=%s: %s", peer->address,
                 conn->reason);
    } else if (peer->failures <= 1) {
        log_info("transport", "cannot reach address=%s: %s; trying on",
                 peer->address, conn->reason);
    } else {
        log_debug("transport", "cannot reach address=%s failures=%u: %s",
                  peer->address, peer->failures, conn->reason);
    }
}

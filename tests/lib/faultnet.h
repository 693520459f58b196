/* A net over a net that loses, delays and reorders as the labs' does, and cuts
 * links: a fault plan for processes. It stands between the parts and the real
 * net, before a message becomes a frame under TLS, so what ships knows nothing
 * of it.
 *
 * All of a link's faults are those of the side that dialled: it loses its
 * requests, and the replies to them when they come (the handler did run). So
 * who is at the other end is always an address, and a cut of one way is a cut
 * on one side. A message that was on its way when a link was cut is lost.
 *
 * It is not in the way of: what comes in (but for replies), and `down`. */
#ifndef TESTS_LIB_FAULTNET_H
#define TESTS_LIB_FAULTNET_H

#include "base/env.h"
#include "transport/net.h"

struct faultnet_plan {
    bool unreliable; /* requests take 0-26 ms; 10% are lost, of replies too */
    bool long_reordering; /* two of three replies come 0.2 to 2.2 s later */
    /* What is lost of a call is lost without a sign: the caller waits until its
     * timeout. Else it hears ERR_CLOSED when the answer would have come; of a
     * link that is cut, within 0.1 s. One-way messages are always lost so. */
    bool silent;
};

struct faultnet_config {
    struct env *env;
    struct net *inner; /* its handler and down hook are taken */
    uint64_t seed;
    bool (*is_cut)(void *arg, const char *address); /* may be NULL */
    /* A one-way message that answers another; may be NULL: none does. */
    bool (*is_reply)(net_method method, struct slice body);
    /* Each message that is given to the net, the lost too; may be NULL. */
    void (*watch)(void *arg, net_method method, struct slice body, bool reply);
    void *arg;
};

struct faultnet;
struct faultnet *faultnet_new(const struct faultnet_config *config);
/* What waits is forgotten: after the parts that use it, before the inner net.
 */
void faultnet_free(struct faultnet *f);
struct net *faultnet_net(struct faultnet *f);
void faultnet_set(struct faultnet *f, const struct faultnet_plan *plan);

#endif

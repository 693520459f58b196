/* The network between simulated nodes: every node gets a struct net; what
 * happens to a message on its way is drawn from the world's seed.
 *
 * A call's request and reply may each be lost, late, or come twice (a second
 * reply is ignored); one-way messages also overtake each other. A call to a
 * node that is down fails at once or only by its timeout. */
#ifndef TESTS_SIM_NET_H
#define TESTS_SIM_NET_H

#include "tests/sim/env.h"
#include "transport/net.h"

enum { SIM_NODES_MAX = 64 };

struct sim_wire;
struct sim_net;

/* What the wire does to messages now. */
struct sim_weather {
    uint64_t delay_low_us, delay_high_us;
    uint32_t loss_per_mille;
    uint32_t twice_per_mille;
    uint32_t late_per_mille; /* held back up to late_us */
    uint64_t late_us;
};

struct sim_wire *sim_wire_new(struct sim_world *w);
void sim_wire_free(struct sim_wire *wire);
struct sim_weather *sim_wire_weather(struct sim_wire *wire);
/* Cuts (or mends) the way from one node to another; not the way back. */
void sim_wire_cut(struct sim_wire *wire, uint32_t from, uint32_t to, bool cut);
void sim_wire_mend(struct sim_wire *wire); /* every way */
/* Tells the node `at` that its connection to `about` broke. */
void sim_wire_hint(struct sim_wire *wire, uint32_t at, uint32_t about,
                   uint64_t delay_us);

/* Sees each message that a node sends, before the wire gets it. */
typedef void sim_wire_watch(void *arg, uint32_t from, uint32_t to,
                            net_method method, struct slice body);
void sim_wire_set_watch(struct sim_wire *wire, sim_wire_watch *watch,
                        void *arg);
uint64_t sim_wire_messages(const struct sim_wire *wire);

/* Decides over each message (and each reply to a call) in place of the weather
 * and the cuts: false, it is lost; else it takes `*delay_us`. For tests with
 * rules of their own. */
struct sim_letter {
    uint32_t from, to;
    bool reply; /* to a call; `method` is then 0 */
    net_method method;
    struct slice body;
};
typedef bool sim_wire_fate(void *arg, const struct sim_letter *letter,
                           uint64_t *delay_us);
void sim_wire_set_fate(struct sim_wire *wire, sim_wire_fate *fate, void *arg);
/* A call whose request or answer is lost fails with ERR_CLOSED when it would
 * have come, and not only by its timeout. */
void sim_wire_set_loss_noticed(struct sim_wire *wire, bool noticed);

/* A node's place on the wire, for the whole run: lives come and go. */
struct net *sim_net_add(struct sim_wire *wire, struct sim_env *env,
                        enum net_role role, uint32_t group, const char *name);
/* The life is over: forgets its calls and requests. Its peers may get a hint.
 */
void sim_net_bury(struct sim_wire *wire, uint32_t node);
/* "n7:7000" */
void sim_net_address(uint32_t node, char address[NET_ADDRESS_SIZE_MAX]);

#endif

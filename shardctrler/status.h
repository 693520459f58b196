/* What a replica of any service says of itself: the part of a ctl_status that
 * its rsm knows. The service adds the rest, encodes and replies. */
#ifndef SHARDCTRLER_STATUS_H
#define SHARDCTRLER_STATUS_H

#include "rsm/rsm.h"
#include "shardctrler/client.h"

/* `status` borrows from the other fields. */
struct ctl_replica_status {
    struct ctl_status status;
    struct ctl_peer peers[RAFT_PEERS_MAX];
    struct ctl_spread spreads[CTL_SPREADS];
    char problem[512]; /* the worst that the rsm knows; empty: all is well */
};

/* Group 0 is the controller's. `started_us`: env_now_us() at the start. */
void ctl_replica_status(struct rsm *rsm, uint32_t gid, uint64_t started_us,
                        uint64_t now_us, struct ctl_replica_status *out);

#endif

/* A replica of the shard controller: its state machine on an rsm, and its
 * methods on the net. The state (all configurations, mounts, sessions) is small
 * and is kept in memory, written whole to the disk at each checkpoint. */
#ifndef SHARDCTRLER_SERVER_H
#define SHARDCTRLER_SERVER_H

#include "rsm/rsm.h"
#include "shardctrler/client.h"

struct ctl_server_config {
    struct env *env;
    struct net *net; /* the server sets its handler and down function */
    struct disk *disk;
    raft_id id;
    struct rsm_peer peers[RAFT_PEERS_MAX];
    uint32_t peer_count;
    uint32_t shard_count; /* of a new cluster; replicated at first start */
    uint32_t heartbeat_ms, election_min_ms, election_max_ms;
    size_t checkpoint_size_max;
    uint32_t checkpoint_ms_max; /* see rsm_config; 0: default */
    /* See rsm_config; 0: default. */
    size_t wal_segment_size, log_keep_size, append_size_max;
    size_t snap_piece_size;
    uint64_t snap_rate, log_hold_size;
    uint64_t space_low;         /* see rsm_config; 0: its default */
    uint64_t certificate_end_s; /* shown in status */
    bool identified;            /* see rsm_config */
    void (*on_removed)(void *arg);
    void *arg;
};

struct ctl_replica;
MUST_USE enum err ctl_replica_new(const struct ctl_server_config *config,
                                  struct ctl_replica **out);
void ctl_replica_free(struct ctl_replica *s);
struct rsm *ctl_replica_rsm(struct ctl_replica *s); /* for tests and shutdown */

#endif

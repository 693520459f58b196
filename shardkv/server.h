/* A replica of a group that serves shards: its state machine on an rsm over a
 * store, its methods on the net, and its part in moving shards. */
#ifndef SHARDKV_SERVER_H
#define SHARDKV_SERVER_H

#include "rsm/rsm.h"
#include "shardctrler/client.h"
#include "shardkv/store.h"

struct skv_server_config {
    struct env *env;
    struct net *net;         /* the server sets its handler and down function */
    struct disk *disk;       /* the log and snapshots */
    struct skv_store *store; /* taken: closed by skv_server_free() */
    ctl_gid gid;
    raft_id id;
    struct rsm_peer peers[RAFT_PEERS_MAX];
    uint32_t peer_count;
    char controllers[RAFT_PEERS_MAX][NET_ADDRESS_SIZE_MAX];
    uint32_t controller_count;
    uint32_t heartbeat_ms, election_min_ms, election_max_ms;
    size_t checkpoint_size_max;
    uint32_t checkpoint_ms_max; /* see rsm_config; 0: default */
    size_t batch_size;          /* of a shard on its way, about; 0: default */
    /* See rsm_config; 0: default. */
    size_t wal_segment_size, log_keep_size, append_size_max, under_way_size;
    size_t snap_piece_size;
    uint64_t snap_rate, log_hold_size;
    uint64_t space_low;         /* see rsm_config; 0: its default */
    uint64_t certificate_end_s; /* shown in status */
    bool identified;            /* see rsm_config */
    bool lease_reads;           /* see rsm_config */
    void (*on_removed)(void *arg);
    void *arg;
};

struct skv_server;
/* Takes config->store on every way out. */
MUST_USE enum err skv_server_new(const struct skv_server_config *config,
                                 struct skv_server **out);
void skv_server_free(struct skv_server *s);
struct rsm *skv_server_rsm(struct skv_server *s); /* tests, shutdown */

#endif

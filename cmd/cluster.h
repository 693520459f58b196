/* A cluster on this machine as its directory says it (docs/operating.md):
 *
 *   cluster.json    which processes there are, their addresses and directories
 *   certs/          the cluster's CA and certificates
 *   data/NAME/      a replica's log and state
 *   log/NAME.log    what it prints
 *   run/NAME.pid    "PID STARTTIME" while it runs
 */
#ifndef CMD_CLUSTER_H
#define CMD_CLUSTER_H

#include <limits.h>

#include "shardkv/client.h"

enum { CLUSTER_REPLICAS_MAX = 64, CLUSTER_NAME_SIZE_MAX = 32 };

struct cluster_replica {
    char name[CLUSTER_NAME_SIZE_MAX]; /* "ctl-1", "g2-3" */
    uint32_t gid;                     /* 0: a controller */
    uint64_t id;                      /* in its group, from 1 */
    char address[NET_ADDRESS_SIZE_MAX];
    uint64_t replaces; /* it was made for the place of this one; 0: of none */
    bool unfinished;   /* `flotilla member` has begun to add it */
};

struct cluster {
    char dir[PATH_MAX]; /* absolute */
    uint32_t shard_count;
    bool lease_reads; /* see rsm_config; from a server's start on */
    struct cluster_replica replicas[CLUSTER_REPLICAS_MAX];
    uint32_t replica_count;
};

/* What a new cluster should look like. */
struct cluster_plan {
    uint32_t port; /* the first; each process takes one more */
    uint32_t controllers, groups, replicas, shards;
    bool lease_reads;
};

/* The directory to use: `given`, else $FLOTILLA_CLUSTER, else "cluster". */
const char *cluster_dir(const char *given);

/* Reads DIR/cluster.json. Explains failures on standard error. */
bool cluster_load(const char *dir, struct cluster *c);
bool cluster_exists(const char *dir);
/* Makes the directory, certificates and cluster.json of a new cluster. */
bool cluster_create(const char *dir, const struct cluster_plan *plan,
                    struct cluster *c);

/* Takes the right to change the description, until the process ends: whoever
 * read it before another wrote it would write that away. Before cluster_load();
 * says on standard error who is in the way. */
bool cluster_lock(const char *dir);
/* Writes DIR/cluster.json, in one step. These explain failures on standard
 * error. */
bool cluster_save(const struct cluster *c);
bool cluster_make_certificate(const struct cluster *c,
                              const struct cluster_replica *r);
/* The data directory of a new replica, and its name in it: a replica without
 * does not start. `joining`: the group is there already. */
bool cluster_make_identity(const struct cluster *c,
                           const struct cluster_replica *r, bool joining);
/* "ctl-ID" or "gGROUP-ID", from its group and id. */
void cluster_replica_name(struct cluster_replica *r);

/* DIR/SUB/NAMEsuffix; returns `path`. */
char *cluster_path(const struct cluster *c, const char *sub, const char *name,
                   const char *suffix, char path[PATH_MAX]);

/* Where a command finds the controllers and its certificate: --cluster DIR, or
 * --controllers A,B,C with --certs DIR. */
struct cluster_access {
    const char *cluster;
    const char *controllers;
    const char *certs;
};
#define CLUSTER_ACCESS_OPTIONS(access)                                         \
    {"cluster",                                                                \
     'c',                                                                      \
     ARG_TEXT,                                                                 \
     &(access)->cluster,                                                       \
     "DIR",                                                                    \
     "the cluster's directory (default: $FLOTILLA_CLUSTER, or ./cluster)"},    \
        {"controllers", 0,                                                     \
         ARG_TEXT,      &(access)->controllers,                                \
         "A,B,C",       "the controllers' HOST:PORT, instead of --cluster"},   \
    {                                                                          \
        "certs", 0, ARG_TEXT, &(access)->certs, "DIR",                         \
            "the certificates, with --controllers"                             \
    }

/* Fills what skv_client_new() wants; false with words on standard error. The
 * strings belong to `certs_dir` (PATH_MAX) and the caller. */
bool cluster_client_config(const struct cluster_access *access,
                           const char *identity,
                           struct skv_client_config *config,
                           char certs_dir[PATH_MAX]);
/* Connects, or says why not, on standard error. NULL on failure. */
struct skv_client *cluster_connect(const struct cluster_access *access,
                                   const char *identity, uint32_t timeout_ms);

#endif

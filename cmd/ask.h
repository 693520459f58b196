/* Blocking questions for commands: each runs one asynchronous call on a
 * client's loop and waits for the answer. */
#ifndef CMD_ASK_H
#define CMD_ASK_H

#include "shardkv/client.h"

/* The configuration `number` (or CTL_LATEST), copied into `arena`. */
MUST_USE enum err ask_config(struct skv_client *client, uint64_t number,
                             uint32_t timeout_ms, struct arena *arena,
                             struct ctl_config *out);
MUST_USE enum err ask_change(struct skv_client *client,
                             const struct ctl_change *change,
                             uint32_t timeout_ms, uint64_t *number);
/* Copied into `arena`. */
MUST_USE enum err ask_mounts(struct skv_client *client, uint32_t timeout_ms,
                             struct arena *arena, struct ctl_mounts *out);

/* One call to one address; the reply is in memory of the arena. */
MUST_USE enum err ask_call(struct skv_client *client, const char *address,
                           net_method method, struct slice body,
                           uint32_t timeout_ms, struct arena *arena,
                           struct slice *out);

/* An empty call to each of many at once. `answer` is called on the client's
 * loop, and true from it ends the asking, as does a time in which nobody else
 * answers; it is not called for those that are silent then. */
struct ask_whom {
    const char *address;
    net_method method;
};
typedef bool ask_answer_fn(void *arg, uint32_t i, enum err rc,
                           struct slice body);
void ask_many(struct skv_client *client, const struct ask_whom *whom,
              uint32_t count, uint32_t timeout_ms, ask_answer_fn *answer,
              void *arg);

/* The status of many replicas at once. */
struct ask_replica {
    char address[NET_ADDRESS_SIZE_MAX];
    uint32_t gid;
    uint64_t id;
    enum err rc;              /* why there is no status, or ERR_OK */
    struct ctl_status status; /* in memory of the arena */
};
void ask_statuses(struct skv_client *client, struct ask_replica *replicas,
                  uint32_t count, uint32_t timeout_ms, struct arena *arena);

#endif

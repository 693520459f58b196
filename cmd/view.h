/* A cut through the cluster for commands that block (shardkv/cut.h). */
#ifndef CMD_VIEW_H
#define CMD_VIEW_H

#include "shardkv/client.h"
#include "shardkv/cut.h"

struct view;
/* NULL with words on standard error. */
struct view *view_open(struct skv_client *client, bool hold,
                       uint32_t timeout_ms);
void view_close(struct view *v);
struct skv_cutter *view_cutter(struct view *v); /* what does not change */

/* One question each; all at once. `seen` is in memory of the arena. */
struct view_ask {
    uint32_t group;
    uint32_t server; /* or SKV_SERVER_ANY */
    struct skv_look look;
    enum err rc;
    struct skv_seen seen;
};
void view_ask(struct view *v, struct view_ask *asks, uint32_t count,
              uint32_t timeout_ms, struct arena *arena);

/* A place in a shard. Zero-initialise `key` and `last`; free the key. */
struct view_cursor {
    uint16_t shard;
    struct buf key;
    uint64_t offset;
    bool last;
};
/* To the beginning of a shard; `own`: with what the group keeps for itself. */
void view_cursor_begin(struct view_cursor *c, uint16_t shard, bool own);
void view_cursor_move(struct view_cursor *c, const struct skv_seen *seen);

#endif

/* Shards on their way, as people and programs want to see them. */
#ifndef CMD_MOVES_H
#define CMD_MOVES_H

#include <jansson.h>

#include "cmd/ask.h"

/* A line for each, with a bar. */
void moves_print(const struct ask_replica *replicas, uint32_t count);
/* Appends an object for each. */
void moves_json(const struct ask_replica *replicas, uint32_t count,
                json_t *array);

/* Waits until every group has come to configuration `number` and every shard
 * has arrived; on a terminal with bars. Ctrl-C ends the wait, not the moves. */
MUST_USE enum err moves_wait(struct skv_client *client, uint64_t number);

#endif

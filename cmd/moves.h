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

/* Waits until the shards that configuration `number` moves have arrived, and
 * shows how far they are. Up to `timeout_ms`, which is what is left of the
 * `asked_ms` that the user gave; 0: as long as anything moves. False, with
 * words on standard error, when some have not: they go on by themselves. */
bool moves_wait(struct skv_client *client, uint64_t number, uint32_t timeout_ms,
                uint32_t asked_ms);

#endif

/* Which replicas lack what was committed some seconds ago. Under load, one that
 * keeps up has all that; how many entries are on their way says nothing. */
#ifndef CMD_BEHIND_H
#define CMD_BEHIND_H

#include "cmd/health.h"

enum { BEHIND_MS = 3000 };

struct behind {
    uint32_t replica;  /* position in the health */
    uint64_t entries;  /* committed when it was asked, and not executed yet */
    uint64_t executed; /* meanwhile */
};

/* Of replicas that have answered, those that have not executed BEHIND_MS later
 * what their leader said was committed. It takes that long only if there are
 * any. Gives their count; `found` has room for HEALTH_REPLICAS_MAX. */
uint32_t behind_find(const struct health *h, struct skv_client *client,
                     struct behind *found);

#endif

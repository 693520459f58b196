/* What rows of 3A and 3B share. */
#ifndef TESTS_LABS_KV_GENERIC_H
#define TESTS_LABS_KV_GENERIC_H

#include "tests/labs/kv_harness.h"

enum { GENERIC_CLIENTS_MAX = 24 };

struct generic_plan {
    uint32_t clients, servers;
    bool unreliable, crash, partitions;
    int64_t maxraftstate;
    bool random_keys; /* and the history must be linearizable */
};

void generic_test(struct lab_run *run, const struct generic_plan *plan);
/* 1,000 appends, one after the other. */
void generic_speed(struct lab_run *run, int64_t maxraftstate);
/* The labs' checkClntAppends() and checkConcurrentAppends(): of the appends
 * 0 ... counts[i] - 1 of client i each is there once, and in order. */
bool generic_check_appends(struct kv *kv, const char *value,
                           const uint32_t *counts, uint32_t clients);

#endif
